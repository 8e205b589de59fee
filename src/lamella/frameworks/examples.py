"""What a model is shown: one example per input, and more requests drawn from the examples.

A drawn request holds values of the example in another order. So token ids stay within the vocabulary and a mask stays
a mask without anyone having to say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lamella.errors import UnboundShape
from lamella.graph.load import Shapes
from lamella.graph.shapes import random_values
from lamella.units import BATCH, Dim, dim_at
from lamella.zoo import InputSpec

SEED = 20
TRACED_BATCH = 2
"""Rows while tracing with a free batch axis: exporters take an axis of 1 for bound."""
OTHER_BATCHES = (1, 3)


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One input: `values` of one request, whose first axis is the batch where it is free."""

    name: str
    values: np.ndarray
    free: bool
    told: bool
    """The user gave the values, so that they say which are valid."""

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The request's shape; N where the batch axis is free."""
        return (BATCH, *self.values.shape[1:]) if self.free else self.values.shape

    def drawn(self, rng: np.random.Generator, batch: int) -> np.ndarray:
        """Other values of the same kind; `batch` rows where the axis is free."""
        shape = tuple(dim_at(d, batch) for d in self.shape)
        pool = self.values.reshape(-1)
        return rng.choice(pool, size=shape).astype(pool.dtype) if pool.size else np.empty(shape, pool.dtype)

    def spec(self) -> InputSpec | None:
        """The valid values of integers, as far as the user's example shows them."""
        if not self.told or self.values.dtype.kind not in "iu" or not self.values.size:
            return None
        low, high = int(self.values.min()), int(self.values.max()) + 1
        return InputSpec(self.name, self.values.dtype.name, self.shape, low, high)


def requests(examples: Sequence[Example]) -> list[dict[str, np.ndarray]]:
    """Three requests: the example itself, and two drawn ones, of other batches where the axis is free."""
    rng = np.random.default_rng(SEED)
    drawn = [{e.name: e.drawn(rng, batch) for e in examples} for batch in OTHER_BATCHES]
    return [{e.name: e.values for e in examples}, *drawn]


def traced(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """The request to trace with."""
    rng = np.random.default_rng(SEED)
    return {e.name: e.drawn(rng, TRACED_BATCH) if e.free else e.values for e in examples}


def given(name: str, values: np.ndarray, shapes: Shapes) -> Example:
    """The example the user gave; `--shape` may only free its batch axis.

    Raises:
        UnboundShape: the shape is another one.
    """
    dims = tuple(shapes.get(name, values.shape))
    free = dims[:1] == (BATCH,)
    if dims[free:] != values.shape[free:] or len(dims) != len(values.shape):
        raise UnboundShape(
            f"input {name!r}: --shape gives {list(dims)}, its example has the shape {list(values.shape)}",
            where=f"input {name!r}",
            try_=f"--shape {name}=" + ",".join(map(str, ("N", *values.shape[1:]))),
        )
    return Example(name, values, free, told=True)


def made(name: str, dims: Sequence[Dim], dtype: np.dtype[np.generic]) -> Example:
    """An example of random values.

    Raises:
        UnboundShape: a dimension other than the first is free, or one is below 1.
    """
    bad = [d for axis, d in enumerate(dims) if (d < 1 if isinstance(d, int) else (d != BATCH or axis > 0))]
    if bad:
        raise UnboundShape(
            f"input {name!r}: {bad[0]!r} in {list(dims)}; only N on the first axis may stay free, others are 1 or more",
            try_=f"--shape {name}=" + ",".join(str(d) if isinstance(d, int) and d > 0 else "1" for d in dims),
        )
    rng = np.random.default_rng(SEED)
    shape = tuple(dim_at(d, TRACED_BATCH) for d in dims)
    return Example(name, random_values(dtype, shape, None, rng), dims[:1] == (BATCH,), told=False)


def check_names(shapes: Shapes, known: Mapping[str, object] | Sequence[str]) -> None:
    """Refuse a shape of no input.

    Raises:
        UnboundShape: the model takes no input of that name.
    """
    for name in shapes:
        if name not in known:
            names = ", ".join(known)
            raise UnboundShape(
                f"the model has no input {name!r}; its inputs are {names}",
                try_=f"--shape {next(iter(known), 'x')}=1,3,224,224",
            )
