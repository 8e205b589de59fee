"""Spans divided by weights: columns, rows, heads, channels, groups; every shard's part, and the whole again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto

from lamella.errors import ShardRefused
from lamella.graph.divide import Divider, ShardSpan, shard
from lamella.graph.extract import Extractor
from lamella.graph.load import Shapes
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.graph.shard import Way
from tests.unit.graph.compose import Tensors, answer, assert_same_bits
from tests.unit.graph.onnx_models import Shape, filled, graph_of, model, node
from tests.unit.graph.shards import TOLERANCE, answers, cuts, difference

FAN_OUTS = (2, 3, 4, 8)


@dataclass
class Case:
    """A model, all of whose operators are one span, and how to divide it. `x` is its input."""

    nodes: list[NodeProto]
    shape: Sequence[int]
    weights: dict[str, np.ndarray]
    way: Way = "channels"
    ids: bool = False
    opset: int = 18
    others: dict[str, Sequence[int]] = field(default_factory=dict)
    """More inputs."""

    def proto(self) -> ModelProto:
        out = self.nodes[-1].output[0]
        inputs: dict[str, Shape] = {"x": ["batch", *self.shape], **{n: ["batch", *s] for n, s in self.others.items()}}
        proto = model(self.nodes, inputs, {out: None}, self.weights, {"x": TensorProto.INT64} if self.ids else None)
        proto.opset_import[0].version = self.opset
        return proto

    def shapes(self) -> Shapes:
        return {"x": ("N", *self.shape), **{n: ("N", *s) for n, s in self.others.items()}}


def scaled(*shape: int, seed: int = 0) -> np.ndarray:
    """Weights that keep the size of what they are multiplied with."""
    return filled(*shape, seed=seed) / np.float32(max(1.0, np.sqrt(np.prod(shape[1:]))))


def gemm(transposed: int = 0, bias: tuple[int, ...] = (40,)) -> Case:
    weights = {"w": scaled(40, 24) if transposed else scaled(24, 40), "b": filled(*bias)}
    nodes = [node("Gemm", ["x", "w", "b"], ["g"], transB=transposed, alpha=0.5, beta=2.0), node("Relu", ["g"], ["y"])]
    return Case(nodes, (24,), weights)


def gemms(opset: int = 18) -> Case:
    """Columns, then rows; the second bias is added once."""
    weights = {"w1": scaled(40, 24), "b1": filled(40), "w2": scaled(40, 24, seed=1), "b2": filled(24)}
    nodes = [
        node("Gemm", ["x", "w1", "b1"], ["h"], transB=1),
        node("Relu", ["h"], ["a"]),
        node("Gemm", ["a", "w2", "b2"], ["y"], beta=3.0),
    ]
    return Case(nodes, (24,), weights, opset=opset)


def perceptron() -> Case:
    """What a transformer does between its attentions: up, erf-Gelu, down, the shortcut around them."""
    weights = {
        "up": scaled(24, 96),
        "up.bias": filled(96),
        "down": scaled(96, 24),
        "down.bias": filled(24),
        "root2": np.array(2**0.5, np.float32),
        "one": np.array(1, np.float32),
        "half": np.array(0.5, np.float32),
    }
    nodes = [
        node("MatMul", ["x", "up"], ["u"]),
        node("Add", ["u", "up.bias"], ["wide"]),
        node("Div", ["wide", "root2"], ["d"]),
        node("Erf", ["d"], ["e"]),
        node("Add", ["e", "one"], ["p"]),
        node("Mul", ["wide", "p"], ["g"]),
        node("Mul", ["g", "half"], ["gelu"]),
        node("MatMul", ["gelu", "down"], ["n"]),
        node("Add", ["n", "down.bias"], ["nb"]),
        node("Add", ["x", "nb"], ["y"]),
    ]
    return Case(nodes, (5, 24), weights)


def attention(heads: int = 12, width: int = 4) -> Case:
    """Heads follow from the columns of the projections; the output projection sums over them."""
    hidden = heads * width
    weights: dict[str, np.ndarray] = {
        "split": np.array([0, 0, heads, width], np.int64),
        "merge": np.array([0, 0, hidden], np.int64),
        "root": np.array(width**0.5, np.float32),
    }
    nodes = []
    for seed, (part, order) in enumerate((("q", (0, 2, 1, 3)), ("k", (0, 2, 3, 1)), ("v", (0, 2, 1, 3)))):
        weights |= {f"{part}.w": scaled(24, hidden, seed=seed), f"{part}.b": filled(hidden, seed=seed)}
        nodes += [
            node("MatMul", ["x", f"{part}.w"], [f"{part}.m"]),
            node("Add", [f"{part}.m", f"{part}.b"], [f"{part}.a"]),
            node("Reshape", [f"{part}.a", "split"], [f"{part}.s"]),
            node("Transpose", [f"{part}.s"], [f"{part}.t"], perm=order),
        ]
    weights |= {"o.w": scaled(hidden, 24, seed=9), "o.b": filled(24, seed=9)}
    nodes += [
        node("MatMul", ["q.t", "k.t"], ["product"]),
        node("Div", ["product", "root"], ["scaled"]),
        node("Add", ["scaled", "mask"], ["masked"]),
        node("Softmax", ["masked"], ["scores"], axis=-1),
        node("MatMul", ["scores", "v.t"], ["context"]),
        node("Transpose", ["context"], ["turned"], perm=(0, 2, 1, 3)),
        node("Reshape", ["turned", "merge"], ["merged"]),
        node("MatMul", ["merged", "o.w"], ["o.m"]),
        node("Add", ["o.m", "o.b"], ["o.a"]),
        node("Add", ["o.a", "x"], ["y"]),
    ]
    return Case(nodes, (6, 24), weights, others={"mask": (1, 1, 6)})


def normalised(channels: int) -> dict[str, np.ndarray]:
    return {
        "scale": filled(channels, seed=1),
        "shift": filled(channels, seed=2),
        "mean": filled(channels, seed=3),
        "var": np.abs(filled(channels, seed=4)) + np.float32(0.5),
    }


def block() -> Case:
    """Two convolutions and what is between them: channels, then a partial sum."""
    weights = {"w1": scaled(20, 6, 3, 3), "b1": filled(20), "w2": scaled(6, 20, 3, 3), "b2": filled(6)}
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1] * 4),
        node("BatchNormalization", ["c1", "scale", "shift", "mean", "var"], ["n"]),
        node("Relu", ["n"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[3, 3], pads=[1] * 4),
        node("Conv", ["p", "w2", "b2"], ["c2"], pads=[1] * 4),
        node("Add", ["c2", "x"], ["y"]),
    ]
    return Case(nodes, (6, 9, 9), weights | normalised(20))


def separable() -> Case:
    """Widen, depthwise, narrow: the depthwise convolution keeps its channels apart."""
    weights = {"w1": scaled(24, 6, 1, 1), "w2": scaled(24, 1, 3, 3), "b2": filled(24), "w3": scaled(5, 24, 1, 1)}
    nodes = [
        node("Conv", ["x", "w1"], ["c1"]),
        node("PRelu", ["c1", "slope"], ["r1"]),
        node("Conv", ["r1", "w2", "b2"], ["c2"], group=24, pads=[1] * 4, strides=[2, 2]),
        node("HardSwish", ["c2"], ["r2"]),
        node("Conv", ["r2", "w3"], ["y"]),
    ]
    return Case(nodes, (6, 9, 9), weights | {"slope": filled(24, 1, 1)})


def grouped() -> Case:
    """A grouped convolution divided between its groups, then another with as many."""
    weights = {"w1": scaled(32, 3, 3, 3), "b1": filled(32), "w2": scaled(16, 4, 3, 3, seed=1)}
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], group=8, pads=[1] * 4),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["y"], group=8),
    ]
    return Case(nodes, (24, 7, 7), weights)


def regrouped() -> Case:
    """Channels that have to be divided between the groups of four of the convolution after them."""
    weights = {"w1": scaled(32, 5, 1, 1), "w2": scaled(16, 4, 3, 3, seed=1)}
    nodes = [node("Conv", ["x", "w1"], ["c"]), node("Relu", ["c"], ["r"]), node("Conv", ["r", "w2"], ["y"], group=8)]
    return Case(nodes, (5, 7, 7), weights)


def classifier() -> Case:
    """From channels over a flattened image to a dense layer that sums over it."""
    weights = {"w1": scaled(16, 3, 3, 3), "w2": scaled(16 * 4, 10)}
    nodes = [
        node("Conv", ["x", "w1"], ["c"]),
        node("InstanceNormalization", ["c", "scale", "shift"], ["n"]),
        node("AveragePool", ["n"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["p"], ["f"]),
        node("MatMul", ["f", "w2"], ["y"]),
    ]
    return Case(nodes, (3, 6, 6), weights | {k: v for k, v in normalised(16).items() if k in ("scale", "shift")})


def pooled() -> Case:
    """Squeezed channels: what is left of the image has no rows."""
    weights = {"w1": scaled(16, 3, 3, 3), "w2": scaled(16, 10), "axes": np.array([2, 3], np.int64)}
    nodes = [
        node("Conv", ["x", "w1"], ["c"]),
        node("GlobalAveragePool", ["c"], ["p"]),
        node("Squeeze", ["p", "axes"], ["s"]),
        node("Gemm", ["s", "w2"], ["g"]),
        node("Neg", ["g"], ["y"]),
    ]
    return Case(nodes, (3, 6, 6), weights)


def embedding(way: Way, opset: int = 18) -> Case:
    """Words and positions; the table of kinds has only two rows."""
    weights = {"words": filled(50, 16), "kinds": filled(2, 16, seed=1), "where": filled(7, 16, seed=2)}
    nodes = [
        node("Gather", ["words", "x"], ["w"]),
        node("Gather", ["kinds", "kind"], ["k"]),
        node("Add", ["w", "k"], ["wk"]),
        node("Add", ["wk", "where"], ["y"]),
    ]
    weights |= {"kind": np.array([0, 1, 0, 1, 1, 1, 0], np.int64)}
    return Case(nodes, (7,), weights, way, ids=True, opset=opset)


def two_tables() -> Case:
    """Both of them divided by rows, and a third too small for it."""
    weights = {"a": filled(50, 16), "b": filled(33, 16, seed=1), "c": filled(2, 16, seed=2)}
    nodes = [
        node("Gather", ["a", "x"], ["wa"]),
        node("Gather", ["b", "x"], ["wb"]),
        node("Add", ["wa", "wb"], ["ab"]),
        node("Less", ["x", "zero"], ["late"]),
        node("Cast", ["late"], ["kind"], to=TensorProto.INT32),
        node("Gather", ["c", "kind"], ["wc"]),
        node("Add", ["wc", "ab"], ["y"]),
    ]
    return Case(nodes, (7,), weights | {"zero": np.array(0, np.int64)}, "rows", ids=True)


def embedded_sum() -> Case:
    """Columns of an embedding are what the next dense layer sums over."""
    weights = {"words": filled(50, 16), "w": scaled(16, 5)}
    return Case([node("Gather", ["words", "x"], ["e"]), node("MatMul", ["e", "w"], ["y"])], (7,), weights, ids=True)


def stacked() -> Case:
    """A dense layer of several weights at once, one per entry of an axis before it."""
    weights = {"w": scaled(3, 24, 16), "scale": filled(3, 1, 1), "v": scaled(3, 16, 4)}
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Mul", ["m", "scale"], ["s"]), node("MatMul", ["s", "v"], ["y"])]
    return Case(nodes, (3, 5, 24), weights)


CASES: dict[str, Callable[[], Case]] = {
    "dense": gemm,
    "dense, transposed": lambda: gemm(1),
    "dense, one bias": lambda: gemm(0, (1,)),
    "dense, bias in a row": lambda: gemm(1, (1, 40)),
    "dense twice": gemms,
    "dense twice, opset 9": lambda: gemms(9),
    "perceptron": perceptron,
    "attention": attention,
    "convolutions": block,
    "depthwise": separable,
    "groups": grouped,
    "groups later": regrouped,
    "flattened": classifier,
    "pooled": pooled,
    "embedding columns": lambda: embedding("channels"),
    "embedding rows": lambda: embedding("rows"),
    "embedding rows, opset 9": lambda: embedding("rows", 9),
    "two tables": two_tables,
    "embedding summed": embedded_sum,
    "stacked": stacked,
}


EXACT = frozenset(name for name in CASES if name.startswith(("dense,", "groups", "embedding columns"))) | {"dense"}
"""Divisions without a sum, of models this small; a larger product may be summed in blocks that follow its width."""


def divided(case: Case, directory: Path) -> tuple[Graph, ShardSpan]:
    graph = graph_of(case.proto(), directory, case.shapes())
    return graph, ShardSpan(0, len(graph.operators), 2, case.way)


def feeds_of(case: Case, graph: Graph) -> Tensors:
    """Three rows of a batch; ids from the end of the table too, where the runtime's operators allow it."""
    low = -33 if case.opset > 9 else 0
    return request(graph, np.random.default_rng(5), batch=3, ranges={"x": (low, 33)} if case.ids else None)


@pytest.mark.parametrize("shards", FAN_OUTS)
@pytest.mark.parametrize("name", CASES)
def test_the_shards_of_a_span_answer_as_the_span_does(name: str, shards: int, tmp_path: Path) -> None:
    case = CASES[name]()
    graph, span = divided(case, tmp_path)
    worst = difference(graph, msgspec.structs.replace(span, shards=shards), feeds_of(case, graph), tmp_path)
    assert worst <= (0 if name in EXACT else TOLERANCE)


@pytest.mark.parametrize("shards", FAN_OUTS)
def test_an_embedding_divided_by_rows_is_exact(shards: int, tmp_path: Path) -> None:
    """Zeros are added to the row that one of the shards holds."""
    case = embedding("rows")
    graph, _ = divided(case, tmp_path)
    whole, parts = answers(graph, [ShardSpan(0, 1, shards, "rows")], feeds_of(case, graph), tmp_path)
    assert_same_bits(parts, whole)


@pytest.mark.parametrize("row", [50, -51, 1000, -1000])
def test_an_id_of_no_row_is_refused_by_the_shards_too(row: int, tmp_path: Path) -> None:
    case = embedding("rows")
    graph, span = divided(case, tmp_path)
    sharded = shard(graph, [span])
    x = np.full((1, 7), row)
    with pytest.raises(Exception, match="out of data bounds"):
        answer(Extractor(sharded.graph), cuts(sharded), {"x": x}, tmp_path)


def test_heads_and_groups_are_never_torn_apart(tmp_path: Path) -> None:
    graph, _ = divided(attention(heads=5, width=4), tmp_path / "heads")
    parts = Divider(graph).parts(ShardSpan(0, len(graph.operators), 3, "channels"))
    assert [parts.weights[f"q.w[1:{a}:{b}]"].shape[1] for a, b in ((0, 4), (4, 12), (12, 20))] == [4, 8, 8]
    graph, _ = divided(regrouped(), tmp_path / "groups")
    parts = Divider(graph).parts(ShardSpan(0, len(graph.operators), 3, "channels"))
    assert [parts.weights[f"w1[0:{a}:{b}]"].shape[0] for a, b in ((0, 8), (8, 20), (20, 32))] == [8, 12, 12]


def test_every_shard_holds_its_share_of_the_weights(tmp_path: Path) -> None:
    graph, span = divided(gemms(), tmp_path)
    sharded = shard(graph, [msgspec.structs.replace(span, shards=4)])
    (placed,) = sharded.spans
    whole = graph.weight_bytes(0, len(graph.operators))
    for first, last in placed.shards:
        assert sharded.graph.weight_bytes(first, last) < whole / 3.5
    assert sum(w.bytes for w in sharded.graph.weights.values()) < whole + 64


def test_what_only_one_shard_adds_no_other_computes(tmp_path: Path) -> None:
    weights = {"w1": scaled(24, 40), "w2": scaled(40, 24), "b": filled(24)}
    nodes = [
        node("Tanh", ["x"], ["t"]),
        node("MatMul", ["x", "w1"], ["h"]),
        node("MatMul", ["h", "w2"], ["s"]),
        node("Add", ["s", "t"], ["y"]),
    ]
    graph, span = divided(Case(nodes, (24,), weights), tmp_path)
    parts = Divider(graph).parts(span)
    assert [[n.op_type for n in nodes] for nodes in parts.shards] == [
        ["Tanh", "MatMul", "MatMul", "Sum"],
        ["MatMul", "MatMul", "Sum"],
    ]


def refused(
    nodes: list[NodeProto],
    reason: str,
    weights: dict[str, np.ndarray] | None = None,
    shape: Sequence[int] = (24,),
    way: Way = "channels",
    shards: int = 2,
    ids: bool = False,
) -> Any:
    return pytest.param(Case(nodes, shape, weights or {}, way, ids), shards, reason, id=f"{nodes[-1].op_type} {reason}")


def product(columns: int = 40) -> tuple[NodeProto, dict[str, np.ndarray]]:
    return node("MatMul", ["x", "w"], ["m"]), {"w": filled(24, columns)}


@pytest.mark.parametrize(
    ("case", "shards", "reason"),
    [
        refused([node("Relu", ["x"], ["y"])], "nothing to divide: no operator has weights of its own"),
        refused([product()[0]], "nothing to divide: no operator looks rows up", product()[1], way="rows"),
        refused([product()[0]], "has 3 pieces to divide among 4 shards", product(3)[1], shards=4),
        refused([product()[0], node("Softmax", ["m"], ["y"])], "mixes values along the divided axis", product()[1]),
        refused(
            [product()[0], node("CumSum", ["m", "axis"], ["y"])],
            "has no rule to follow a division",
            product()[1] | {"axis": np.array(1, np.int64)},
        ),
        refused(
            [product()[0], node("MatMul", ["m", "v"], ["s"]), node("Relu", ["s"], ["y"])],
            "takes a partial sum: the span has to end before it",
            product()[1] | {"v": filled(40, 24)},
        ),
        refused(
            [product()[0], node("Reshape", ["m", "to"], ["r"]), node("Transpose", ["r"], ["y"])],
            "has 3 pieces to divide among 4 shards",
            product(42)[1] | {"to": np.array([-1, 3, 14], np.int64)},
            shards=4,
        ),
        refused(
            [product()[0], node("Concat", ["m", "m"], ["y"], axis=1)], "joins along the divided axis", product()[1]
        ),
        refused(
            [product()[0], node("Split", ["m"], ["y", "z"], axis=1, num_outputs=2)],
            "mixes values along the divided axis",
            product()[1],
        ),
        refused(
            [node("Gather", ["table", "x"], ["g"]), node("Cast", ["g"], ["y"], to=TensorProto.FLOAT)],
            "looks rows up in a table of int64",
            {"table": np.arange(80).reshape(20, 4)},
            way="rows",
            ids=True,
        ),
        refused(
            [product()[0], node("Transpose", ["m"], ["t"], perm=(0, 2, 1)), node("Add", ["m", "t"], ["y"])],
            "takes inputs that are divided differently",
            product(24)[1],
            shape=(24, 24),
        ),
        refused(
            [product()[0], node("RandomNormalLike", ["m"], ["r"]), node("Add", ["m", "r"], ["y"])],
            "draws random numbers",
            product()[1],
        ),
        refused(
            [
                node("Conv", ["x", "v"], ["c"]),
                node("BatchNormalization", ["c", *"pqrs"], ["n"]),
                node("LRN", ["n"], ["y"], size=3),
            ],
            "mixes values along the divided axis",
            {"v": filled(8, 3, 3, 3)} | dict(zip("pqrs", normalised(8).values(), strict=True)),
            shape=(3, 6, 6),
        ),
        refused(
            [product()[0], node("Gemm", ["m", "v", "m"], ["y"])],
            "has divided inputs beside its data",
            product()[1] | {"v": filled(40, 40)},
        ),
        refused(
            [
                node("Cast", ["x"], ["i"], to=TensorProto.INT32),
                node("MatMul", ["i", "w"], ["m"]),
                node("MatMul", ["m", "v"], ["s"]),
                node("Cast", ["s"], ["y"], to=TensorProto.FLOAT),
            ],
            "gives int32, whose parts the runtime cannot add",
            {"w": np.ones((24, 40), np.int32), "v": np.ones((40, 24), np.int32)},
        ),
    ],
)
def test_a_division_that_cannot_be_followed_is_refused_with_the_operator_and_the_reason(
    case: Case, shards: int, reason: str, tmp_path: Path
) -> None:
    graph = graph_of(case.proto(), tmp_path, {"x": (1, *case.shape)})
    with pytest.raises(ShardRefused, match=reason):
        shard(graph, [ShardSpan(0, len(graph.operators), shards, case.way)])
