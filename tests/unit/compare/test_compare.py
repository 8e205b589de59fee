"""Comparing plans for real: every figure of the record, by its definition, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from lamella import documents
from lamella.cli.app import run
from lamella.cli.show import show_comparison
from lamella.compare import contenders
from lamella.compare.compare import Settings, compare
from lamella.compare.contenders import expected, output_error
from lamella.compare.field import Field
from lamella.compare.record import Comparison, OutputError, check_answers
from lamella.deploy.local import Deployment
from lamella.errors import (
    ConfigError,
    FunctionTimeout,
    InfeasiblePlan,
    InputRefused,
    InstanceCrashed,
    LamellaError,
    LawBroken,
    OutOfMemory,
    PackageError,
    PlatformLimit,
    StorageError,
)
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.limits import Limiter, detect
from lamella.plan.request import Request
from lamella.plan.validation.judge import Judge, validation
from lamella.platforms import platform
from lamella.profile.document import Profile
from lamella.profile.measure import measure, threads_needed
from tests.faults import packages
from tests.unit.plan.pricing.test_coding import link

PLANNERS = ("ort", "single", "uniform-2", "mopar")
RULES = platform("openfaas")
ALONE = ["compare", "zoo:cnn-tiny", "--platform", "openfaas", "--planners", "single", "--no-shards"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of our own: what a comparison leaves there is seen."""
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAMELLA_CACHE", str(path))
        yield path


@pytest.fixture(scope="module")
def graph(cache: Path) -> Graph:
    return import_model("zoo:cnn-tiny")


@pytest.fixture(scope="module")
def profile(graph: Graph) -> Profile:
    return measure(graph, budget_s=0.2)


@dataclass
class Done:
    """A comparison, and what it was told and left."""

    record: Comparison
    json: dict[str, Any]
    shares: list[float]
    groups: list[str]
    workers: list[str]
    limiter: Limiter
    affinity: set[int]

    def plan(self, planner: str) -> dict[str, Any]:
        found: dict[str, Any] = next(p for p in self.json["plans"] if p["planner"] == planner)
        return found


def workers() -> list[str]:
    """Command lines of our children that are functions."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            try:
                line = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if "lamella.runtime.worker" in line:
                found.append(line)
    return found


@pytest.fixture(scope="module")
def done(graph: Graph, profile: Profile) -> Done:
    shares: list[float] = []
    limiter = detect()
    before = os.sched_getaffinity(0)
    record = compare(
        graph,
        profile,
        RULES,
        Settings(given="zoo:cnn-tiny", planners=PLANNERS, requests=12),
        limiter=limiter,
        progress=lambda share, what: shares.append(share),
    )
    assert os.sched_getaffinity(0) == before
    groups = [name for name in limiter.names() if name.startswith(f"lamella-{os.getpid()}-")]
    encoded = json.loads(msgspec.json.encode(record))
    return Done(record, encoded, shares, groups, workers(), limiter, before)


def test_the_record_holds_every_field_that_was_promised(done: Done) -> None:
    record = done.json
    assert {"model", "platform", "machine", "plans"} <= set(record)
    assert record["model"] == "zoo:cnn-tiny"
    assert record["platform"] == "openfaas"
    assert {"cpu", "cores", "memory_mb", "onnxruntime"} <= set(record["machine"])
    assert [p["planner"] for p in record["plans"]] == list(PLANNERS)
    assert record["failed"] == {}
    for plan in record["plans"]:
        assert {
            "planner",
            "stages",
            "functions",
            "latency_ms",
            "cost_usd_per_million",
            "vcpu_s",
            "memory_time_mb_s",
            "efficiency",
            "peak_memory_mb",
            "major_faults",
            "output_error",
            "limits",
            "predicted",
            "rounds_rejected",
            "rounds_noisy_kept",
        } <= set(plan)
        assert {"p50", "p95", "cold"} <= set(plan["latency_ms"])
        assert {"billed", "resident", "used"} <= set(plan["memory_time_mb_s"])
        assert set(plan["efficiency"]) == {"billed", "resident"}
        assert set(plan["output_error"]) == {"max_abs", "max_rel", "within_tolerance", "judged"}
        assert {"latency_ms", "memory_mb", "cost_usd_per_million"} <= set(plan["predicted"])
        assert len(plan["functions"]) == plan["stages"]
        for function in plan["functions"]:
            assert {"name", "memory_mb", "cpu"} <= set(function)
    assert [p["stages"] for p in record["plans"]][:3] == [1, 1, 2]


def test_answers_agree_with_the_whole_model_unoptimised(done: Done) -> None:
    for plan in done.json["plans"]:
        assert 0 <= plan["output_error"]["max_abs"] < 1e-5
        assert 0 <= plan["output_error"]["max_rel"] < 1e-4
        assert plan["output_error"]["within_tolerance"]


def test_cost_is_allocation_times_mean_time_times_price(done: Done) -> None:
    price = RULES.billing.usd_per_gb_s.value
    for plan in done.json["plans"]:
        billed_gb_s = plan["memory_time_mb_s"]["billed"] / 1024
        assert plan["cost_usd_per_million"] == pytest.approx(billed_gb_s * price * 1e6, rel=1e-6)
        assert plan["cost_low"] <= plan["cost_high"]


def test_turns_are_the_rounds_and_their_mean_is_the_cost(done: Done) -> None:
    for plan in done.json["plans"]:
        costs = [turn["cost_usd_per_million"] for turn in plan["turns"]]
        assert len(costs) == plan["rounds"] == 3
        assert np.mean(costs) == pytest.approx(plan["cost_usd_per_million"])
        assert all(turn["latency_ms"] > 0 for turn in plan["turns"])


def test_allocations_are_sizes_sold_that_hold_the_peak(done: Done) -> None:
    for plan in done.json["plans"]:
        for function in plan["functions"]:
            assert RULES.allocation_mb(function["memory_mb"], 1.0) == function["memory_mb"]
            assert function["memory_mb"] >= function["peak_mb"] - 0.5
            assert function["cpu"] == 1.0
        assert 30 < plan["peak_memory_mb"] < 200 * plan["stages"]


def test_memory_time_and_efficiency_agree(done: Done) -> None:
    for plan in done.json["plans"]:
        held, ratio = plan["memory_time_mb_s"], plan["efficiency"]
        assert 0 < held["used_without_floor"] < held["used"] < held["billed"] <= held["resident"]
        assert ratio["billed"] == pytest.approx(held["used"] / held["billed"])
        assert ratio["resident"] == pytest.approx(held["used"] / held["resident"])
        assert 0 < ratio["resident"] <= ratio["billed"] < 1


def test_latencies_are_in_order(done: Done) -> None:
    for plan in done.json["plans"]:
        latency = plan["latency_ms"]
        assert 0 < latency["p50"] <= latency["p95"] < latency["cold"]
        assert latency["p50_low"] <= latency["p50_high"]
        assert latency["p50"] >= sum(f["run_ms"] for f in plan["functions"]) * 0.5
        assert all(part >= 0 for part in plan["cold_split_ms"].values())
        assert sum(plan["cold_split_ms"].values()) <= latency["cold"]
        assert 0 < plan["vcpu_s"] < 1


def test_rounds_are_counted_and_limits_named(done: Done) -> None:
    for plan in done.json["plans"]:
        assert plan["rounds"] == 3
        assert plan["rounds_rejected"] >= 0
        assert 0 <= plan["rounds_noisy_kept"] <= plan["rounds"]
        assert plan["major_faults"] >= 0
        assert plan["limits"] == ("enforced" if done.limiter.enforced else "unlimited")
        assert plan["emulated"] == ""
    assert (done.json["limits_reason"] == "") == done.limiter.enforced


def test_nothing_is_left_behind(done: Done, cache: Path) -> None:
    assert done.groups == []
    assert done.workers == []
    assert list((cache / "work").iterdir()) == []
    assert not [p for p in cache.rglob(".*") if p.is_dir()]


def test_progress_goes_from_nought_to_one(done: Done) -> None:
    assert done.shares == sorted(done.shares)
    assert done.shares[0] == 0
    assert done.shares[-1] == 1


def test_a_planner_without_a_plan_is_listed_with_its_reason(
    graph: Graph, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = compare(
        graph, profile, RULES, Settings(given="zoo:cnn-tiny", planners=("uniform-40", "single", "single"), requests=1)
    )
    assert [p.planner for p in record.plans] == ["single"]
    assert list(record.failed) == ["uniform-40"]
    assert "cnn-tiny divides into 5" in record.failed["uniform-40"]


def test_no_plan_at_all_is_infeasible(graph: Graph, profile: Profile, cache: Path) -> None:
    with pytest.raises(InfeasiblePlan):
        compare(
            graph,
            profile,
            RULES,
            Settings(given="zoo:cnn-tiny", planners=("single", "mopar"), requests=1, request=Request(0.001)),
        )
    assert list((cache / "work").glob("*")) == []


def spoil(package: Path) -> None:
    """A package whose weights are others than its manifest says."""
    for weights in package.rglob("weights.bin"):
        weights.unlink()  # it may be shared with another package by a link
        weights.write_bytes(b"other bytes")


def occupy(package: Path) -> None:
    """Something that is no package, where the package should go."""
    package.mkdir()
    (package / "thesis.tex").touch()


def drop(package: Path) -> None:
    """Functions that end in the middle of a comparison, and cannot be started again."""
    spoil(package)
    children = [p for task in Path("/proc/self/task").iterdir() for p in (task / "children").read_text().split()]
    for pid in children:
        if f"{package}/" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(int(pid), signal.SIGKILL)


@pytest.mark.parametrize(
    ("when", "harm", "said"),
    [
        ("packaging uniform-2", occupy, "uniform-2"),
        ("allocating uniform-2", spoil, "weights.bin"),
        ("cold start of uniform-2", spoil, "weights.bin"),
        ("checking answers of uniform-2", drop, "stage-"),
        ("interleaved rounds", drop, "stage-"),
    ],
)
def test_a_plan_that_fails_on_the_way_is_listed_with_its_reason_and_the_others_go_on(
    graph: Graph, profile: Profile, cache: Path, when: str, harm: Callable[[Path], None], said: str
) -> None:
    left = [harm]

    def disturb(share: float, what: str) -> None:
        if what == when and left:
            left.pop()(next((cache / "work").glob("compare-*")) / "uniform-2")

    settings = Settings(given="zoo:cnn-tiny", planners=("uniform-2", "single"), requests=2)
    record = compare(graph, profile, RULES, settings, progress=disturb)
    assert not left
    assert [p.planner for p in record.plans] == ["single"]
    assert list(record.failed) == ["uniform-2"]
    assert said in record.failed["uniform-2"]
    assert workers() == []


def test_when_the_last_plan_fails_its_failure_is_raised(graph: Graph, profile: Profile, cache: Path) -> None:
    def disturb(share: float, what: str) -> None:
        if what.startswith("packaging"):
            occupy(next((cache / "work").glob("compare-*")) / what.split()[-1])

    settings = Settings(given="zoo:cnn-tiny", planners=("uniform-2", "single"), requests=2)
    with pytest.raises(PackageError, match="single"):
        compare(graph, profile, RULES, settings, progress=disturb)


def test_a_request_the_model_itself_refuses_is_no_plan_s_failure(cache: Path, tmp_path: Path) -> None:
    bert = import_model("zoo:bert-tiny")
    feed = request(bert, np.random.default_rng(0))
    name = next(n for n in bert.inputs if bert.tensors[n].dtype.startswith("int"))
    feed[name][:] = 10**6
    with pytest.raises(InputRefused, match="the model refuses a request: "):
        expected(bert, tmp_path, [feed])


@pytest.mark.parametrize("error", [OutOfMemory, InstanceCrashed, FunctionTimeout, InfeasiblePlan, PlatformLimit])
def test_a_lost_instance_a_timeout_or_a_limit_puts_one_plan_out(error: type[LamellaError]) -> None:
    def do(name: str) -> int:
        if name == "b":
            raise error("it failed")
        return len(name)

    field = Field()
    assert field.each(["a", "b", "c"], do, lambda share, name: None) == {"a": 1, "c": 1}
    assert field.failed == {"b": "it failed"}
    with pytest.raises(error, match="it failed"):
        field.each(["b"], do, lambda share, name: None)


@pytest.mark.parametrize("error", [ConfigError, StorageError, LawBroken])
def test_what_concerns_all_plans_ends_the_comparison(error: type[LamellaError]) -> None:
    def do(name: str) -> int:
        raise error("for all")

    with pytest.raises(error, match="for all"):
        Field().each(["a", "b"], do, lambda share, name: None)


def test_an_unknown_planner_is_a_config_error(graph: Graph, profile: Profile) -> None:
    with pytest.raises(ConfigError, match="no planner 'mopra'"):
        compare(graph, profile, RULES, Settings(given="zoo:cnn-tiny", planners=("single", "mopra"), requests=1))


def test_an_error_in_a_comparison_leaves_nothing_behind(graph: Graph, profile: Profile, cache: Path) -> None:
    def interrupt(share: float, what: str) -> None:
        if what.startswith("cold start of uniform-2"):
            raise KeyboardInterrupt

    limiter = detect()
    with pytest.raises(KeyboardInterrupt):
        compare(
            graph,
            profile,
            RULES,
            Settings(given="zoo:cnn-tiny", planners=("single", "uniform-2"), requests=1),
            progress=interrupt,
        )
    assert [name for name in limiter.names() if name.startswith(f"lamella-{os.getpid()}-")] == []
    assert workers() == []
    assert list((cache / "work").iterdir()) == []


def test_the_command_prints_the_record_for_the_user_s_own_requests(
    graph: Graph, profile: Profile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = np.concatenate([request(graph, np.random.default_rng(k))["x"] for k in range(3)])
    np.savez(tmp_path / "requests.npz", x=rows)
    argv = [*ALONE, "--requests", "2"]
    argv += ["--inputs", str(tmp_path / "requests.npz")]
    assert run([*argv, "--json", "-o", str(tmp_path / "record.json")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "record.json").read_text())
    assert [p["planner"] for p in printed["plans"]] == ["single"]
    assert run(argv) == 0
    assert "cnn-tiny on openfaas" in capsys.readouterr().out


@pytest.mark.slow  # at 0.07 vCPU a start takes seconds
def test_on_rules_where_memory_buys_cpu_hops_are_emulated_and_every_function_is_charged(
    graph: Graph, cache: Path
) -> None:
    rules = platform("aws-lambda")
    profile = measure(graph, threads=threads_needed(rules.cpu.coupling, 1.0), budget_s=0.1)
    settings = Settings(given="zoo:cnn-tiny", planners=("single", "uniform-2"), requests=2)
    record = compare(graph, profile, rules, settings)
    assert record.failed == {}
    single, two = record.plans
    assert (single.emulated, two.stages) == ("", 2)
    assert two.emulated.startswith("1 hops, ")
    assert two.latency_ms.p50 > sum(f.run_ms for f in two.functions) * 0.5 + rules.hop.latency_ms.value
    for plan in record.plans:
        assert plan.output_error.within_tolerance
        fees = plan.stages * rules.billing.usd_per_request.value
        gb_s = plan.memory_time_mb_s.billed / 1024
        assert plan.cost_usd_per_million == pytest.approx((gb_s * rules.billing.usd_per_gb_s.value + fees) * 1e6)
        for function in plan.functions:
            assert rules.allocation_mb(function.memory_mb, 1.0) == function.memory_mb >= function.planned_mb
            assert function.cpu == pytest.approx(rules.vcpu(function.planned_mb, 1.0))


def test_a_request_larger_than_the_payload_is_refused_with_the_numbers(graph: Graph, profile: Profile) -> None:
    settings = Settings(given="zoo:cnn-tiny", planners=("single",), request=Request(batch=1000))
    with pytest.raises(PlatformLimit, match=r"a request of 11\.7 MB is 15\.6 MB on the wire"):
        compare(graph, profile, platform("aws-lambda"), settings)


@pytest.mark.parametrize(("off", "kept"), [(0.0, True), (9e-5, True), (2e-4, False), (float("nan"), False)])
def test_answers_further_off_than_law_3_allows_are_marked(graph: Graph, tmp_path: Path, off: float, kept: bool) -> None:
    feed = request(graph, np.random.default_rng(0))
    package = packages.package(graph, tmp_path / "package")
    with Deployment(package, freezable=True) as deployment:
        (answer,) = deployment.infer(feed).outputs.values()
        other = answer.copy()
        other.flat[int(answer.argmin())] += off * float(np.ptp(answer))
        found = output_error(deployment, [feed, feed], [{"probabilities": answer}, {"probabilities": other}])
    assert found.within_tolerance == kept
    assert msgspec.json.decode(msgspec.json.encode(found), type=OutputError) == found


def test_a_lossy_plan_is_judged_by_its_metric_on_the_user_s_requests(
    graph: Graph, profile: Profile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).random((8, 3, 32, 32)).astype(np.float32))
    judge = Judge(graph, validation(tmp_path / "data.npz", graph, 1, tolerance=0.1))
    settings = Settings(
        given="zoo:cnn-tiny",
        planners=("uniform-3", "uniform-3-no-lossy"),
        requests=1,
        request=Request(shards=False, judge=judge),
    )
    record = compare(graph, profile, link(1), settings)
    lossy, bare = record.plans
    assert lossy.output_error.judged is not None
    assert 1e-4 < lossy.output_error.judged.measured <= lossy.output_error.judged.bound == 0.1
    assert lossy.output_error.within_tolerance
    assert bare.output_error.judged is None
    assert bare.output_error.max_rel < 1e-4
    assert lossy.latency_ms.p50 < bare.latency_ms.p50  # the link is emulated, by the bytes that travel
    assert msgspec.json.decode(msgspec.json.encode(record), type=Comparison) == record
    show_comparison(record)
    assert f"max_rel {lossy.output_error.judged.measured:.2g}" in " ".join(capsys.readouterr().out.split())
    worse = msgspec.structs.replace(lossy.output_error, within_tolerance=False)
    broken = msgspec.structs.replace(record, plans=(msgspec.structs.replace(lossy, output_error=worse),))
    with pytest.raises(LawBroken, match=r"law 3: the answers of uniform-3 have a max_rel of .* the bound is 0.1"):
        check_answers(broken)


def test_a_broken_law_3_ends_the_command_with_code_4_after_table_and_file(
    graph: Graph, profile: Profile, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contenders, "OUTPUT_TOLERANCE", -1.0)  # no answer is good enough
    path = tmp_path / "deep" / "record.json"
    argv = [*ALONE, "--requests", "1"]
    assert run([*argv, "-o", str(path)]) == 4
    out, err = capsys.readouterr()
    assert "BROKEN" in out
    assert "law 3: the answers of single differ by" in err
    assert not documents.read(path, Comparison, made_by="a test").plans[0].output_error.within_tolerance
    assert [p.name for p in path.parent.iterdir()] == ["record.json"]


def test_the_file_is_whole_before_anything_is_printed(
    graph: Graph, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    path.write_text("an older record")

    def full(record: Comparison) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("lamella.cli.compare.show_comparison", full)
    argv = [*ALONE, "--requests", "1"]
    assert run([*argv, "-o", str(path)]) == 1
    assert [p.planner for p in documents.read(path, Comparison, made_by="a test").plans] == ["single"]


@pytest.mark.slow  # a profile of two batches, and a comparison
def test_the_command_compares_at_the_batch_it_was_told(
    cache: Path, graph: Graph, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "requests.npz", **request(graph, np.random.default_rng(0), 6))  # type: ignore[arg-type]
    argv = [*ALONE, "--requests", "2"]
    argv += ["--inputs", str(tmp_path / "requests.npz")]
    assert run([*argv, "--batch", "4"]) == 2
    assert "input 'x' has 6 rows, a request of batch 4 takes 4" in capsys.readouterr().err
    measure(graph, batches=(1, 3), budget_s=0.1)
    assert run([*argv, "--batch", "3", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["batch"] == 3
    assert record["plans"][0]["output_error"]["max_rel"] < 1e-4


def test_random_values_are_refused_for_an_integer_input_of_unknown_range(cache: Path, profile: Profile) -> None:
    # A zoo model's ranges are known; the same file given by its path says nothing of them.
    built = import_model("zoo:bert-tiny")
    shapes = {name: built.tensors[name].shape for name in built.inputs}
    stranger = import_model(str(built.source), shapes)
    integer = next(n for n in stranger.inputs if stranger.tensors[n].dtype.startswith("int"))
    with pytest.raises(ConfigError, match=f"which values may the integer input '{integer}' take") as caught:
        compare(stranger, profile, RULES, Settings(given="bert.onnx", planners=("single",), requests=1))
    assert caught.value.try_ == f"--range {integer}=0:1000, or --inputs data.npz"
