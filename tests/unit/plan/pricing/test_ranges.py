"""From slices of the model to functions of the sharded graph, and back."""

from __future__ import annotations

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from lamella.graph.divide import Placed, Range, ShardedGraph, ShardSpan
from lamella.graph.model import Graph
from lamella.plan.layout import model_ranges, stage_ranges


@st.composite
def divided(draw: st.DrawFn) -> tuple[list[Range], ShardedGraph]:
    """Slices of a model, some of which begin with a divided span; only where the spans lie matters here."""
    slices: list[Range] = []
    placed: list[Placed] = []
    at = made = 0
    for length in draw(st.lists(st.integers(1, 9), min_size=1, max_size=8)):
        slices.append((at, at + length))
        if draw(st.booleans()):
            span = ShardSpan(at, at + draw(st.integers(1, length)), draw(st.integers(2, 4)), "channels")
            shards = []
            for _ in range(span.shards):
                end = made + draw(st.integers(1, 5))
                shards.append((made, end))
                made = end
            join = (made, made + draw(st.integers(1, 3)))
            placed.append(Placed(span, tuple(shards), join))
            made, rest = join[1], length - (span.last - span.first)
        else:
            rest = length
        made += rest
        at += length
    return slices, ShardedGraph(cast(Graph, None), tuple(placed))


@given(divided())
def test_functions_stand_for_every_operator_of_the_model_once_and_in_order(
    case: tuple[list[Range], ShardedGraph],
) -> None:
    slices, made = case
    spans = {p.span.first: (p.span.first, p.span.last) for p in made.spans}
    at = 0
    for functions, _ in stage_ranges(slices, made):
        found = model_ranges(functions, made)
        if len(functions) > 1:
            assert set(found) == {spans[at]}
        assert found[0][0] == at
        assert len(set(found)) == 1
        at = found[0][1]
    assert at == slices[-1][1]
