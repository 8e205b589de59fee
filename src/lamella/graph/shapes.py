"""Every shape and type of a normalised model: by inference, then one run that exposes every tensor.

Inference alone leaves about one output in seven open on real models. One run of the unoptimised graph answers for all
of them; where the batch axis is free a second run at batch 2 tells which dimensions follow it, and whether the model
really treats the rows of a batch apart. The planner never guesses a shape.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper

from lamella.errors import ModelError, UnboundShape
from lamella.graph.flops import flops
from lamella.graph.model import Operator, Tensor, Weight
from lamella.graph.normalise import constant_bytes, reads, short, subgraphs
from lamella.graph.weights import EXPORT_AGAIN, PLAINER, element_type, needs_plainer
from lamella.machine import this_machine
from lamella.units import BATCH, MB, Dim
from lamella.zoo import InputSpec

if TYPE_CHECKING:
    import onnxruntime as ort

GB = 1024 * MB

DATA_DEPENDENT = frozenset(
    "NonZero Unique NonMaxSuppression Compress If Loop Scan SequenceAt SequenceConstruct SplitToSequence "
    "ConcatFromSequence SequenceInsert SequenceErase SequenceEmpty OptionalGetElement".split()
)
"""Kinds whose output shape inference must prove static; otherwise it depends on the data."""

SHAPED_BY_VALUE = {"Range": 0, "ConstantOfShape": 0} | dict.fromkeys(
    "Reshape Expand Tile Slice Pad Resize TopK OneHot".split(), 1
)
"""Kinds whose output shape follows from the values of their inputs, from this one on."""


def example_inputs(
    proto: ModelProto, specs: Sequence[InputSpec], batch: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """One request: random floats, integers in their known range, else 0 or 1; name -> array."""
    known = {s.name: s for s in specs}
    feeds = {}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else batch for d in kind.shape.dim]
        dtype = element_type(kind.elem_type, f"input {value.name!r}")
        spec = known.get(value.name)
        feeds[value.name] = random_values(dtype, tuple(shape), spec, rng)
    return feeds


def random_values(
    dtype: np.dtype[np.generic], shape: tuple[int, ...], spec: InputSpec | None, rng: np.random.Generator
) -> np.ndarray:
    """Random values that an input accepts."""
    low, high = (spec.low, spec.high) if spec else (0, 2)
    if dtype.kind in "iu":
        return rng.integers(int(low), max(int(high), int(low) + 1), shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if spec and not spec.normal:
        return rng.uniform(low, high, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def analyse(
    proto: ModelProto, directory: Path, weights: Mapping[str, Weight], specs: Sequence[InputSpec]
) -> tuple[tuple[Operator, ...], dict[str, Tensor]]:
    """The model's operators and tensors; every tensor's shape is written into the model as well.

    Args:
        proto: normalised, external weights in `directory`.
        directory: where `graph.onnx` and `weights.bin` lie.
        weights: the model's constants.
        specs: known value ranges of inputs.

    Raises:
        ModelError: the runtime cannot run the model, or a free batch axis mixes its rows.
    """
    known = _infer(proto)
    inferred = {v.name: _static(v) for v in known.graph.value_info}
    _check_memory(known)
    rng = np.random.default_rng(0)
    one = example_inputs(proto, specs, 1, rng)
    values = _exposed_run(proto, directory, one)
    first = {n: _describe(v) for n, v in values.items()}
    free = any(d.dim_param for i in proto.graph.input for d in i.type.tensor_type.shape.dim)
    second = first
    if free:
        second = _batch_shapes(proto, directory, specs, one, values, rng)
    del values
    dynamic = _data_dependent(proto, inferred)
    tensors: dict[str, Tensor] = {}
    for name, (dtype, shape) in first.items():
        dims = _merge(name, shape, second[name][1])
        tensors[name] = Tensor(name, dtype, dims, dynamic=name in dynamic, portable=dtype != "")
    del proto.graph.value_info[:]
    borders = {v.name for v in (*proto.graph.input, *proto.graph.output)}
    for name, tensor in tensors.items():
        info = _info(tensor)
        if info and name not in borders:
            proto.graph.value_info.append(info)
    outputs = [_info(tensors[o.name]) or o for o in proto.graph.output]
    del proto.graph.output[:]
    proto.graph.output.extend(outputs)
    operators = tuple(_operator(i, node, tensors, weights) for i, node in enumerate(proto.graph.node))
    return operators, tensors


def _infer(proto: ModelProto) -> ModelProto:
    """The model with every shape that inference finds."""
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception as error:  # onnx raises InferenceError, and bare exceptions from C++
        if "No opset import" in str(error):  # whatever the shapes are
            raise ModelError(f"the model uses an operator set it does not name: {error}", try_=EXPORT_AGAIN) from error
        raise ModelError(f"shapes contradict each other: {error}", try_="check the --shape options") from error


def _static(value: onnx.ValueInfoProto) -> bool:
    """Whether inference proves a tensor's shape, the batch axis aside."""
    kind = value.type.tensor_type
    return kind.HasField("shape") and all(d.HasField("dim_value") or d.dim_param == BATCH for d in kind.shape.dim)


def _check_memory(known: ModelProto) -> None:
    """Refuse a request whose tensors do not fit in this machine, before the kernel kills the process that tries.

    A run that exposes every tensor holds them all; with a free batch axis one row, another one, and both together.
    """
    inputs = [v for v in known.graph.input if _static(v)]
    rest = [v for v in (*known.graph.value_info, *known.graph.output) if _static(v)]
    copies = 4 if any(d.dim_param for v in inputs for d in v.type.tensor_type.shape.dim) else 1
    drawn = max((math.prod(_sizes(v)) * 8 for v in inputs), default=0)  # as float64 or int64, then converted
    needed = drawn + copies * sum(
        math.prod(_sizes(v)) * element_type(v.type.tensor_type.elem_type, f"tensor {v.name!r}").itemsize
        for v in (*inputs, *rest)
    )
    free = _free_memory()
    if needed > free:
        shapes = ", ".join(f"{v.name}={_sizes(v)}" for v in inputs)
        raise UnboundShape(
            f"the tensors of a request with {shapes} take {needed / GB:.1f} GB, this machine has {free / GB:.1f} GB "
            "free",
            try_="smaller dimensions with --shape",
        )


def _sizes(value: onnx.ValueInfoProto) -> list[int]:
    return [d.dim_value if d.HasField("dim_value") else 1 for d in value.type.tensor_type.shape.dim]


def _free_memory() -> int:
    """Bytes that new processes can have here; the whole memory where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) << 10
    except (OSError, StopIteration, ValueError):
        return this_machine().memory_mb * MB


def _exposed_run(proto: ModelProto, directory: Path, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The value of every tensor of one unoptimised run."""
    import onnxruntime as ort

    exposed = ModelProto()
    exposed.CopyFrom(proto)
    known = {o.name for o in proto.graph.output}
    names = [n for node in proto.graph.node for n in node.output if n]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    path = directory / "exposed.onnx"
    path.write_bytes(exposed.SerializeToString())
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding raises Fail, NotImplemented, InvalidGraph, ...
        try_ = "bind other shapes with --shape" if "ShapeInferenceError" in str(error) else EXPORT_AGAIN
        raise ModelError(f"the runtime refuses the model: {short(error)}", try_=try_) from error
    _check_types(session, known)
    try:
        values = session.run(names, dict(feeds))
    except Exception as error:
        shapes = ", ".join(f"{n}={list(a.shape)}" for n, a in feeds.items())
        raise UnboundShape(
            f"the model does not run with {shapes}: {short(error)}", try_="bind other shapes with --shape"
        ) from error
    finally:
        path.unlink()
    return {**feeds, **dict(zip(names, values, strict=True))}


def _check_types(session: ort.InferenceSession, outputs: Collection[str]) -> None:
    """Refuse what no channel can carry: answers that are no tensors of numbers, and types that numpy lacks."""
    for made in session.get_outputs():
        if made.name in outputs and (not made.type.startswith("tensor(") or made.type == "tensor(string)"):
            raise ModelError(
                f"output {made.name!r} is a {made.type}, an answer carries plain tensors of numbers only",
                where=f"output {made.name!r}",
                try_="export the model without the part that makes it",
            )
        if needs_plainer(made.type):
            raise ModelError(
                f"tensor {made.name!r} is a {made.type}; lamella serves such numbers as weights only",
                where=f"tensor {made.name!r}",
                try_=PLAINER,
            )


def _describe(value: object) -> tuple[str, tuple[int, ...]]:
    if isinstance(value, np.ndarray) and value.dtype.kind not in "OUS":
        return value.dtype.name, value.shape
    return "", ()


def _batch_shapes(
    proto: ModelProto,
    directory: Path,
    specs: Sequence[InputSpec],
    one: Mapping[str, np.ndarray],
    first: Mapping[str, np.ndarray],
    rng: np.random.Generator,
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Shapes at batch 2, after checking that each row of the batch gets the answer it gets alone."""
    other = example_inputs(proto, specs, 1, rng)
    fixed = {i.name for i in proto.graph.input if not any(d.dim_param for d in i.type.tensor_type.shape.dim)}
    two = {n: one[n] if n in fixed else np.concatenate([one[n], other[n]]) for n in one}
    values = _exposed_run(proto, directory, two)
    second = _exposed_run(proto, directory, {n: one[n] if n in fixed else other[n] for n in one})
    for out, each in ((o, run) for o in proto.graph.output for run in (first, second)):
        alone, both = np.asarray(each[out.name]), np.asarray(values[out.name])
        if both.shape[:1] != (2 * alone.shape[0],) if alone.ndim else True:
            raise UnboundShape(
                f"the batch axis cannot stay free: output {out.name!r} is {list(alone.shape)} for one row, "
                f"{list(both.shape)} for two",
                try_="bind the first dimension to 1 instead of N",
            )
        if alone.dtype.kind == "f":
            span = float(np.ptp(alone)) if alone.size else 0.0
            rows = both[: alone.shape[0]] if each is first else both[alone.shape[0] :]
            worst = float(np.max(np.abs(rows.astype(np.float64) - alone), initial=0.0)) / (span or 1.0)
            if worst > 1e-3:
                raise UnboundShape(
                    f"the batch axis cannot stay free: a row's answer changes by {worst:.1%} of its range "
                    f"when another row joins it (output {out.name!r})",
                    try_="bind the first dimension to 1 instead of N",
                )
    return {n: _describe(v) for n, v in values.items()}


def _merge(name: str, one: tuple[int, ...], two: tuple[int, ...]) -> tuple[Dim, ...]:
    """A shape with the dimensions that follow the batch written as multiples of N."""
    dims: list[Dim] = []
    if len(one) != len(two):
        raise UnboundShape(
            f"the batch axis cannot stay free: tensor {name!r} is {list(one)} for one row, {list(two)} for two",
            try_="bind the first dimension to 1 instead of N",
        )
    for a, b in zip(one, two, strict=True):
        dims.append(a if a == b else (BATCH if a == 1 else f"{a}*{BATCH}"))
        if a != b and b != 2 * a:
            raise UnboundShape(
                f"the batch axis cannot stay free: tensor {name!r} has {a} entries for one row, {b} for two",
                try_="bind the first dimension to 1 instead of N",
            )
    return tuple(dims)


def _data_dependent(proto: ModelProto, inferred: Mapping[str, bool]) -> set[str]:
    """Tensors whose shape follows from the request's values, not from its shapes alone."""
    dynamic: set[str] = set()
    values = {i.name for i in proto.graph.input}
    for node in proto.graph.node:
        names = reads(node)
        sized = any(n in values for n in list(node.input)[SHAPED_BY_VALUE.get(node.op_type, len(node.input)) :])
        unknown = any(n in dynamic for n in names)
        if node.op_type in DATA_DEPENDENT or sized or unknown:
            dynamic.update(n for n in node.output if n and not inferred.get(n, False))
        if unknown or (node.op_type not in ("Shape", "Size") and any(n in values for n in names)):
            values.update(n for n in node.output if n)
    return dynamic


def _info(tensor: Tensor) -> onnx.ValueInfoProto | None:
    if not tensor.portable:
        return None
    shape = None if tensor.dynamic else [_plain(d) for d in tensor.shape]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, kind, shape)


def _plain(dim: Dim) -> int | str:
    """ONNX wants an identifier as a symbolic dimension."""
    return dim if isinstance(dim, int) else dim.replace("*", "x")


def _operator(index: int, node: NodeProto, tensors: Mapping[str, Tensor], weights: Mapping[str, Weight]) -> Operator:
    names = reads(node)

    def shape(name: str) -> tuple[int, ...]:
        if name in tensors:
            return tensors[name].shape_at()
        return weights[name].shape if name in weights else ()

    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute if not a.HasField("g")}
    outputs = tuple(n for n in node.output if n)
    return Operator(
        index=index,
        name=node.name,
        kind=node.op_type,
        inputs=tuple(n for n in names if n in tensors),
        weights=tuple(n for n in names if n in weights),
        outputs=outputs,
        flops=flops(node.op_type, [shape(n) for n in node.input], [shape(n) for n in node.output], attributes),
        has_subgraph=any(True for _ in subgraphs(node)),
        inner_bytes=sum(constant_bytes(sub) for sub in subgraphs(node)),
    )
