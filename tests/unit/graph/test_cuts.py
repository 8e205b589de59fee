"""Where a graph may be divided, against definitions written the slow way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto

from lamella.graph.cuts import legal_cuts, plan_cuts
from lamella.graph.model import Graph
from tests.unit.graph.onnx_models import (
    conditional,
    counted,
    dense,
    filled,
    graph_of,
    loop,
    masked,
    model,
    node,
    residual,
)

MODELS: dict[str, Callable[[], ModelProto]] = {
    "dense": dense,
    "residual": residual,
    "masked": masked,
    "conditional": conditional,
    "loop": loop,
    "counted": counted,
}


def slow_crossing(graph: Graph, position: int) -> set[str]:
    """What exists before the position and is read at or after it."""
    before = set(graph.inputs).union(*(op.outputs for op in graph.operators[:position]))
    after = {name for op in graph.operators[position:] for name in op.inputs}
    return before & after


@pytest.fixture(params=MODELS)
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> Graph:
    return graph_of(MODELS[request.param](), tmp_path)


def test_a_legal_cut_lists_everything_that_crosses_it(graph: Graph) -> None:
    for cut in legal_cuts(graph)[0]:
        assert {*cut.tensors, *cut.side} == slow_crossing(graph, cut.position)
        assert not {*cut.tensors} & {*cut.side}
        assert cut.bytes == sum(graph.tensors[n].bytes_at() for n in (*cut.tensors, *cut.side))


def test_every_position_is_a_legal_cut_or_refused_with_a_reason(graph: Graph) -> None:
    cuts, refused = legal_cuts(graph)
    positions = sorted([c.position for c in cuts] + [r.position for r in refused])
    assert positions == list(range(1, len(graph.operators)))
    assert all(r.reason for r in refused)


def test_a_cut_worth_planning_is_a_legal_cut(graph: Graph) -> None:
    legal = legal_cuts(graph)[0]
    assert all(cut in legal for cut in plan_cuts(graph))


def test_what_the_request_fixes_is_a_side_input(tmp_path: Path) -> None:
    graph = graph_of(masked(), tmp_path)
    for cut in legal_cuts(graph)[0]:
        assert not {"bias", "mask", "inverted"} & set(cut.tensors)
        if cut.position > 2:
            assert cut.side[-1] == "bias" or cut.side == ("bias",)
    assert {c.side for c in plan_cuts(graph)} == {("bias",)}
    assert all(len(c.tensors) == 1 for c in plan_cuts(graph))


def test_an_if_is_one_operator_and_what_it_captures_crosses_until_then(tmp_path: Path) -> None:
    graph = graph_of(conditional(), tmp_path)
    chooser = next(op for op in graph.operators if op.kind == "If")
    assert chooser.has_subgraph
    assert set(chooser.inputs) == {"positive", "early", "late"}
    assert chooser.weights == ("w",)
    for cut in legal_cuts(graph)[0]:
        names = {*cut.tensors, *cut.side}
        if cut.position <= chooser.index:
            assert ("early" in names) == (cut.position > 0 and cut.position > graph.producer["early"])
            assert ("late" in names) == (cut.position > graph.producer["late"])


def test_a_loop_is_one_operator_and_what_its_body_captures_crosses_until_then(tmp_path: Path) -> None:
    graph = graph_of(loop(), tmp_path)
    looping = next(op for op in graph.operators if op.kind == "Loop")
    assert set(looping.inputs) == {"start", "early"}
    before = next(c for c in legal_cuts(graph)[0] if c.position == looping.index)
    assert {*before.tensors, *before.side} == {"start", "early"}


def test_a_cut_that_a_shape_of_unknown_size_crosses_is_refused(tmp_path: Path) -> None:
    graph = graph_of(counted(), tmp_path)
    cuts, refused = legal_cuts(graph)
    assert [op.kind for op in graph.operators] == ["Relu", "NonZero", "Cast", "ReduceSum", "Add"]
    assert [c.position for c in cuts] == [1, 4]
    assert [(r.position, r.reason) for r in refused] == [
        (2, "'where' would cross, and its shape depends on the data"),
        (3, "'floats' would cross, and its shape depends on the data"),
    ]


def test_a_length_computed_from_the_data_is_a_shape_of_unknown_size(tmp_path: Path) -> None:
    nodes = [
        node("ReduceMax", ["x"], ["m"], keepdims=0),
        node("Abs", ["m"], ["length"]),
        node("Range", ["zero", "length", "step"], ["r"]),
        node("Relu", ["r"], ["y"]),
    ]
    weights = {"zero": np.array(0, np.float32), "step": np.array(0.1, np.float32)}
    graph = graph_of(model(nodes, {"x": [1, 24]}, {"y": None}, weights), tmp_path)
    assert [c.position for c in legal_cuts(graph)[0]] == [1, 2]
    assert [(r.position, "'r' would cross" in r.reason) for r in legal_cuts(graph)[1]] == [(3, True)]


def test_a_length_computed_from_the_requests_shape_is_known(tmp_path: Path) -> None:
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Shape", ["r"], ["shape"]),
        node("Neg", ["shape"], ["negative"]),
        node("Abs", ["negative"], ["target"]),
        node("Expand", ["one", "target"], ["ones"]),
        node("Add", ["r", "ones"], ["y"]),
    ]
    graph = graph_of(model(nodes, {"x": [1, 24]}, {"y": None}, {"one": np.ones((1, 1), np.float32)}), tmp_path)
    assert len(legal_cuts(graph)[0]) == 5


def test_a_cut_that_a_sequence_crosses_is_refused(tmp_path: Path) -> None:
    nodes = [
        node("SplitToSequence", ["x"], ["parts"], axis=1),
        node("ConcatFromSequence", ["parts"], ["joined"], axis=1),
        node("Relu", ["joined"], ["y"]),
    ]
    graph = graph_of(model(nodes, {"x": [1, 4]}, {"y": None}), tmp_path)
    assert 1 in [r.position for r in legal_cuts(graph)[1]]


def test_the_shortcut_of_a_residual_block_collapses_it(tmp_path: Path) -> None:
    graph = graph_of(residual(blocks=8), tmp_path)
    planned = plan_cuts(graph)
    assert (planned[0].tensors, planned[0].side) == (("left0",), ("x",))  # the request is with every function anyway
    assert [c.tensors for c in planned[1:]] == [(f"sum{i}",) for i in range(7)]


def test_a_block_that_carries_much_of_the_load_is_opened(tmp_path: Path) -> None:
    graph = graph_of(residual(blocks=2), tmp_path)
    assert [c.tensors for c in plan_cuts(graph)] == [("left0",), ("sum0",), ("sum0", "left1")]


def test_branches_collapse_where_each_is_light(tmp_path: Path) -> None:
    nodes = []
    weights: dict[str, np.ndarray] = {}
    data = "x"
    for i in range(8):
        for side in "abc":
            weights[f"{side}{i}"] = filled(24, 24, seed=i)
            nodes.append(node("MatMul", [data, f"{side}{i}"], [f"{side}{i}.out"]))
        nodes.append(node("Sum", [f"{s}{i}.out" for s in "abc"], [f"sum{i}"]))
        data = f"sum{i}"
    graph = graph_of(model(nodes, {"x": [1, 24]}, {data: None}, weights), tmp_path)
    planned = plan_cuts(graph)
    assert (planned[0].tensors, planned[0].side) == (("a0.out",), ("x",))
    assert [c.tensors for c in planned[1:]] == [(f"sum{i}",) for i in range(7)]


def test_element_wise_operators_stay_with_their_producer(tmp_path: Path) -> None:
    graph = graph_of(dense(layers=4), tmp_path)
    assert [c.tensors for c in plan_cuts(graph)] == [("r0",), ("r1",), ("r2",)]


@pytest.mark.parametrize("limit", [1, 3, 10, 48])
def test_never_more_cuts_than_the_limit(limit: int, tmp_path: Path) -> None:
    graph = graph_of(dense(layers=60), tmp_path)
    planned = plan_cuts(graph, limit)
    assert 0 < len(planned) <= limit
    assert [c.position for c in planned] == sorted({c.position for c in planned})


def test_under_the_limit_no_cut_is_thinned_away(tmp_path: Path) -> None:
    graph = graph_of(dense(layers=20), tmp_path)
    assert len(plan_cuts(graph, 48)) == 19
