"""Products on 8-bit integers by the user's own data: planned, judged, packaged and served; refused where too much.

The profile is measured; only how much quicker integers are is made up, since a test must not depend on the machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import NodeProto

from lamella.deploy.local import Deployment
from lamella.errors import LawBroken
from lamella.package import build
from lamella.plan.document import Plan
from lamella.plan.laws import broken_laws
from lamella.plan.make import make_plan
from lamella.plan.request import Request
from lamella.plan.validation.judge import Judge, Trial, Verdict, validation
from lamella.plan.validation.precision import within, worst
from lamella.platforms import platform
from lamella.profile.document import Profile, Timing, Variant
from lamella.profile.measure import measure
from tests.unit.graph.onnx_models import Shape, filled, graph_of, model, node

replace = msgspec.structs.replace
WHERE = platform("openfaas")
WIDTH = 256
QUICKER = 0.4
Parts = tuple[list[NodeProto], Mapping[str, Shape], Mapping[str, Shape], Mapping[str, np.ndarray]]
"""Of a model: operators, inputs, outputs, weights."""


def mlp() -> Parts:
    """Three products."""
    nodes = [
        node("MatMul", ["x", "w0"], ["a"]),
        node("Relu", ["a"], ["b"]),
        node("MatMul", ["b", "w1"], ["c"]),
        node("Tanh", ["c"], ["d"]),
        node("MatMul", ["d", "w2"], ["y"]),
    ]
    weights = {f"w{k}": filled(WIDTH, WIDTH, seed=k) / WIDTH**0.5 for k in range(3)}
    return nodes, {"x": (2, WIDTH)}, {"y": None}, weights


def lstm() -> Parts:
    """A convolution, which stays as it is, and an LSTM behind it."""
    nodes = [
        node("Conv", ["x", "k"], ["a"], kernel_shape=[3], pads=[1, 1]),
        node("Transpose", ["a"], ["b"], perm=[2, 0, 1]),
        node("LSTM", ["b", "w", "r"], ["y"], hidden_size=64),
    ]
    weights = {"k": filled(64, 64, 3) / 14, "w": filled(1, 256, 64, seed=1) / 8, "r": filled(1, 256, 64, seed=2) / 8}
    return nodes, {"x": (1, 64, 12)}, {"y": None}, weights


class Given:
    """A model with its requests and its profile."""

    def __init__(self, made: Parts, space: Path) -> None:
        self.graph = graph_of(model(*made), space)
        shape = self.graph.tensors["x"].shape_at(1)
        self.data = space / "data.npz"
        rng = np.random.default_rng(0)
        np.savez(self.data, x=rng.standard_normal((12 * shape[0], *shape[1:])).astype(np.float32))
        self.plain = measure(self.graph, budget_s=0.1)
        self.measured = measure(self.graph, budget_s=0.1, precisions=("int8",))
        self.profile = quicker(self.measured)

    def judge(self, tolerance: float, metric: str = "max_rel") -> Judge:
        return Judge(self.graph, validation(self.data, self.graph, 1, metric_name=metric, tolerance=tolerance))

    def planned(self, judge: Judge | None, name: str = "exact", **asked: object) -> Plan:
        request = Request(shards=False, judge=judge)._replace(**asked)  # type: ignore[arg-type]
        return make_plan(self.graph, self.profile, WHERE, name, given="model.onnx", request=request)


def quicker(profile: Profile) -> Profile:
    """The same where every layout takes what plain does, integers a made-up share of it, and cuts save nothing."""

    def timed(times: tuple[Timing, ...]) -> tuple[Timing, ...]:
        plain = {(t.variant.batch, t.variant.threads): t.median_ms for t in times if t.variant.layout == "plain"}
        found = []
        for t in times:
            share = QUICKER if t.variant.layout == "int8" and not t.shared else 1.0
            ms = plain[t.variant.batch, t.variant.threads] * share
            found.append(replace(t, median_ms=ms, p95_ms=ms))
        return tuple(found)

    units = tuple(replace(u, times=timed(u.times)) for u in profile.units)
    cuts = tuple(replace(c, savings=tuple(replace(s, ms=0.0) for s in c.savings)) for c in profile.cuts)
    return replace(profile, units=units, cuts=cuts)


@pytest.fixture(scope="module", params=[mlp, lstm])
def case(request: pytest.FixtureRequest, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Given:
    return Given(request.param(), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def products(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Given:
    return Given(mlp(), tmp_path_factory.mktemp("products"))


def test_it_is_measured_only_where_it_is_asked_for(case: Given) -> None:
    assert not any(u.int8 for u in case.plain.units)
    assert all(v.layout != "int8" for v in case.plain.variants)
    assert any(u.int8 for u in case.measured.units)
    for unit in case.measured.units:
        held = {m.layout: m for m in unit.memory}
        assert ("int8" in held) == bool(unit.int8)
        if unit.int8:
            assert held["int8"].weight_bytes
            assert held["int8"].weight_bytes < 0.6 * unit.weight_bytes
        assert all(t.shared == (not unit.int8) for t in unit.times if t.variant.layout == "int8")
        plain = next(t for t in unit.times if t.variant == Variant(1, "plain", 1))
        integers = next(t for t in unit.times if t.variant == Variant(1, "int8", 1))
        assert unit.int8 or integers.median_ms == pytest.approx(plain.median_ms)  # measured later, in plain's terms
    again = measure(case.graph, budget_s=0.1)
    assert again.variants == case.plain.variants


def test_without_requests_nothing_is_on_integers_and_with_them_it_is_cheaper(case: Given, tmp_path: Path) -> None:
    bare = case.planned(None)
    assert all(f.layout != "int8" and not f.int8 for f in bare.functions)
    judge = case.judge(0.1)
    plan = case.planned(judge)
    assert broken_laws(plan, case.graph, WHERE) == []
    assert plan.predicted.cost_usd_per_million < bare.predicted.cost_usd_per_million
    assert plan.lossy
    assert plan.validation
    assert plan.validation.kept
    assert plan.validation.measured
    assert {n for f in plan.functions for n in f.int8} == set(plan.validation.int8)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan
    build(plan, case.graph, tmp_path / "package")
    answers = served(tmp_path / "package", judge)
    found = max(judge.metric.of(want, got) for want, got in zip(judge.expected, answers, strict=True))
    assert found == pytest.approx(plan.validation.measured, rel=0.2)  # packaged, operators are fused
    build(bare, case.graph, tmp_path / "bare")
    size, plain = (sum(p.stat().st_size for p in (tmp_path / n).rglob("*.bin")) for n in ("package", "bare"))
    assert size < 0.8 * plain


def served(package: Path, judge: Judge) -> list[Mapping[str, np.ndarray]]:
    with Deployment(package) as deployment:
        return [deployment.infer(request).outputs for request in judge.asked.judged]


def test_a_bound_that_integers_break_leaves_the_plan_as_it_is(case: Given) -> None:
    bare, plan = case.planned(None), case.planned(case.judge(1e-6))
    assert [f.layout for f in plan.functions] == [f.layout for f in bare.functions]
    assert not plan.lossy
    assert plan.validation
    assert plan.validation.measured is None


def test_between_the_bounds_some_units_keep_their_precision(products: Given) -> None:
    """A slice on integers may hold units that are not: the bound lies between what one costs and what all do."""
    graph, units = products.graph, [u for u in products.profile.units if u.int8]
    asked = products.judge(1.0)
    fitted = Judge(graph, dataclasses.replace(asked.asked, judged=asked.asked.fitted))
    spans = tuple((u.first, u.last) for u in units)
    together = max(asked.verdict(Trial((), spans)).value, fitted.verdict(Trial((), spans)).value)
    alone = sorted(max(j.verdict(Trial((), (s,))).value for j in (asked, fitted)) for s in spans)
    assert alone[0] < together
    judge = products.judge((alone[0] + together) / 2)
    plan = products.planned(judge, name="single")
    (function,) = plan.functions
    assert function.layout == "int8"
    assert 0 < len(function.int8) < len(units)
    assert broken_laws(plan, graph, WHERE) == []
    assert plan.validation
    assert plan.validation.kept


def test_a_plan_that_names_others_than_were_judged_breaks_law_3(products: Given, tmp_path: Path) -> None:
    plan = products.planned(products.judge(0.1), name="single")
    (function,) = plan.functions

    def said(changed: Plan) -> str:
        return "\n".join(str(e) for e in broken_laws(changed, products.graph, WHERE))

    assert "law 3: 3 products run on 8-bit integers, 0 were judged" in said(replace(plan, validation=None))
    fewer = replace(plan, functions=(replace(function, int8=function.int8[1:]),))
    assert "law 3: 2 products run on 8-bit integers, 3 were judged" in said(fewer)
    plain = replace(plan, functions=(replace(function, layout="plain"),))
    assert "has weights plain and names 3 products" in said(plain)
    odd = replace(plan, functions=(replace(function, int8=("b",)),))
    with pytest.raises(LawBroken, match="holds no such product"):
        build(odd, products.graph, tmp_path / "package")


def test_equal_plans_make_equal_packages(products: Given, tmp_path: Path) -> None:
    plan = products.planned(products.judge(0.1))
    a, b = (build(plan, products.graph, tmp_path / name) for name in ("a", "b"))
    assert a.sha256 == b.sha256


class Added:
    """What units do to the output, each by itself; their sum is held to a bound."""

    def __init__(self, harms: list[int], bound: int) -> None:
        self.harms, self.bound = harms, bound
        self.judged: list[frozenset[int]] = []

    def __call__(self, units: Iterable[int]) -> Verdict:
        self.judged.append(frozenset(units))
        found = self.of(units)
        return Verdict(found, 1, found <= self.bound)

    def of(self, units: Iterable[int]) -> int:
        return sum(self.harms[unit] for unit in units)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=40), st.integers(0, 400), st.integers(1, 120))
def test_what_is_admitted_keeps_the_bound_and_no_other_unit_would_beside_it(
    harms: list[int], bound: int, most: int
) -> None:
    added = Added(harms, bound)
    found = within(range(len(harms)), added, more_is_better=False, most=most)
    assert len(set(found)) == len(found)
    assert added.of(found) <= bound
    assert len(added.judged) == len(set(added.judged)) <= most
    if len(added.judged) < most:
        others = set(range(len(harms))) - set(found)
        assert all(added.of(found) + harms[unit] > bound for unit in others)


@pytest.mark.parametrize("spoils", [0, 17, 63])
def test_one_unit_that_spoils_it_is_found_with_few_judgements(spoils: int) -> None:
    harms = [1] * 64
    harms[spoils] = 1000
    added = Added(harms, 63)
    found = within(range(64), added, more_is_better=False)
    assert set(found) == set(range(64)) - {spoils}
    assert len(added.judged) == 1 + 2 * 6


def test_of_two_halves_the_one_that_does_less_goes_in_first() -> None:
    assert within(range(4), Added([3, 3, 2, 2], 5), more_is_better=False) == (2, 3)
    harms, similar = Added([3, 3, 2, 2], 5), 10.0

    def likeness(units: Iterable[int]) -> Verdict:
        return harms(units)._replace(value=similar - harms.of(units))

    assert within(range(4), likeness, more_is_better=True) == (2, 3)


def test_the_worst_quarter_is_dropped_and_at_least_one() -> None:
    assert worst({3, 5}, [5, 1, 3]) == {3}
    assert worst(range(8), range(8)) == {6, 7}
