"""Requests for a model: random ones that its inputs accept, and those of a file."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lamella.documents import replacing
from lamella.errors import ConfigError, InputRefused
from lamella.graph.model import Graph, numpy_dtype
from lamella.graph.shapes import random_values
from lamella.zoo import InputSpec

SAVE = "np.savez('x.npz', NAME=array, ...)"
"""How a user makes a file of arrays."""

Ranges = Mapping[str, tuple[float, float]]


def request(
    graph: Graph, rng: np.random.Generator, batch: int = 1, ranges: Ranges | None = None
) -> dict[str, np.ndarray]:
    """One random request, by input name.

    Args:
        graph: the model.
        rng: where chance comes from.
        batch: rows, where the batch axis is free.
        ranges: [low, high) of inputs, in place of what is known of them; integers default to 0 or 1.

    Raises:
        ConfigError: a range is of no input, or holds no value of its type.
        InputRefused: `batch` is below one, or above one and the batch axis is bound.
    """
    check_ranges(graph, ranges)
    if batch < 1 or (batch > 1 and not graph.batchable):
        allowed = "1 or more" if graph.batchable else "exactly 1: no input has a free batch axis"
        raise InputRefused(f"batch of {batch} asked for; {graph.name} takes {allowed}")
    known = {s.name: s for s in graph.input_specs}
    feeds = {}
    for name in graph.inputs:
        tensor = graph.tensors[name]
        spec = known.get(name)
        if ranges and name in ranges:
            spec = InputSpec(name, tensor.dtype, tensor.shape, *ranges[name])
        feeds[name] = random_values(numpy_dtype(tensor.dtype), tensor.shape_at(batch), spec, rng)
    return feeds


def check_ranges(graph: Graph, ranges: Ranges | None) -> None:
    """Refuse ranges that say nothing of this model.

    Raises:
        ConfigError: a range is of no input, or holds no value of its type.
    """
    for name, (low, high) in (ranges or {}).items():
        if name not in graph.inputs:
            raise ConfigError(
                f"--range: {graph.name} has no input {name!r}; its inputs are {', '.join(graph.inputs)}",
                try_=f"--range {graph.inputs[0] if graph.inputs else 'NAME'}={low:g}:{high:g}",
            )
        dtype = numpy_dtype(graph.tensors[name].dtype)
        if dtype.kind in "iu":
            bounds = np.iinfo(dtype.str)
            if math.ceil(low) >= high or low < bounds.min or high > bounds.max + 1:
                raise ConfigError(
                    f"--range {name}={low:g}:{high:g} holds no {dtype.name}, or not only: those are whole numbers from "
                    f"{bounds.min} to {bounds.max}",
                    try_=f"--range {name}=0:{min(1000, bounds.max)}",
                )


def unknown_ranges(graph: Graph, ranges: Ranges | None = None) -> list[str]:
    """Integer inputs whose valid values nobody has told.

    Raises:
        ConfigError: a range is of no input, or holds no value of its type.
    """
    check_ranges(graph, ranges)
    known = {s.name for s in graph.input_specs} | set(ranges or {})
    return [n for n in graph.inputs if numpy_dtype(graph.tensors[n].dtype).kind in "iu" and n not in known]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, by name.

    Raises:
        InputRefused: the file is missing, no .npz, or cut short; a member is no array of numbers.
    """
    try:
        with path.open("rb") as file:
            start, size = file.read(6), path.stat().st_size
            if start == np.lib.format.MAGIC_PREFIX:
                raise InputRefused(f"cannot read {path}: it holds one array without a name", try_=SAVE)
            if not start.startswith(b"PK"):
                raise InputRefused(f"cannot read {path}: it is no .npz file ({size} bytes)", try_=SAVE)
            file.seek(0)
            try:
                data = np.load(file, allow_pickle=False)
            except Exception as error:  # the zip reader's own kinds
                message = f"cannot read {path}: it is damaged, or cut short at {size} bytes ({error})"
                raise InputRefused(message, try_="copy or write the file again") from error
            return {name: _member(data, name, path) for name in data.files if not name.endswith("/")}
    except OSError as error:
        raise InputRefused(f"cannot read {path}: {error.strerror or error}", try_=SAVE) from error


def _member(data: np.lib.npyio.NpzFile, name: str, path: Path) -> np.ndarray:
    """One array of the file."""
    try:
        array: object = data[name]
    except Exception as error:  # numpy, the zip reader and Python's tokeniser raise a dozen kinds
        pickled = "allow_pickle" in str(error)
        what = "it holds Python objects, not numbers" if pickled else str(error) or type(error).__name__
        raise InputRefused(
            f"cannot read {path}: {what}",
            where=f"array {name!r}",
            try_=f"give it a numeric type, array.astype(np.float32), and {SAVE}" if pickled else SAVE,
        ) from error
    if not isinstance(array, np.ndarray):
        raise InputRefused(f"cannot read {path}: member {name!r} is no array", where=f"member {name!r}", try_=SAVE)
    return array


def load_inputs(path: Path, graph: Graph, batch: int) -> list[dict[str, np.ndarray]]:
    """Requests of `batch` rows from an .npz file with one array per input.

    A leading axis longer than that of one request is split into requests; a scalar goes with each of them.

    Raises:
        InputRefused: the file cannot be read, lacks an input, or does not divide into requests of this batch.
    """
    arrays = read_arrays(path)
    missing = [n for n in graph.inputs if n not in arrays]
    if missing:
        raise InputRefused(f"{path} lacks {missing[0]!r}; it holds {', '.join(arrays) or 'nothing'}")
    sizes = {n: shape[0] for n in graph.inputs if (shape := graph.tensors[n].shape_at(batch))}
    counts = {n: _count(path, n, arrays[n], size, batch) for n, size in sizes.items()}
    if len(set(counts.values())) > 1:
        raise InputRefused(
            f"{path} holds different numbers of requests: " + ", ".join(f"{c} of {n!r}" for n, c in counts.items())
        )
    found = []
    for k in range(next(iter(counts.values()), 1)):
        values = {n: arrays[n][k * sizes[n] : (k + 1) * sizes[n]] if n in sizes else arrays[n] for n in graph.inputs}
        check_request(graph, batch, values)
        found.append(values)
    return found


def _count(path: Path, name: str, array: np.ndarray, size: int, batch: int) -> int:
    """How many requests an input holds whose leading axis is `size` long in one."""
    rows = array.shape[0] if array.ndim else 0
    if not rows or not size or rows % size:
        raise InputRefused(
            f"{path}: input {name!r} has {rows} rows, a request of batch {batch} takes {size}",
            where=f"input {name!r}",
            try_="a multiple of that, or another --batch",
        )
    return rows // size


def check_request(graph: Graph, batch: int, values: Mapping[str, np.ndarray]) -> None:
    """InputRefused where the tensors are not those of a request of `batch` rows."""
    for name in graph.inputs:
        tensor = graph.tensors[name]
        if name not in values:
            raise InputRefused(f"a request lacks input {name!r}", where=f"input {name!r}")
        found, want = values[name], tensor.shape_at(batch)
        if found.shape != want or found.dtype.name != tensor.dtype:
            raise InputRefused(
                f"input {name!r} of a request is {found.dtype.name} {list(found.shape)}, at batch {batch} the model "
                f"takes {tensor.dtype} {list(want)}",
                where=f"input {name!r}",
                try_="another --batch, or other inputs",
            )


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An .npz file with `arrays`, by name, whole or not at all; `np.savez` itself takes no array called `file`.

    Raises:
        StorageError: the disk is full or refuses.
    """
    with replacing(path) as file, zipfile.ZipFile(file, "w") as whole:
        for name, array in arrays.items():
            with whole.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
