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
    """
    if inputs:
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


def load_inputs(path: Path, graph: Graph) -> list[dict[str, np.ndarray]]:
    """Requests from an .npz file: one array per input; a leading axis longer than the model's is split into requests.

    Raises:
        InputRefused: the file cannot be read or lacks an input.
    """
    arrays = read_arrays(path)
    missing = [n for n in graph.inputs if n not in arrays]
    if missing:
        raise InputRefused(f"{path} lacks {missing[0]!r}; it holds {', '.join(arrays) or 'nothing'}")
    rows = min(len(arrays[n]) // (graph.tensors[n].shape_at(1)[0] or 1) for n in graph.inputs if graph.tensors[n].shape)
    found = []
    for row in range(max(1, rows)):
        values = {}
        for n in graph.inputs:
            shape = graph.tensors[n].shape_at(1)
            size = shape[0] if shape else 0
            values[n] = arrays[n][row * size : (row + 1) * size] if shape else arrays[n]
        found.append(values)
    return found
