"""The search for routes against HiGHS, which knows nothing of bounds and labels: a solver that others wrote."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from benchmarks.planner_instances import chain, profiled, routes
from lamella.errors import MissingExtra
from lamella.plan.planners.milp import Arcs, cheapest
from lamella.plan.planners.options import Options
from lamella.plan.planners.space import Space
from lamella.plan.pricing.predict import SliceModel


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 5), st.floats(0, 1.1), st.sampled_from([None, 1, 2, 4]))
def test_the_solver_finds_what_the_search_finds(
    seed: int, units: int, sizes: int, share: float, most: int | None
) -> None:
    arcs = chain(units, sizes, seed=seed)
    ours = routes(arcs, most)
    quick, cheap = ours.fastest(), ours.cheapest().routes
    if quick is None:
        assert cheapest(arcs, most_stages=most) is None
        return
    slo = quick.latency_ms + share * (cheap[0].latency_ms - quick.latency_ms)
    found, solved = ours.cheapest(slo), cheapest(arcs, slo, most_stages=most)
    assert solved
    assert solved.proven
    assert solved.usd == pytest.approx(found.routes[0].usd, rel=1e-6)
    assert solved.usd == pytest.approx(math.fsum(arcs.usd[list(solved.arcs)]))
    assert math.fsum(arcs.ms[list(solved.arcs)]) <= slo * (1 + 1e-8)
    assert len(solved.arcs) <= (most or units)
    assert found.proof.bound_usd <= solved.usd * (1 + 1e-6)


def test_no_route_within_the_bound_is_none() -> None:
    arcs = chain(6, 3)
    quick = routes(arcs).fastest()
    assert quick
    assert cheapest(arcs, quick.latency_ms * 0.99) is None
    assert cheapest(arcs, quick.latency_ms * (1 + 1e-7)) is not None


def test_nothing_in_time_is_none_and_a_gap_is_what_may_be_saved_at_most() -> None:
    arcs = chain(20, 6)
    quick = routes(arcs).fastest()
    assert quick
    assert cheapest(arcs, quick.latency_ms * 2, seconds=0.0) is None
    best = cheapest(arcs, quick.latency_ms * 2)
    assert best
    assert best.proven
    assert best.gap < 1e-6
    half = best._replace(usd=best.usd * 2, proven=False)
    assert half.gap == pytest.approx(0.5)


def test_without_the_solver_the_next_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(MissingExtra) as caught:
        cheapest(chain(2, 1))
    assert caught.value.try_ == "pip install 'lamella[milp]'"


def everything(options: Options) -> Arcs:
    """Every slice with every size that holds it, and every stage of shards, as arcs: nothing is left out, no blocks."""
    cells = options.cells
    need = np.maximum(cells.peak_mb, cells.floor_mb)
    cell, size = np.nonzero(options.sold.mb >= need[:, None] - 1e-9)
    run = options.sold.run_ms(cells.work_ms[:, cell], size) + cells.wait_ms[cell]
    usd = options.sold.cost_usd(size, run) + cells.hop_usd[cell]
    tail = [*cells.tail[cell].tolist(), *(f.tail for f in options.fixed)]
    head = [*cells.head[cell].tolist(), *(f.head for f in options.fixed)]
    usd_of = [*usd.tolist(), *(f.usd for f in options.fixed)]
    ms_of = [*(run + cells.hop_ms[cell]).tolist(), *(f.ms for f in options.fixed)]
    return Arcs(len(options.states), *(np.array(x) for x in (tail, head, usd_of, ms_of)))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.floats(0, 1.1), st.booleans(), st.booleans())
def test_exact_s_answer_with_codecs_shards_and_every_size_is_the_solver_s(
    seed: int, units: int, share: float, shards: bool, codecs: bool
) -> None:
    made, asked = profiled(units, "aws-lambda-2021", shards=shards, codecs=codecs, seed=seed)
    hop = made.platform.hop
    near = replace(  # so that it has to be divided, and may be
        made.platform,
        hop=replace(hop, latency_ms=replace(hop.latency_ms, number=1.0), usd=replace(hop.usd, number=0.0)),
        limits=replace(made.platform.limits, package_mb=replace(hop.usd, number=9.0)),
        memory=replace(made.platform.memory, max_mb=replace(hop.usd, number=704.0)),
        billing=replace(made.platform.billing, granularity_ms=replace(hop.usd, number=1.0)),
    )
    asked = asked._replace(percentile=None, max_stages=99)
    model = SliceModel(made.graph, made.profile, near, asked, made.lossy)
    space = Space.of(model, asked)
    quick, cheap = space.quickest(), space.cheapest().chosen
    if not quick or not cheap:
        assert cheapest(everything(space.options)) is None
        return
    slo = (quick.latency_ms + share * (cheap.latency_ms - quick.latency_ms)) * (1 + 1e-7)
    chosen = space.cheapest(slo).chosen
    solved = cheapest(everything(space.options), slo - model.entry_ms)
    assert chosen
    assert solved
    assert solved.proven
    assert solved.usd == pytest.approx(chosen.cost_usd, rel=1e-6)
