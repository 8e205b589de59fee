"""Recommenders: gigabytes of embeddings in front of a few small dense layers.

The opposite of an image network: a request reads 26 rows of the tables, so nearly all weights are bought for memory and
none for time. Every table is an input and an operator of its own, as in the published code, so that tables may be
divided among functions.

Table sizes are the distinct values of the 26 categorical fields of the Criteo Kaggle data set, capped as the reference
code of DLRM does with `--max-ind-range`; the cap sets the size of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lamella.units import BATCH
from lamella.zoo.draft import Blueprint, Draft
from lamella.zoo.spec import InputSpec

CRITEO = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
_DENSE = 13
"""Numerical fields of the same data set."""
_RELU_GAIN = 2.0  # He et al. 2015, equation 10


def capped(rows: int) -> tuple[int, ...]:
    """The sizes of the 26 tables with at most `rows` rows each."""
    return tuple(min(size, rows) for size in CRITEO)


def _fields(tables: Sequence[int]) -> tuple[InputSpec, ...]:
    return tuple(InputSpec(f"c{i}", "int64", (BATCH, 1), 0, rows) for i, rows in enumerate(tables))


def _rows(draft: Draft, label: str, tables: Sequence[int], width: int, std: float) -> list[str]:
    """The row of each field, [N, 1, width]."""
    weights = [draft.weight(f"{label}{i}", rows, width, std=std) for i, rows in enumerate(tables)]
    return [draft.node("Gather", w, f"c{i}", name=f"{label}{i}.row") for i, w in enumerate(weights)]


def _mlp(draft: Draft, label: str, data: str, widths: Sequence[int], second_moment: float = 1.0) -> str:
    """Dense layers with a ReLU each; `second_moment` is that of `data`."""
    for i, (width_in, width_out) in enumerate(pairwise(widths)):
        gain = _RELU_GAIN if i else 1 / second_moment
        data = draft.dense(f"{label}{i}", data, width_in, width_out, std=(gain / width_in) ** 0.5)
        data = draft.node("Relu", data, name=f"{label}{i}.relu")
    return data


def _finish(draft: Draft, inputs: tuple[InputSpec, ...], score: str) -> Blueprint:
    output = draft.node("Sigmoid", score, name="probability")
    return draft.finish({spec.name: (spec.dtype, spec.shape) for spec in inputs}, output, (BATCH, 1))


@dataclass(frozen=True, slots=True)
class Dlrm:
    """The sizes of a deep learning recommendation model (Naumov et al. 2019): `bottom` and `top` are MLP widths.

    The last of `bottom` is the width of an embedding. `top` lists what follows the interactions, the output left out.
    """

    tables: tuple[int, ...]
    bottom: tuple[int, ...]
    top: tuple[int, ...]

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """`dense` float32 ["N", 13], then a row number for each table, int64 ["N", 1]."""
        return (InputSpec("dense", "float32", (BATCH, _DENSE), -3.0, 3.0, normal=True), *_fields(self.tables))

    def build(self, name: str) -> Blueprint:
        """The model called `name`; output `probability` float32 ["N", 1]."""
        draft = Draft(name)
        width, vectors = self.bottom[-1], len(self.tables) + 1
        dense = _mlp(draft, "bottom", "dense", (_DENSE, *self.bottom))
        axis = draft.constant("axis1", np.array([1], np.int64))
        rows = _rows(draft, "table", self.tables, width, std=width**-0.25)  # so that a dot product is near one
        every = draft.node("Concat", draft.node("Unsqueeze", dense, axis, name="dense.row"), *rows, name="all", axis=1)
        turned = draft.node("Transpose", every, name="all.turned", perm=[0, 2, 1])
        products = draft.node("MatMul", every, turned, name="products")
        square = draft.constant("square", np.array([0, vectors * vectors], np.int64))
        flat = draft.node("Reshape", products, square, name="products.flat")
        below = np.flatnonzero(np.tri(vectors, k=-1).reshape(-1)).astype(np.int64)  # each pair once
        pairs = draft.node("Gather", flat, draft.constant("below", below), name="pairs", axis=1)
        joined = draft.node("Concat", dense, pairs, name="interactions", axis=1)
        top = _mlp(draft, "top", joined, (width + below.size, *self.top))
        last = self.top[-1]
        return _finish(draft, self.inputs, draft.dense("score", top, last, 1, std=last**-0.5))


@dataclass(frozen=True, slots=True)
class DeepFm:
    """The sizes of a factorisation machine beside an MLP over the same embeddings (Guo et al. 2017, section 2.1)."""

    tables: tuple[int, ...]
    width: int
    deep: tuple[int, ...]

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """A row number for each table, int64 ["N", 1]."""
        return _fields(self.tables)

    def build(self, name: str) -> Blueprint:
        """The model called `name`; output `probability` float32 ["N", 1]."""
        draft = Draft(name)
        std, fields = 0.1, len(self.tables)
        axis = draft.constant("axis1", np.array([1], np.int64))
        single = draft.node(
            "Concat", *_rows(draft, "first", self.tables, 1, std=std), name="first", axis=1
        )  # [N, fields, 1]
        linear = draft.node("ReduceSum", single, axis, name="linear", keepdims=0)
        every = draft.node("Concat", *_rows(draft, "table", self.tables, self.width, std=std), name="all", axis=1)
        pairs = self._pairs(draft, every, axis)
        flat = draft.constant("flat", np.array([0, fields * self.width], np.int64))
        deep = draft.node("Reshape", every, flat, name="all.flat")
        deep = _mlp(draft, "deep", deep, (fields * self.width, *self.deep), second_moment=std**2)
        last = self.deep[-1]
        both = draft.node("Add", linear, pairs, name="machine")
        score = draft.dense("deep.score", deep, last, 1, std=last**-0.5)
        return _finish(draft, self.inputs, draft.node("Add", both, score, name="score"))

    def _pairs(self, draft: Draft, every: str, axis: str) -> str:
        """Sum of all pairs' dot products, as (square of the sum - sum of the squares) / 2 (Rendle 2010, lemma 3.1)."""
        total = draft.node("ReduceSum", every, axis, name="sum", keepdims=0)
        squared = draft.node("Mul", total, total, name="sum.squared")
        squares = draft.node("Mul", every, every, name="squares")
        apart = draft.node("ReduceSum", squares, axis, name="squares.sum", keepdims=0)
        twice = draft.node("Sub", squared, apart, name="pairs.twice")
        both = draft.node("ReduceSum", twice, axis, name="pairs.sum", keepdims=1)
        return draft.node("Mul", both, draft.constant("half", np.array(0.5, np.float32)), name="pairs")


DLRM = Dlrm(capped(700_000), bottom=(512, 256, 64), top=(512, 256))
DLRM_TINY = Dlrm((100, 7, 50, 3), bottom=(16, 8), top=(16, 8))
DEEPFM = DeepFm(capped(900_000), width=16, deep=(400, 400, 400))
DEEPFM_TINY = DeepFm((100, 7, 50, 3), width=8, deep=(16, 16))
