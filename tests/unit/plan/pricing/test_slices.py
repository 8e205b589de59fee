"""All slices at once against one at a time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lamella.graph.model import Graph, Operator, Tensor, Weight
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.pricing.slices import slices
from lamella.plan.pricing.spans import spans
from lamella.plan.request import Request
from lamella.profile.document import BatchLive, CutProfile, Timing, Unit
from lamella.units import MB
from tests.unit.plan.synthetic import CHAINS, Made, graph_of, model_of


@st.composite
def tangles(draw: st.DrawFn) -> tuple[Graph, list[tuple[int, int]]]:
    """A model in which operators read any earlier tensors and any weights, some outputs nobody; and units of it."""
    count = draw(st.integers(1, 9))
    base = graph_of((Made(),) * 1)
    tensors = {"x": Tensor("x", "float32", ("N", 3)), "y": Tensor("y", "int8", (5,))}
    weights = {f"w{k}": Weight(f"w{k}", "float32", (k + 1,), 0, 4 * (k + 1)) for k in range(4)}
    operators, known = [], ["x", "y"]
    for index in range(count):
        made = [f"t{index}.{k}" for k in range(draw(st.integers(1, 2)))]
        for name in made:
            tensors[name] = Tensor(name, "float32", ("N", draw(st.integers(1, 50))))
        operators.append(
            Operator(
                index,
                f"op{index}",
                "Any",
                tuple(draw(st.lists(st.sampled_from(known), max_size=3))),
                tuple(draw(st.lists(st.sampled_from(sorted(weights)), max_size=2, unique=True))),
                tuple(made),
                flops=1,
                inner_bytes=draw(st.integers(0, 2)),
            )
        )
        known += made
    outputs = tuple(draw(st.lists(st.sampled_from(known[2:]), min_size=1, unique=True)))
    graph = Graph(
        name="tangle",
        hash="tangle",
        directory=base.directory,
        operators=tuple(operators),
        tensors=tensors,
        weights=weights,
        inputs=("x", "y"),
        outputs=outputs,
        source=base.source,
    )
    marks = sorted({0, count, *draw(st.lists(st.integers(0, count)))})
    return graph, list(pairwise(marks))


@settings(max_examples=300, deadline=None)
@given(tangles(), st.integers(1, 3))
def test_runs_of_units_are_those_of_the_graph(tangle: tuple[Graph, list[tuple[int, int]]], batch: int) -> None:
    graph, units = tangle
    for first, found in enumerate(spans(graph, units, batch)):
        for at, last in enumerate(range(first + 1, len(units) + 1)):
            span = units[first][0], units[last - 1][1]
            takes, gives = graph.border(*span)
            assert found.weights[at] == graph.weight_bytes(*span)
            assert found.into[at] == sum(graph.tensors[n].bytes_at(batch) for n in takes)
            assert found.out[at] == sum(graph.tensors[n].bytes_at(batch) for n in gives)
            assert found.live[at] == graph.live_bytes(*span, batch)


def check(model: SliceModel, threads: int = 2) -> None:
    """Every slice as the model prices it alone."""
    found = slices(model, threads)
    rows = {(f, e, model.layouts[k]): at for at, (f, e, k) in enumerate(zip(*map(list, found[:3]), strict=True))}
    expected = {
        (f, e, layout)
        for f in range(model.units)
        for e in range(f + 1, model.units + 1)
        for layout in model.layouts_of(f, e)
    }
    assert set(rows) == expected
    for (first, last, layout), at in rows.items():
        held = model.held_mb(first, last, layout=layout)
        assert (found.peak_mb[at], found.floor_mb[at]) == pytest.approx(held, rel=1e-9)
        shipped = model.graph.weight_bytes(*model.span(first, last)) / MB + model.more_mb(first, last, layout)
        assert found.shipped_mb[at] == pytest.approx(shipped)
        work = [model.compute_ms(first, last, layout=layout, threads=t + 1) for t in range(threads)]
        assert found.work_ms[:, at] == pytest.approx(np.array(work))


def with_rows(model: SliceModel, batch: int) -> SliceModel:
    """The same asked for requests of so many rows, which were measured on one thread; and what reading a file takes."""
    ones = [v for v in model.profile.variants if v.threads == 1]

    def timed(unit: Unit) -> Unit:
        more = tuple(
            Timing(replace(t.variant, batch=batch), 3 * t.median_ms, 4 * t.p95_ms, t.shared)
            for t in unit.times
            if t.variant in ones
        )
        read = tuple(
            replace(m, load_ms=1.0, read_ms=2.0 * (m.layout == "prepacked" and m.weights_mb > 0)) for m in unit.memory
        )
        lives = (BatchLive(batch, 2 * unit.memory[0].live_mb),)
        return replace(unit, times=unit.times + more, memory=read, lives=lives)

    def saved(cut: CutProfile) -> CutProfile:
        more = tuple(replace(s, variant=replace(s.variant, batch=batch)) for s in cut.savings if s.variant in ones)
        return replace(cut, savings=cut.savings + more)

    units, cuts = (tuple(map(timed, model.profile.units)), tuple(map(saved, model.profile.cuts)))
    profile = replace(model.profile, units=units, cuts=cuts)
    return SliceModel(model.graph, profile, model.platform, Request(batch=batch))


@settings(max_examples=100, deadline=None)
@given(CHAINS)
def test_slices_are_priced_as_one_by_one(units: tuple[Made, ...]) -> None:
    check(model_of(units))


@settings(max_examples=100, deadline=None)
@given(CHAINS)
def test_slices_of_several_rows_are_priced_as_one_by_one(units: tuple[Made, ...]) -> None:
    check(with_rows(model_of(units), 4))
