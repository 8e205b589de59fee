"""The bound of other orders against every plan in every order of small random graphs, by the exact planner's prices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.graph.divide import ShardSpan
from lamella.graph.model import Graph, Operator, Tensor, Weight
from lamella.graph.orders import ideals, needs, one_order, reordered
from lamella.plan.planners import orders as module
from lamella.plan.planners.orders import Relaxed, orders
from lamella.plan.planners.space import Space
from lamella.plan.pricing.hops import Lossy
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.pricing.reorder import in_order
from lamella.plan.pricing.sets import sharing
from lamella.plan.request import Request
from lamella.platforms import platform
from lamella.profile.document import Profile, ShardPart, ShardProfile
from lamella.profile.scaling import at
from lamella.units import MB
from tests.unit.plan.synthetic import CODED, UNITS, Made, graph_of, model_of, profile_of

WHERE = st.sampled_from(["openfaas", "aws-lambda-2021", "azure-consumption", "cloud-run", "knative"])
SLOS = st.sampled_from([math.inf, 30.0, 60.0, 100.0, 200.0])
SAVED = st.sampled_from([0.0, 0.005, 2.0])


def branched(units: tuple[Made, ...], reads: tuple[frozenset[int], ...], shared: bool = False) -> Graph:
    """Units of two operators each, the second of which reads what units before it made; all that nobody reads is given.

    The inner tensor is thrice as large as what the unit gives. `shared`: the last unit holds the first one's weight.
    """
    tensors = {"x": Tensor("x", "float32", ("N", 1024))}
    weights, operators, offset = {}, [], 0
    for i, unit in enumerate(units):
        size = round(unit.weights_mb * MB)
        weights[f"w{i}"] = Weight(f"w{i}", "float32", (size // 4,), offset, size)
        offset += size
        for name, many in ((f"i{i}", 3), (f"t{i}", 1)):
            tensors[name] = Tensor(name, "float32", ("N", many * max(1, round(unit.out_mb * MB / 4))))
        taken = tuple(f"t{k}" for k in sorted(reads[i]) if k < i) or ("x",)
        held = (f"w{i}", "w0") if shared and i == len(units) - 1 > 0 else (f"w{i}",)
        operators.append(Operator(2 * i, f"a{i}", "Gemm", taken, held, (f"i{i}",), flops=1000))
        operators.append(Operator(2 * i + 1, f"b{i}", "Gemm", (f"i{i}",), (), (f"t{i}",), flops=1000))
    used = {name for op in operators for name in op.inputs}
    outputs = tuple(f"t{i}" for i in range(len(units)) if f"t{i}" not in used)
    return Graph(
        "branched",
        f"branched-{len(units)}",
        Path("/nowhere"),
        tuple(operators),
        tensors,
        weights,
        ("x",),
        outputs,
        Path("/nowhere/model.onnx"),
    )


def measured(graph: Graph, units: tuple[Made, ...]) -> Profile:
    """The profile of a chain of as many units, with this graph's operators and crossings."""
    chain = profile_of(graph_of(units), units)
    crossing = [
        [n for n, made in graph.producer.items() if made < 2 * k <= graph.last_use[n]] for k in range(1, len(units))
    ]
    return msgspec.structs.replace(
        chain,
        units=tuple(
            msgspec.structs.replace(
                unit, first=2 * i, last=2 * i + 2, weight_bytes=graph.weight_bytes(2 * i, 2 * i + 2)
            )
            for i, unit in enumerate(chain.units)
        ),
        cuts=tuple(
            msgspec.structs.replace(
                cut,
                position=2 * cut.position,
                tensors=tuple(names),
                bytes=sum(graph.tensors[n].bytes_at() for n in names),
            )
            for cut, names in zip(chain.cuts, crossing, strict=True)
        ),
    )


@st.composite
def models(draw: st.DrawFn, unit: st.SearchStrategy[Made] = UNITS, most: int = 4) -> SliceModel:
    units = tuple(draw(st.lists(unit, min_size=2, max_size=most)))
    saved = draw(SAVED)
    units = tuple(replace(u, saving_ms=max(u.saving_ms, min(saved, u.time_ms))) for u in units)
    reads = tuple(draw(st.frozensets(st.integers(0, max(0, i - 1)), max_size=2)) for i in range(len(units)))
    graph = branched(units, reads, draw(st.booleans()))
    profile = measured(graph, units)
    if draw(st.booleans()):
        first = draw(st.integers(0, len(units) - 2))
        part = ShardPart(draw(st.sampled_from([0.5, 20.0])), 60.0, 30.0)
        span = ShardSpan(2 * first, 2 * first + 2, 2, "channels")
        shard = ShardProfile(first, first + 2, span, 2, 1, (part, part), 99.0, 0.1, 0.1)
        profile = msgspec.structs.replace(profile, shards=(shard,))
    batch = draw(st.sampled_from([1, 1, 3]))
    if batch > 1:
        profile = at(profile, graph, batch=batch, threads=2)
    request = Request(batch=batch, vcpu=draw(st.sampled_from([0.5, 1.0, 2.0])))
    lossy = Lossy(int8=frozenset(k for k, unit in enumerate(units) if unit.admitted))
    return SliceModel(graph, profile, platform(draw(WHERE)), request, lossy)


def every_order(needed: tuple[int, ...], done: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """All of them, by trying."""
    if len(done) == len(needed):
        yield done
    mask = sum(1 << unit for unit in done)
    for unit, before in enumerate(needed):
        if unit not in done and not before & ~mask:
            yield from every_order(needed, (*done, unit))


def least(model: SliceModel, order: tuple[int, ...], slo: float, request: Request) -> float:
    other = in_order(model, order)
    assert other is not None
    chosen = Space.of(other, request).cheapest(slo).chosen
    return chosen.cost_usd if chosen else math.inf


def spans(model: SliceModel) -> list[tuple[int, int]]:
    return [(unit.first, unit.last) for unit in model.profile.units]


@settings(max_examples=40, deadline=None)
@given(
    models(),
    SLOS,
    st.integers(1, 4),
    st.sampled_from([None, 1e-3]),
    st.sampled_from([None, 95.0]),
    st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_no_plan_in_any_order_is_cheaper_than_the_bound(
    model: SliceModel, slo: float, stages: int, rate: float | None, percentile: float | None, kept: list[bool]
) -> None:
    """Whatever is left out that shares no weight with others."""
    rate = rate if model.platform.billing.init_billed.known else None
    request = model.request._replace(max_stages=stages, rate_per_s=rate, percentile=percentile)
    needed = needs(model.graph, spans(model))
    core = np.array(kept[: model.units]) | sharing(model)
    core[0] |= not core.any()
    best = min(least(model, order, slo, request) for order in every_order(needed))
    for looked_at in (np.ones(model.units, bool), core):
        found = Relaxed(Space.of(model, request), needed, looked_at).space.cheapest(slo).chosen
        assert (found.cost_usd if found else math.inf) <= best * (1 + 1e-9)


@settings(max_examples=20, deadline=None)
@given(models(CODED, 3), SLOS)
def test_nor_with_any_codec(model: SliceModel, slo: float) -> None:
    needed = needs(model.graph, spans(model))
    best = min(least(model, order, slo, model.request) for order in every_order(needed))
    found = Relaxed(Space.of(model, model.request), needed, np.ones(model.units, bool)).space.cheapest(slo).chosen
    assert (found.cost_usd if found else math.inf) <= best * (1 + 1e-9)


@given(st.lists(st.frozensets(st.integers(0, 4), max_size=2), min_size=1, max_size=5))
def test_ideals_are_what_orders_begin_with(reads: list[frozenset[int]]) -> None:
    units = (Made(),) * len(reads)
    graph = branched(units, tuple(reads))
    needed = needs(graph, [(2 * i, 2 * i + 2) for i in range(len(units))])
    every = list(every_order(needed))
    begins = {sum(1 << unit for unit in order[:k]) for order in every for k in range(len(order) + 1)}
    found = ideals(needed, range(len(units)), 100)
    assert found is not None
    assert set(found) == begins
    assert len(found) == len(begins)
    assert [bin(one).count("1") for one in found] == sorted(bin(one).count("1") for one in found)
    assert ideals(needed, range(len(units)), len(begins) - 1) is None
    assert one_order(needed) == (len(every) == 1)
    for order in every:
        other = reordered(graph, [(2 * i, 2 * i + 2) for i in order])
        assert all(other.producer[name] < op.index for op in other.operators for name in op.inputs)


def test_an_order_that_reads_before_it_makes_is_refused() -> None:
    graph = branched((Made(),) * 2, (frozenset(), frozenset({0})))
    with pytest.raises(ValueError, match="a1 would run before what it reads"):
        reordered(graph, [(2, 4), (0, 2)])
    with pytest.raises(ValueError, match="not all operators once"):
        reordered(graph, [(0, 2)])


def test_a_chain_has_one_order() -> None:
    model = model_of((Made(),) * 3)
    found = orders(Space.of(model, model.request), 1.0)
    assert found is not None
    assert (found.one, found.most_saves) == (True, 0.0)
    assert found.sentence == "one order only: each of the 3 units needs all before it"


def interleaved(units: int) -> SliceModel:
    """Slow light units and quick heavy ones by turns, none of which needs another: two functions would do."""
    light, heavy = Made(1.0, 0.001, 40.0, 0.0), Made(300.0, 0.001, 0.01, 0.0)
    made = (light, heavy) * (units // 2)
    graph = branched(made, (frozenset(),) * len(made))
    return SliceModel(graph, measured(graph, made), platform("openfaas"), Request(max_stages=2))


@pytest.mark.parametrize("units", [4, 8, 16])
def test_where_another_order_is_far_cheaper_the_bound_and_the_order_found_say_so(units: int) -> None:
    model = interleaved(units)
    space = Space.of(model, model.request)
    chosen = space.cheapest().chosen
    assert chosen is not None
    found = orders(space, chosen.cost_usd)
    assert found is not None
    assert not found.one
    assert 0.3 < found.found_saves <= found.most_saves < 1
    assert "one was found that saves" in found.sentence


def test_so_many_orders_that_not_all_units_can_be_looked_at_leave_the_lightest_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = interleaved(6)
    space = Space.of(model, model.request)
    chosen = space.cheapest().chosen
    assert chosen is not None
    whole = orders(space, chosen.cost_usd)
    monkeypatch.setattr(module, "MOST_IDEALS", 16)
    part = orders(space, chosen.cost_usd)
    assert whole is not None
    assert part is not None
    assert (whole.left_out, part.left_out) == (0, 2)
    assert part.most_saves >= whole.most_saves >= whole.found_saves > 0
