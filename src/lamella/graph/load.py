"""From what the user gives to an imported graph, once: the result is cached by the content of the file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto, numpy_helper
from onnx.inliner import inline_local_functions

from lamella.documents import cache_dir
from lamella.errors import ModelError, UnboundShape
from lamella.graph.model import Graph
from lamella.graph.normalise import normalise, tensors
from lamella.graph.stored import Stored, kept, write
from lamella.graph.weights import (
    EXPORT_AGAIN,
    PLAINER,
    element_type,
    external_file,
    read_external,
    read_tensor,
)
from lamella.units import BATCH, Dim
from lamella.zoo import InputSpec, get, materialise

IMPORT_VERSION = "5"
"""Part of the cache key: raise it when the importer changes."""

NAME_BYTES = 80
"""A model's name is cut here: file systems allow 255 bytes (encrypted ones 143), and caches add hash and machine."""

GIVE = "a path to an .onnx file, zoo:NAME (zoo:vgg19), or package.module:attribute of a torch or Keras model"

Shapes = Mapping[str, Sequence[Dim]]


def resolve(model: str) -> tuple[Path, str, tuple[InputSpec, ...]]:
    """The ONNX file of `MODEL`, its display name, and what is known of its inputs.

    Raises:
        ModelError: no such file, or no such model in the zoo.
    """
    if model.startswith("zoo:"):
        entry = get(model.removeprefix("zoo:"))
        return materialise(entry.name, cache_dir() / "zoo"), entry.name, entry.inputs
    path = Path(model)
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise ModelError(f"model file {model!r} {what}", try_=GIVE)
    return path, path.stem.encode(errors="replace")[:NAME_BYTES].decode(errors="ignore"), ()


def import_model(model: str, shapes: Shapes | None = None, known: Sequence[InputSpec] = ()) -> Graph:
    """The normalised graph of `MODEL`, a path to an .onnx file or `zoo:NAME`, with its request shapes bound.

    Args:
        model: what the user gave.
        shapes: for each input its dimensions; `N` on the first axis keeps the batch axis free.
        known: what is known of the inputs of a file; the zoo knows its own.

    Raises:
        ModelError: not ONNX, truncated, NaN weights, unknown operators, missing external data.
        UnboundShape: an input has a symbolic dimension that `shapes` does not bind.
        StorageError: the cache's disk is full.
    """
    path, name, specs = resolve(model)
    specs = specs or tuple(known)
    bound: dict[str, tuple[Dim, ...]] = {s.name: tuple(s.shape) for s in specs}
    bound.update({k: tuple(v) for k, v in (shapes or {}).items()})
    proto = _parse(path)
    bound = {**_own_shapes(proto), **bound}  # a plan names them all, and must find this graph again
    digest = hashlib.sha256(repr((IMPORT_VERSION, sorted(bound.items()))).encode())
    for file in [path, *external_files(proto, path)]:
        _hash_file(digest, file)
    key = digest.hexdigest()[:24]
    directory = cache_dir() / "models" / f"{name}-{key}"
    stored = kept(directory, lambda scratch: _import(proto, path, bound, specs, scratch))
    return Graph(
        name=name, hash=key, directory=directory, source=path, input_specs=specs, **msgspec.structs.asdict(stored)
    )


def _parse(path: Path) -> ModelProto:
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises its own kinds, and OSError for unreadable files
        raise ModelError(
            f"{path.name} is not an ONNX model, or it is cut short ({path.stat().st_size} bytes): {error}",
            where=str(path),
            try_="copy or export the file again",
        ) from error
    if not proto.graph.node or not proto.graph.output:
        raise ModelError(f"{path.name} holds no graph: is it an ONNX model?", where=str(path))
    return proto


def external_files(proto: ModelProto, path: Path) -> list[Path]:
    """Files with the model's external data, each once.

    Raises:
        ModelError: one is missing, or outside the model's directory.
    """
    outside = (t for t in tensors(proto.graph) if t.data_location == TensorProto.EXTERNAL)
    return list(dict.fromkeys(external_file(t, path.parent) for t in outside))


def _own_shapes(proto: ModelProto) -> dict[str, tuple[Dim, ...]]:
    """The shapes of the inputs whose every dimension the file itself fixes."""
    weights = {t.name for t in proto.graph.initializer}
    kinds = {i.name: i.type.tensor_type for i in proto.graph.input if i.name not in weights}
    return {
        name: tuple(d.dim_value for d in kind.shape.dim)
        for name, kind in kinds.items()
        if kind.HasField("shape") and all(d.dim_value > 0 for d in kind.shape.dim)
    }


def _hash_file(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)


def _import(
    proto: ModelProto, path: Path, bound: Mapping[str, Sequence[Dim]], specs: Sequence[InputSpec], scratch: Path
) -> Stored:
    try:
        proto = inline_local_functions(proto) if proto.functions else proto
        weights = _take_weights(proto, path)
        _bind(proto, weights, bound)
        proto = normalise(proto, weights)
        _check_values(weights)
        return write(proto, weights, specs, scratch)
    except MemoryError as error:
        raise ModelError(
            f"importing {path.name} takes more memory than this process may have: {str(error) or 'no more is given'}",
            where=str(path),
            try_="smaller dimensions with --shape, or a machine with more memory",
        ) from error
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        fault = _fault(path)
        if fault is None:
            raise
        raise ModelError(
            f"{path.name} breaks the ONNX standard: {fault} (the import stopped at {type(error).__name__}: {error})",
            where=str(path),
            try_=EXPORT_AGAIN,
        ) from error


def _fault(path: Path) -> str | None:
    """What the standard's own checker finds wrong with a file that the importer tripped over."""
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        return next(iter(str(error).splitlines()), type(error).__name__)
    return None


def _take_weights(proto: ModelProto, path: Path) -> dict[str, np.ndarray]:
    """The initialisers as arrays, removed from the model."""
    weights: dict[str, np.ndarray] = {}
    for sparse in proto.graph.sparse_initializer:
        raise ModelError(
            f"weight {sparse.values.name!r} is stored sparse, which lamella does not read",
            where=f"weight {sparse.values.name!r}",
            try_="export the model with dense weights",
        )
    for tensor in proto.graph.initializer:
        weights[tensor.name] = read_tensor(tensor, path.parent)
    del proto.graph.initializer[:]
    for tensor in tensors(proto.graph):  # inside nodes
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(numpy_helper.from_array(read_external(tensor, path.parent), tensor.name))
    inputs = [i for i in proto.graph.input if i.name not in weights]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    return weights


def _bind(proto: ModelProto, weights: Mapping[str, np.ndarray], bound: Mapping[str, Sequence[Dim]]) -> None:
    """Write the request shapes into the graph's inputs; drop inputs nobody reads."""
    known = {i.name for i in proto.graph.input}
    for name in bound:
        if name not in known:
            raise UnboundShape(
                f"the model has no input {name!r}; its inputs are {', '.join(sorted(known))}",
                try_=f"--shape {sorted(known)[0] if known else 'name'}=1,3,224,224",
            )
    for value in proto.graph.input:
        _check_type(value)
        dims = value.type.tensor_type.shape.dim
        given = bound.get(value.name)
        if given is None:
            unbound = [d.dim_param or "?" for d in dims if not d.HasField("dim_value") or d.dim_value < 1]
            if unbound or not value.type.tensor_type.HasField("shape"):
                shape = ",".join(str(d.dim_value) if d.dim_value > 0 else (d.dim_param or "?") for d in dims)
                raise UnboundShape(
                    f"input {value.name!r} has the shape [{shape}] with nothing bound to {', '.join(unbound) or 'it'}",
                    where=f"input {value.name!r}",
                    try_=f"--shape {value.name}="
                    + (",".join(str(d.dim_value) if d.dim_value > 0 else "1" for d in dims) or "1,3,224,224"),
                )
            continue
        if value.type.tensor_type.HasField("shape") and len(given) != len(dims):
            raise UnboundShape(
                f"input {value.name!r} has {len(dims)} dimensions, --shape gives {len(given)}",
                where=f"input {value.name!r}",
            )
        for axis, dim in enumerate(given):
            if isinstance(dim, str) and (dim != BATCH or axis != 0):
                raise UnboundShape(
                    f"input {value.name!r}: dimension {axis} is {dim!r}; only N on the first axis may stay free",
                    try_=f"--shape {value.name}=" + ",".join(str(d) if isinstance(d, int) else "1" for d in given),
                )
            if isinstance(dim, int) and dim < 1:
                raise UnboundShape(f"input {value.name!r}: dimension {axis} is {dim}, it must be at least 1")
        del dims[:]
        for dim in given:
            value.type.tensor_type.shape.dim.add(**({"dim_value": dim} if isinstance(dim, int) else {"dim_param": dim}))


def _check_type(value: ValueInfoProto) -> None:
    """Refuse an input that no request can bring."""
    where = f"input {value.name!r}"
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        what = f"is a {kind.removesuffix('_type').replace('_', ' ')}" if kind else "has no type"
        raise ModelError(f"input {value.name!r} {what}, a request carries plain tensors only", where=where)
    dtype = element_type(value.type.tensor_type.elem_type, where)
    if dtype.kind == "V":
        raise ModelError(
            f"input {value.name!r} takes {dtype.name}, a request carries numbers that numpy has",
            where=where,
            try_=PLAINER,
        )
    if dtype.hasobject:
        raise ModelError(
            f"input {value.name!r} takes strings, a request carries numbers only",
            where=where,
            try_="export the model without the part that reads text",
        )


def _check_values(weights: Mapping[str, np.ndarray]) -> None:
    for name, array in weights.items():
        if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
            with np.errstate(invalid="ignore", over="ignore"):  # infinities of both signs are no fault
                whole = np.isfinite(np.sum(array, dtype=np.float64))
            bad = 0 if whole else int(np.isnan(array).sum())
            if bad:
                raise ModelError(
                    f"weight {name!r} holds {bad} NaN of {array.size} values",
                    where=f"weight {name!r}, shape {list(array.shape)}",
                    try_="export the model again from a checkpoint that is whole",
                )
