"""Lossy codecs by the user's own data: the selection against brute force, whole plans on emulated links, bad data."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.codecs import is_fitted, lossless
from lamella.deploy.local import Channel, Deployment
from lamella.errors import InputRefused, LamellaError, PackageError
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.package import build
from lamella.plan.document import Plan
from lamella.plan.laws import broken_laws
from lamella.plan.make import make_plan
from lamella.plan.request import Request
from lamella.plan.validation.judge import Coded, Judge, Trial, validation
from lamella.plan.validation.lossy import Chosen, Option, select
from lamella.platforms import Platform, platform
from lamella.profile.document import Profile
from lamella.profile.fitting import kept
from lamella.profile.measure import measure
from lamella.units import MB
from tests.unit.plan.pricing.test_coding import link

replace = msgspec.structs.replace

HOPS = st.lists(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 10)), max_size=3, unique_by=lambda o: o[0]), max_size=4
)
"""Of each hop the codecs: what they save, and the harm they do."""


@given(HOPS, st.integers(0, 20), st.booleans())
def test_the_selection_against_brute_force(hops: list[list[tuple[int, int]]], bound: int, add: bool) -> None:
    hops = [sorted(hop, reverse=True) for hop in hops]
    harm = [{f"c{saved}": done for saved, done in hop} for hop in hops]
    gain = [{f"c{saved}": saved for saved, _ in hop} for hop in hops]

    def keeps(chosen: Chosen) -> bool:
        done = [harm[k][c] for k, c in enumerate(chosen) if c]
        return (sum(done) if add else max(done, default=0)) <= bound

    def saved(chosen: Chosen) -> int:
        return sum(gain[k][c] for k, c in enumerate(chosen) if c)

    found = select([[Option(f"c{saved}", saved) for saved, _ in hop] for hop in hops], keeps)
    every = itertools.product(*([None, *named] for named in harm))
    best = max(saved(chosen) for chosen in every if keeps(chosen))
    assert keeps(found)
    assert saved(found) * max(1, len(hops)) >= best
    if not add:  # hops do no harm to each other: the best of each is the best of all
        assert saved(found) == best
    for k, named in enumerate(gain):  # none of them can have a quicker one
        more = [c for c in named if named[c] > (named[now] if (now := found[k]) else 0)]
        tried: list[Chosen] = [(*found[:k], c, *found[k + 1 :]) for c in more]
        assert add or not any(keeps(chosen) for chosen in tried)


@pytest.fixture(scope="module")
def cnn(cache_dir: Path) -> Graph:
    return import_model("zoo:cnn-tiny")


@pytest.fixture(scope="module")
def profile(cnn: Graph) -> Profile:
    return measure(cnn, budget_s=0.2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, x=np.random.default_rng(0).random((12, 3, 32, 32)).astype(np.float32))
    return path


SLOW = link(1)


def planned(
    graph: Graph, profile: Profile, judge: Judge | None, where: Platform = SLOW, name: str = "uniform-4"
) -> Plan:
    return make_plan(graph, profile, where, name, given="zoo:cnn-tiny", request=Request(shards=False, judge=judge))


def judge_of(graph: Graph, data: Path, metric: str = "max_rel", tolerance: float | None = None) -> Judge:
    return Judge(graph, validation(data, graph, 1, metric_name=metric, tolerance=tolerance))


def test_without_the_user_s_data_nothing_lossy_is_chosen_and_with_it_what_keeps_the_bound(
    cnn: Graph, profile: Profile, data: Path
) -> None:
    bare, judge = planned(cnn, profile, None), judge_of(cnn, data)
    assert all(lossless(hop.codec) for hop in bare.hops)
    assert bare.validation is None
    plan = planned(cnn, profile, judge)
    assert broken_laws(plan, cnn, SLOW) == []
    assert plan.lossy
    assert plan.predicted.latency_ms < bare.predicted.latency_ms
    assert plan.validation
    assert plan.validation.kept
    assert (plan.validation.requests, plan.validation.fitted_requests) == (6, 6)
    for hop in plan.hops:
        assert lossless(hop.codec) == (hop.loss is None)
        assert hop.loss is None or hop.loss.measured <= 0.01
        assert hop.loss is None or "of at most 0.01 on 6 requests of" in hop.why
    assert any("breaks the bound of 0.01" in hop.why for hop in plan.hops)
    assert planned(cnn, profile, judge, name="uniform-4-no-lossy").hops == bare.hops


def test_a_bound_that_every_codec_breaks_leaves_the_lossless_plan(cnn: Graph, profile: Profile, data: Path) -> None:
    plan = planned(cnn, profile, judge_of(cnn, data, tolerance=0.0))
    assert [h.codec for h in plan.hops] == [h.codec for h in planned(cnn, profile, None).hops]
    assert plan.validation
    assert plan.validation.measured is None
    assert not any(tried.kept for tried in plan.validation.tried)
    assert "int8 would save" in plan.hops[0].why
    assert "breaks the bound of 0" in plan.hops[0].why


def test_in_shared_memory_nothing_lossy_is_worth_it(cnn: Graph, profile: Profile, data: Path) -> None:
    plan = planned(cnn, profile, judge_of(cnn, data), platform("openfaas"))
    assert [hop.codec for hop in plan.hops] == ["none"] * 3
    assert plan.validation
    assert plan.validation.tried == ()


def served(plan: Plan, package: Path, judge: Judge, channel: Channel) -> list[Mapping[str, np.ndarray]]:
    with Deployment(package, channel=channel) as deployment:
        return [deployment.infer(request).outputs for request in judge.asked.judged]


@pytest.mark.parametrize("channel", ["socket", "shared-memory"])
def test_the_learned_codec_is_planned_packaged_and_served_within_its_bound(
    cnn: Graph, profile: Profile, data: Path, tmp_path: Path, channel: Channel
) -> None:
    judge = judge_of(cnn, data, tolerance=0.1)
    plan = planned(cnn, profile, judge)
    learned = [hop for hop in plan.hops if is_fitted(hop.codec)]
    assert learned
    assert {f.tensor for f in plan.fitted} <= {n for hop in learned for n in hop.tensors}
    assert broken_laws(plan, cnn, SLOW) == []
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan
    build(plan, cnn, tmp_path / "package")
    answers = served(plan, tmp_path / "package", judge, channel)
    worst = max(judge.metric.of(want, got) for want, got in zip(judge.expected, answers, strict=True))
    assert plan.validation
    assert worst == pytest.approx(plan.validation.measured, rel=0.05)  # packaged, operators are fused


def test_parameters_that_are_gone_or_changed_are_a_clear_error(
    cnn: Graph, profile: Profile, data: Path, tmp_path: Path
) -> None:
    plan = planned(cnn, profile, judge_of(cnn, data, tolerance=0.1))
    path = kept(plan.fitted[0].sha256)
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + b"x")
        with pytest.raises(PackageError, match="the file changed"):
            build(plan, cnn, tmp_path / "package")
        path.unlink()
        with pytest.raises(PackageError, match=r"of pca-\d for the tensor .* are not in the cache") as no:
            build(plan, cnn, tmp_path / "package")
        assert "--validate" in no.value.try_
    finally:
        path.write_bytes(whole)
    build(plan, cnn, tmp_path / "package")
    file = next((tmp_path / "package").glob("stage-1/pca-*.npy"))
    file.write_bytes(whole[:-1] + b"x")
    with pytest.raises(PackageError, match=r"pca-\d-.*\.npy changed since it was packaged"):
        Deployment(tmp_path / "package")


def test_a_lossy_plan_that_was_not_judged_or_broke_its_bound_breaks_law_3(
    cnn: Graph, profile: Profile, data: Path
) -> None:
    plan = planned(cnn, profile, judge_of(cnn, data))
    assert plan.validation
    hop = next(h for h in plan.hops if h.loss)
    assert hop.loss

    def said(changed: Plan) -> str:
        return "\n".join(str(e) for e in broken_laws(changed, cnn, SLOW))

    def hops(**more: object) -> Plan:
        return replace(plan, hops=tuple(replace(h, **more) if h is hop else h for h in plan.hops))

    assert "was not judged on the model's output" in said(replace(plan, validation=None))
    assert "was not judged on the model's output" in said(hops(loss=None))
    assert "by another bound" in said(hops(loss=replace(hop.loss, bound=1.0)))
    assert "max_rel 0.5 of at most 0.01" in said(hops(loss=replace(hop.loss, measured=0.5)))
    assert "what the plan loses breaks its bound" in said(
        replace(plan, validation=replace(plan.validation, measured=float("nan")))
    )
    assert "is fitted to no tensor that crosses there" in said(hops(codec="pca-4"))


def test_judging_remembers_and_without_a_codec_every_bit_is_the_model_s(cnn: Graph, data: Path) -> None:
    judge = judge_of(cnn, data, tolerance=0.0)
    assert judge.verdict(Trial()) == (0.0, 6, True)
    plain = Coded(4, "shuffle-zstd", cnn.border(0, 4)[1])
    after = plain._replace(position=8, tensors=cnn.border(4, 8)[1])
    assert judge.verdict(Trial((plain, after))) == (0.0, 6, True)
    lossy = plain._replace(codec="int8")
    value, requests, keeps = judge.verdict(Trial((lossy,)))
    assert (requests, keeps) == (1, False)  # the first that breaks the bound ends it
    assert value > 0
    assert judge.verdict(Trial((lossy,))) is judge.verdict(Trial((lossy,)))


def test_codecs_are_never_judged_on_what_they_were_fitted_on(cnn: Graph, data: Path, tmp_path: Path) -> None:
    asked = validation(data, cnn, 1)
    rows = np.load(data)["x"]
    np.testing.assert_array_equal(np.concatenate([r["x"] for r in asked.judged]), rows[::2])
    np.testing.assert_array_equal(np.concatenate([r["x"] for r in asked.fitted]), rows[1::2])
    np.savez(tmp_path / "other.npz", x=rows[:5] + 1)
    apart = validation(data, cnn, 1, calibrate=tmp_path / "other.npz")
    assert (len(apart.judged), len(apart.fitted)) == (12, 5)
    assert apart.fitted_source == str(tmp_path / "other.npz")
    np.savez(tmp_path / "overlapping.npz", x=np.concatenate([rows[:5], rows[:4] + 1]))
    assert len(validation(data, cnn, 1, calibrate=tmp_path / "overlapping.npz").fitted) == 4


GOOD = np.random.default_rng(0).random((8, 3, 32, 32)).astype(np.float32)
NAN = GOOD.copy()
NAN[3, 0, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("arrays", "calibration", "said"),
    [
        ({"y": GOOD}, None, "lacks 'x'"),
        ({"x": GOOD.astype(np.float64)}, None, "is float64"),
        ({"x": GOOD[:, :, :16]}, None, r"is float32 \[1, 3, 16, 32\]"),
        ({"x": GOOD[:0]}, None, "has 0 rows"),
        ({"x": NAN}, None, r"input 'x' of request 3 holds 1 values that are NaN or infinite"),
        ({"x": GOOD[:7]}, None, "holds 7 request.* at least 8 are needed: every second one to fit"),
        ({"x": GOOD[:3]}, GOOD + 1, "holds 3 request.* at least 4 are needed"),
        ({"x": GOOD}, GOOD[:3] + 1, "other.npz holds 3 request.* at least 4 are needed"),
        ({"x": GOOD}, GOOD[:, :, :16], r"is float32 \[1, 3, 16, 32\]"),
        ({"x": GOOD}, NAN, "other.npz: input 'x' of request 3"),
        ({"x": GOOD}, GOOD, "other.npz holds 0 request.*, beside 8 to fit on that are judged on, too; at least 4"),
        ({"x": GOOD[:1].repeat(9, axis=0)}, None, "holds 9 request.*, 4 of which are to be both fitted and judged on"),
    ],
)
def test_data_that_cannot_be_judged_by_are_refused(
    cnn: Graph, tmp_path: Path, arrays: dict[str, np.ndarray], calibration: np.ndarray | None, said: str
) -> None:
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    other = tmp_path / "other.npz" if calibration is not None else None
    if other is not None and calibration is not None:
        np.savez(other, x=calibration)
    with pytest.raises(InputRefused, match=said):
        validation(tmp_path / "data.npz", cnn, 1, calibrate=other)


def test_a_metric_that_fails_ends_planning_with_its_cause(
    cnn: Graph, profile: Profile, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_metric.py").write_text("def f(want, got):\n    raise ValueError('no labels')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LamellaError, match="broken_metric:f raised ValueError: no labels"):
        planned(cnn, profile, judge_of(cnn, data, "broken_metric:f"))


def test_of_a_planner_that_chooses_codecs_what_is_judged_is_what_it_planned(
    cnn: Graph, profile: Profile, data: Path
) -> None:
    judge = judge_of(cnn, data)
    lossy = 0
    for rate in (1, 5, 20, 60, 400):
        where = link(rate)
        whole = make_plan(cnn, profile, where, "single", given="zoo:cnn-tiny").functions[0].package_mb
        weights_mb = cnn.weight_bytes(0, len(cnn.operators)) / MB
        less = replace(where.limits.package_mb, number=whole - 0.2 * weights_mb)  # no one function holds it
        where = replace(where, limits=replace(where.limits, package_mb=less))
        for request in (Request(judge=judge), Request(judge=judge, budget_usd=1e6, max_stages=3)):
            plan = make_plan(cnn, profile, where, "exact", given="zoo:cnn-tiny", request=request)
            assert plan.stages > 1
            assert broken_laws(plan, cnn, where) == []
            assert [lossless(h.codec) for h in plan.hops] == [h.loss is None for h in plan.hops]
            lossy += plan.lossy
    assert lossy
