"""Divided graphs as graphs: where they are kept, what they are called, what is refused before anything is divided."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lamella.errors import ShardRefused
from lamella.graph.divide import Divider, ShardSpan, shard
from lamella.graph.extract import Extractor
from lamella.graph.model import Graph
from lamella.graph.requests import request
from tests.unit.graph.compose import answer, assert_same_bits, worst_share
from tests.unit.graph.onnx_models import conditional, counted, dense, graph_of, masked, residual
from tests.unit.graph.shards import TOLERANCE, answers, check_layout

COLUMNS_THEN_ROWS = ShardSpan(0, 3, 4, "channels")


def chain(directory: Path) -> Graph:
    return graph_of(dense(("batch", 8), layers=6), directory, {"x": ("N", 8)})


def test_the_shards_follow_each_other_where_the_span_was(tmp_path: Path) -> None:
    graph = chain(tmp_path)
    sharded = shard(graph, [ShardSpan(4, 7, 2, "channels"), ShardSpan(0, 3, 3, "channels")])
    check_layout(sharded)
    assert [(p.span.first, p.shards, p.join) for p in sharded.spans] == [
        (0, ((0, 3), (3, 6), (6, 9)), (9, 10)),
        (4, ((11, 14), (14, 17)), (17, 18)),
    ]
    kinds = [op.kind for op in sharded.graph.operators]
    assert kinds[9:11] + kinds[17:] == ["Sum", "Relu", "Sum", *(op.kind for op in graph.operators[7:])]
    assert (sharded.graph.inputs, sharded.graph.outputs) == (graph.inputs, graph.outputs)


def test_a_divided_graph_keeps_its_name_its_source_and_its_free_batch_axis(tmp_path: Path) -> None:
    graph = chain(tmp_path)
    made = shard(graph, [COLUMNS_THEN_ROWS]).graph
    assert (made.name, made.source, made.input_specs) == (graph.name, graph.source, graph.input_specs)
    assert made.batchable
    assert made.tensors["m1"] == graph.tensors["m1"]
    assert made.tensors["r0/4of4"].shape == ("N", 10)


def test_a_divided_graph_runs_as_one_model(tmp_path: Path) -> None:
    graph = chain(tmp_path)
    made = shard(graph, [COLUMNS_THEN_ROWS]).graph
    feeds = request(graph, np.random.default_rng(3), batch=2)
    whole = answer(Extractor(graph), [], feeds, tmp_path / "whole")
    assert worst_share(answer(Extractor(made), [], feeds, tmp_path / "made"), whole) <= TOLERANCE


def test_two_spans_of_one_model_are_divided_in_two_ways(tmp_path: Path) -> None:
    graph = chain(tmp_path)
    feeds = request(graph, np.random.default_rng(3), batch=2)
    spans = [ShardSpan(4, 7, 3, "channels"), ShardSpan(0, 2, 8, "channels")]
    whole, parts = answers(graph, spans, feeds, tmp_path)
    assert worst_share(parts, whole) <= TOLERANCE


def test_a_divided_graph_can_be_divided_again(tmp_path: Path) -> None:
    graph = chain(tmp_path)
    once = shard(graph, [COLUMNS_THEN_ROWS])
    first, last = once.spans[0].shards[1]
    again = shard(once.graph, [ShardSpan(first, last, 2, "channels")])
    feeds = request(graph, np.random.default_rng(3), batch=2)
    whole = answer(Extractor(graph), [], feeds, tmp_path / "whole")
    assert worst_share(answer(Extractor(again.graph), [], feeds, tmp_path / "again"), whole) <= TOLERANCE


def test_the_same_division_is_made_once_and_another_elsewhere(tmp_path: Path, own_cache: Path) -> None:
    graph = chain(tmp_path)
    first = shard(graph, [COLUMNS_THEN_ROWS, ShardSpan(4, 7, 2, "channels")])
    written = first.graph.weights_file.stat()
    second = shard(graph, [ShardSpan(4, 7, 2, "channels"), COLUMNS_THEN_ROWS])
    assert second == first
    assert second.graph.weights_file.stat() == written
    other = shard(graph, [COLUMNS_THEN_ROWS])
    assert len({graph.hash, first.graph.hash, other.graph.hash}) == 3
    assert {p.name for p in (own_cache / "models").iterdir()} == {
        f"model-{g.hash}" for g in (graph, first.graph, other.graph)
    }


def test_what_was_damaged_is_made_again(tmp_path: Path) -> None:
    graph = chain(tmp_path)
    made = shard(graph, [COLUMNS_THEN_ROWS]).graph
    made.weights_file.write_bytes(b"")
    assert shard(graph, [COLUMNS_THEN_ROWS]).graph == made
    assert made.weights_file.stat().st_size > 0


def test_no_spans_leave_the_graph_as_it_is(tmp_path: Path) -> None:
    graph = chain(tmp_path)
    assert shard(graph, []).graph is graph


def test_weights_that_others_read_too_stay_whole_for_them(tmp_path: Path) -> None:
    graph = graph_of(residual(), tmp_path)
    sharded = shard(graph, [ShardSpan(0, 1, 2, "channels")])
    assert {"a0[1:0:12]", "a0[1:12:24]", "b0", "a1", "b1"} == set(sharded.graph.weights)
    request_ = request(graph, np.random.default_rng(0))
    whole, parts = answers(graph, [ShardSpan(0, 1, 2, "channels")], request_, tmp_path)
    assert worst_share(parts, whole) <= TOLERANCE


def test_a_shard_cuts_what_it_needs_of_a_tensor_that_comes_whole(tmp_path: Path) -> None:
    """The mask is made before the span; each shard takes its columns of it."""
    graph = graph_of(masked(), tmp_path)
    span = ShardSpan(2, 4, 3, "channels")
    kinds = [[n.op_type for n in nodes] for nodes in Divider(graph).parts(span).shards]
    assert kinds == [["MatMul", "Slice", "Add"]] * 3
    whole, parts = answers(graph, [span], request(graph, np.random.default_rng(0)), tmp_path)
    assert_same_bits(parts, whole)


def test_what_every_shard_computes_whole_is_given_by_the_first(tmp_path: Path) -> None:
    """Here the mask is made within the span, and read by the layers behind it too."""
    graph = graph_of(masked(), tmp_path)
    parts = Divider(graph).parts(ShardSpan(0, 4, 2, "channels"))
    assert [(n.op_type, list(n.input)) for n in parts.join] == [
        ("Identity", ["bias/1of2"]),
        ("Concat", ["h0/1of2", "h0/2of2"]),
    ]
    whole, found = answers(graph, [ShardSpan(0, 4, 2, "channels")], request(graph, np.random.default_rng(0)), tmp_path)
    assert_same_bits(found, whole)


@pytest.mark.parametrize(
    ("spans", "reason"),
    [
        ([ShardSpan(3, 3, 2, "channels")], "span 3:3 is no run of the 12 operators"),
        ([ShardSpan(8, 13, 2, "channels")], "span 8:13 is no run of the 12 operators"),
        ([ShardSpan(-1, 2, 2, "channels")], "span -1:2 is no run"),
        ([ShardSpan(0, 2, 1, "channels")], "among 1: at least 2"),
        ([ShardSpan(2, 5, 2, "channels"), ShardSpan(0, 3, 2, "channels")], "spans 0:3 and 2:5 overlap"),
    ],
)
def test_spans_that_are_none_are_refused(spans: list[ShardSpan], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ShardRefused, match=reason):
        shard(chain(tmp_path), spans)


def test_a_shape_that_depends_on_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardRefused, match="'where' has a shape that depends on the data"):
        shard(graph_of(counted(), tmp_path), [ShardSpan(0, 3, 2, "channels")])


def test_subgraphs_are_refused(tmp_path: Path) -> None:
    graph = graph_of(conditional(), tmp_path)
    (index,) = (op.index for op in graph.operators if op.has_subgraph)
    with pytest.raises(ShardRefused, match=r"If .* holds subgraphs"):
        shard(graph, [ShardSpan(index, index + 1, 2, "channels")])
