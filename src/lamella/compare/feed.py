"""The requests of a comparison: the user's own in turn, or random ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle

import numpy as np

from lamella.errors import ConfigError
from lamella.graph.model import Graph
from lamella.graph.requests import check_request, request, unknown_ranges


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
