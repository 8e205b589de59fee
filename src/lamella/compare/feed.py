"""The requests of a comparison: the user's own in turn, or random ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np

from lamella.errors import ConfigError, InputRefused
from lamella.graph.model import Graph
from lamella.graph.requests import read_arrays, request, unknown_ranges


def feed(
    graph: Graph,
    batch: int,
    inputs: Sequence[Mapping[str, np.ndarray]] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Callable[[], dict[str, np.ndarray]]:
    """Draws the next request: the user's `inputs` in turn; without any, random values within `ranges`.

    Raises:
        ConfigError: random values are asked for an integer input of unknown range.
        InputRefused: one of `inputs` is no request of this batch.
    """
    if inputs:
        for values in inputs:
            check_request(graph, batch, values)
        turns = cycle(inputs)
        return lambda: dict(next(turns))
    unknown = unknown_ranges(graph, ranges)
    if unknown:
        raise ConfigError(
            f"which values may the integer input {unknown[0]!r} take? random ones could be out of range",
            try_=f"--range {unknown[0]}=0:1000, or --inputs data.npz",
        )
    rng = np.random.default_rng(1)
    return lambda: request(graph, rng, batch, ranges)


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
