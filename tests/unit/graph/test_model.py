"""What a graph knows of its slices, against definitions written the slow way."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
from onnx import ModelProto, TensorProto

from lamella.graph.model import Graph, numpy_dtype
from lamella.units import dim_at
from tests.unit.graph.onnx_models import conditional, dense, filled, graph_of, loop, masked, model, node, residual


def split_and_unread() -> ModelProto:
    """A Split with a part nobody reads, and an output that is read again."""
    nodes = [
        node("Split", ["x"], ["a", "b", "c"], axis=1, num_outputs=3),
        node("Relu", ["a"], ["ra"]),
        node("Add", ["ra", "c"], ["early"]),
        node("Tanh", ["early"], ["t"]),
        node("Add", ["t", "ra"], ["y"]),
    ]
    return model(nodes, {"x": [1, 12]}, {"early": None, "y": None})


MODELS: dict[str, Callable[[], ModelProto]] = {
    "dense": dense,
    "residual": residual,
    "masked": masked,
    "conditional": conditional,
    "loop": loop,
    "split": split_and_unread,
}


@pytest.fixture(params=MODELS)
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> Graph:
    return graph_of(MODELS[request.param](), tmp_path)


def slices(graph: Graph) -> list[tuple[int, int]]:
    return list(combinations(range(len(graph.operators) + 1), 2))


def slow_border(graph: Graph, first: int, last: int) -> tuple[set[str], set[str]]:
    inside = graph.operators[first:last]
    made = {n for op in inside for n in op.outputs}
    read = {n for op in inside for n in op.inputs}
    later = {n for op in graph.operators[last:] for n in op.inputs} | set(graph.outputs)
    return read - made, made & later


def slow_live_bytes(graph: Graph, first: int, last: int, batch: int) -> int:
    """The largest sum, over the operators of the slice, of what must be held while that operator runs."""
    takes, gives = slow_border(graph, first, last)
    peak = 0
    for now in range(first, last):
        held = takes | gives
        for op in graph.operators[first : now + 1]:
            for name in op.outputs:
                readers = [o.index for o in graph.operators[first:last] if name in o.inputs]
                if op.index == now or any(r >= now for r in readers):
                    held.add(name)
        peak = max(peak, sum(graph.tensors[n].bytes_at(batch) for n in held))
    return peak


def test_a_slice_takes_what_it_does_not_make_and_gives_what_others_read(graph: Graph) -> None:
    for first, last in slices(graph):
        takes, gives = graph.border(first, last)
        assert (set(takes), set(gives)) == slow_border(graph, first, last)
        assert len(takes) == len(set(takes))
        assert len(gives) == len(set(gives))


@pytest.mark.parametrize("batch", [1, 4])
def test_live_bytes_are_the_peak_of_what_must_be_held(batch: int, graph: Graph) -> None:
    for first, last in slices(graph):
        assert graph.live_bytes(first, last, batch) == slow_live_bytes(graph, first, last, batch)


def test_weights_that_two_operators_share_count_once(graph: Graph) -> None:
    for first, last in slices(graph):
        names = {w for op in graph.operators[first:last] for w in op.weights}
        assert graph.weight_bytes(first, last) == sum(graph.weights[w].bytes for w in names) + sum(
            op.inner_bytes for op in graph.operators[first:last]
        )


def test_an_unread_output_is_never_given_but_counts_while_it_is_made(tmp_path: Path) -> None:
    graph = graph_of(split_and_unread(), tmp_path)
    assert "b" not in graph.border(0, 1)[1]
    assert graph.live_bytes(0, 1) == 48 + 3 * 16


def test_an_output_that_is_read_again_is_given_and_crosses(tmp_path: Path) -> None:
    graph = graph_of(split_and_unread(), tmp_path)
    assert graph.border(0, 3)[1] == ("ra", "early")


@pytest.mark.parametrize(("dim", "batch", "expected"), [(7, 3, 7), ("N", 3, 3), ("12*N", 3, 36)])
def test_a_dimension_may_follow_the_batch(dim: int | str, batch: int, expected: int) -> None:
    assert dim_at(dim, batch) == expected


@pytest.mark.parametrize(("name", "size"), [("float32", 4), ("int64", 8), ("bool", 1), ("bfloat16", 2)])
def test_types_numpy_does_not_know_come_from_ml_dtypes(name: str, size: int) -> None:
    assert numpy_dtype(name).itemsize == size


def test_a_request_touches_of_a_table_its_rows_only(tmp_path: Path) -> None:
    weights = {"table": filled(1000, 8), "w": filled(8, 40)}
    nodes = [node("Gather", ["table", "x"], ["row"]), node("MatMul", ["row", "w"], ["y"])]
    kinds = {"x": TensorProto.INT64}
    found = graph_of(model(nodes, {"x": [3]}, {"y": None}, weights, kinds), tmp_path)
    assert found.touched_bytes(1) == 4 * (8 * 40 + 3 * 8 + 3 * 40)
