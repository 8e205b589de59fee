"""Random operators behind a divided dense layer: what is not refused answers as the whole model does."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto

from lamella.errors import ShardRefused, UnboundShape
from lamella.graph.divide import ShardSpan
from lamella.graph.requests import request
from tests.unit.graph.onnx_models import filled, graph_of, model, node
from tests.unit.graph.shards import TOLERANCE, difference

BATCH = 2
"""Stands for the free axis in shapes here; no bound axis is as long."""

ELEMENTWISE = ("Relu", "Tanh", "Neg", "Identity", "Erf", "Dropout")
KINDS = (
    *("elementwise", "constant", "whole", "itself", "Reshape", "Reshape", "Transpose", "Softmax", "Reduce", "Concat"),
    *("Split", "Unsqueeze", "Gather", "Slice", "MatMul", "gram", "LayerNormalization"),
)


class Chain:
    """A model that grows by one operator at a time; `shape` is of its newest tensor."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        sizes = st.sampled_from([1, 3, 4, 6])
        self.first = [BATCH, *draw(st.lists(sizes, min_size=1, max_size=2)), 6]
        self.shape, self.data = list(self.first), "x"
        self.add("MatMul", [*self.first[:-1], 12], self.weight(6, 12))

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = filled(*shape, seed=len(self.weights)) / np.float32(prod(shape[:1]) ** 0.5)
        return name

    def ints(self, *values: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.array(values, np.int64)
        return name

    def add(self, kind: str, shape: list[int], *others: str, **attributes: Any) -> None:
        out = f"t{len(self.nodes)}"
        self.nodes.append(node(kind, [self.data, *others], [out], **attributes))
        self.data, self.shape = out, shape

    def bound(self) -> list[int]:
        """Axes apart from the batch."""
        return [a for a, size in enumerate(self.shape) if size != BATCH]

    def grow(self) -> None:
        draw, shape, axes = self.draw, self.shape, self.bound()
        rank = len(shape)
        if not axes:
            return
        axis = draw(st.sampled_from(axes))
        match draw(st.sampled_from(KINDS)):
            case "elementwise":
                self.add(draw(st.sampled_from(ELEMENTWISE)), shape)
            case "constant":
                sizes = [draw(st.sampled_from([1, s])) if s != BATCH else 1 for s in shape]
                self.add(
                    draw(st.sampled_from(["Add", "Mul"])), shape, self.weight(*sizes[draw(st.integers(0, rank)) :])
                )
            case "whole" if len(shape) == len(self.first) and shape[:-1] == self.first[:-1] and shape[-1] == 6:
                self.add("Add", shape, "x")
            case "itself":
                self.add("Mul", shape, self.data)
            case "Reshape":
                before = shape.index(BATCH)
                if before == 0:
                    inner = split(draw, prod(shape[1:]))
                    self.add("Reshape", [BATCH, *inner], self.ints(-1, *inner))
            case "Transpose":
                order = draw(st.permutations(range(rank)))
                self.add("Transpose", [shape[a] for a in order], perm=order)
            case "Softmax":
                self.add("Softmax", shape, axis=axis - draw(st.sampled_from([0, rank])))
            case "Reduce" if len(axes) > 1:
                keep = draw(st.integers(0, 1))
                left = [1 if a == axis else s for a, s in enumerate(shape) if keep or a != axis]
                self.add(draw(st.sampled_from(["ReduceMean", "ReduceMax"])), left, self.ints(axis), keepdims=keep)
            case "Concat":
                wide = [2 * s if a == axis else s for a, s in enumerate(shape)]
                if BATCH not in (wide[axis],):
                    self.add("Concat", wide, self.data, axis=axis)
            case "Split" if shape[axis] % 2 == 0 and shape[axis] > 4:
                half = [s // 2 if a == axis else s for a, s in enumerate(shape)]
                self.add("Split", half, axis=axis, num_outputs=2)
                self.nodes[-1].output.append(f"rest{len(self.nodes)}")
            case "Unsqueeze" if rank < 5:
                at = draw(st.integers(0, rank))
                self.add("Unsqueeze", [*shape[:at], 1, *shape[at:]], self.ints(at))
            case "Gather":
                picks = draw(st.lists(st.integers(0, shape[axis] - 1), min_size=3, max_size=3))
                self.add("Gather", [*shape[:axis], 3, *shape[axis + 1 :]], self.ints(*picks), axis=axis)
            case "Slice" if shape[axis] > 3:
                ends = self.ints(1), self.ints(shape[axis]), self.ints(axis)
                cut = [s - 1 if a == axis else s for a, s in enumerate(shape)]
                self.add("Slice", cut, *ends)
            case "MatMul" if rank > 1 and shape[-1] != BATCH:
                self.add("MatMul", [*shape[:-1], 6], self.weight(shape[-1], 6))
            case "gram" if rank > 2 and BATCH not in shape[-2:]:
                order = [*range(rank - 2), rank - 1, rank - 2]
                own, sizes = self.data, list(shape)
                self.add("Transpose", [shape[a] for a in order], perm=order)
                self.nodes.append(node("MatMul", [own, self.data], [f"t{len(self.nodes)}"]))
                self.data, self.shape = f"t{len(self.nodes) - 1}", [*sizes[:-1], sizes[-2]]
            case "LayerNormalization" if rank > 1 and shape[-1] not in (BATCH, 1):
                self.add("LayerNormalization", shape, self.weight(shape[-1]), axis=-1)
            case _:
                pass

    def model(self) -> ModelProto:
        return model(self.nodes, {"x": ["batch", *self.first[1:]]}, {self.data: None}, self.weights)


def split(draw: st.DrawFn, size: int) -> list[int]:
    """Axes that hold `size` entries, none of two, as those would be taken for the batch."""
    axes: list[int] = []
    while size > 1 and len(axes) < 3:
        size_of = draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
        axes.append(size_of)
        size //= size_of
    axes.append(size)
    return [prod(axes)] if BATCH in axes else axes


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    chain = Chain(draw)
    for _ in range(draw(st.integers(1, 7))):
        chain.grow()
    return chain


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hypothesis calls a test many times within one fixture."""
    return tmp_path_factory.mktemp("chains")


@settings(max_examples=150)
@given(chain=chains(), shards=st.sampled_from([2, 3, 4, 8]), free=st.booleans())
def test_what_is_not_refused_answers_as_the_whole_model_does(
    place: Path, chain: Chain, shards: int, free: bool
) -> None:
    try:
        graph = graph_of(chain.model(), place, {"x": ("N" if free else BATCH, *chain.first[1:])})
    except UnboundShape:  # some operator moved the batch axis
        graph = graph_of(chain.model(), place, {"x": (BATCH, *chain.first[1:])})
    span = ShardSpan(0, len(graph.operators), shards, "channels")
    feeds = request(graph, np.random.default_rng(1), batch=2 if graph.batchable else 1)
    try:
        worst = difference(graph, span, feeds, place / "slices")
    except ShardRefused as error:
        event(f"refused: {error.message.split(' ', 2)[2]}")
        return
    event(f"divided among {shards}")
    assert worst <= TOLERANCE
