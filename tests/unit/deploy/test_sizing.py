from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import helper

from lamella.deploy.local import Deployment, Size
from lamella.deploy.sizing import Allocation, Trial, _Bench, allocate, patience_s
from lamella.errors import FunctionTimeout, InfeasiblePlan
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.limits import Limiter, detect
from lamella.platforms import platform
from tests.faults import packages

OPENFAAS = platform("openfaas")
STAGES = ["stage-1", "stage-2", "stage-3"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Allocations of earlier runs must not answer for this one."""
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path / "cache"))


def is_sold(size_mb: int) -> bool:
    return OPENFAAS.allocation_mb(size_mb, 1.0) == size_mb


@pytest.fixture
def free() -> Limiter:
    """Measures without searching: no trial at a limit can be slowed by what else runs on this machine."""
    return detect(env={"LAMELLA_LIMITS": "none"})


def test_an_allocation_is_a_size_that_is_sold_holds_the_peak_and_runs(
    cnn: Graph, tmp_path: Path, rng: np.random.Generator, enforced: Limiter
) -> None:
    x = request(cnn, rng)
    made = packages.package(cnn, tmp_path / "package")
    found = allocate(made, x, OPENFAAS, enforced, runs=3)["stage-1"]
    assert is_sold(found.memory_mb)
    assert found.memory_mb >= found.peak_mb > 20
    assert found.cold_ms > 0
    assert found.run_ms > 0
    assert (found.memory_mb, "ok") in found.tried
    with Deployment(made, limiter=enforced, sizes={"stage-1": Size(found.memory_mb, 1.0)}) as deployment:
        packages.assert_same(deployment.infer(x).outputs, packages.whole(cnn, x))


def test_the_second_time_the_first_measurement_is_told_again(
    three_slices: Path, cnn: Graph, rng: np.random.Generator, free: Limiter, tmp_path: Path
) -> None:
    x = request(cnn, rng)
    first = allocate(three_slices, x, OPENFAAS, free, runs=1)
    assert list(first) == STAGES
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "sizes").iterdir()}
    assert len(kept) == 3
    assert allocate(three_slices, x, OPENFAAS, free, runs=1) == first  # times and all
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_larger_batch_is_measured_anew(tmp_path: Path, rng: np.random.Generator, free: Limiter) -> None:
    graph = packages.graph_of(
        tmp_path,
        "batches",
        [
            helper.make_node("Neg", ["x"], ["negative"], name="negate"),
            helper.make_node("Abs", ["negative"], ["y"], name="absolute"),
        ],
        {"x": ("float32", ("N", 1024, 256))},
        {"y": ("float32", ("N", 1024, 256))},
    )
    made = packages.package(graph, tmp_path / "package")
    one, many = (allocate(made, request(graph, rng, batch), OPENFAAS, free, runs=1)["stage-1"] for batch in (1, 40))
    assert many.peak_mb > one.peak_mb + 60  # at least what goes in and out, 40 MB each
    assert many.memory_mb > one.memory_mb


def test_between_slices_the_batch_may_lie_on_another_axis(
    tmp_path: Path, rng: np.random.Generator, free: Limiter
) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], name="turn", perm=[1, 0]),
        helper.make_node("Neg", ["turned"], ["negative"], name="negate"),
        helper.make_node("Transpose", ["negative"], ["y"], name="turn back", perm=[1, 0]),
    ]
    border = {"x": ("float32", ("N", 8))}
    graph = packages.graph_of(tmp_path, "turned", nodes, border, {"y": ("float32", ("N", 8))})
    made = packages.package(graph, tmp_path / "package", (1,))
    found = allocate(made, request(graph, rng, 3), OPENFAAS, free, runs=1)
    assert list(found) == ["stage-1", "stage-2"]


def test_what_law_4_demands_counts_where_it_is_more_than_the_peak(
    cnn: Graph, tmp_path: Path, rng: np.random.Generator, free: Limiter
) -> None:
    x = request(cnn, rng)
    small = allocate(packages.package(cnn, tmp_path / "a"), x, OPENFAAS, free, runs=1)["stage-1"]
    large = allocate(packages.package(cnn, tmp_path / "b", floor_mb=300.5), x, OPENFAAS, free, runs=1)["stage-1"]
    assert small.memory_mb < 300
    assert large.memory_mb >= 304
    assert is_sold(large.memory_mb)


def test_a_function_larger_than_what_is_sold_is_infeasible_with_both_numbers(
    cnn: Graph, tmp_path: Path, rng: np.random.Generator, free: Limiter
) -> None:
    made = packages.package(cnn, tmp_path / "package", floor_mb=20000)
    with pytest.raises(InfeasiblePlan, match=r"stage-1 .* MB, the largest size of openfaas is 16384 MB"):
        allocate(made, request(cnn, rng), OPENFAAS, free, runs=1)


class Scripted(_Bench):
    """Trials that take what a machine makes of them at that moment."""

    def __init__(self, *, limited: float, slower: float) -> None:
        """A limit makes runs take `limited` times as long, the machine all of them `slower` times, since the first."""
        self._runs, self.limited, self.slower = 7, limited, slower

    def trial(self, memory_mb: int | None, *, runs: int, cold: bool = True, free: Trial | None = None) -> Trial:
        factor = self.slower * (self.limited if memory_mb else 1)
        return Trial(memory_mb, 200 * factor, 10 * factor, 10 * factor, 70.0, 0)


REFERENCE = Trial(None, 200.0, 10.0, 10.0, 70.0, 0)


@pytest.mark.parametrize(
    ("limited", "slower", "verdict"),
    [(1.0, 1.0, "ok"), (1.0, 1.4, "ok"), (1.2, 1.0, "p50 1.20x of unlimited"), (1.2, 1.4, "p50 1.20x of unlimited")],
)
def test_a_size_is_not_refused_for_what_slows_the_machine(limited: float, slower: float, verdict: str) -> None:
    assert Scripted(limited=limited, slower=slower).judge(96, REFERENCE) == verdict


def test_a_trial_waits_as_long_as_the_platform_and_the_unlimited_run_say() -> None:
    timeout_s = 300.0
    assert patience_s(None, timeout_s) == timeout_s  # the unlimited run itself
    assert patience_s(20_000, timeout_s) == 200  # ten times what it takes: far beyond what the rule allows
    assert patience_s(1, timeout_s) == 30  # a stall of this machine is no verdict
    assert patience_s(200_000, timeout_s) == timeout_s
    assert patience_s(1, 5.0) == 5


def test_a_function_beyond_the_platform_s_timeout_is_refused_by_that_number(
    slow: Graph, tmp_path: Path, free: Limiter
) -> None:
    half = msgspec.structs.replace(OPENFAAS.limits.timeout_s, number=0.5)
    hasty = msgspec.structs.replace(OPENFAAS, limits=msgspec.structs.replace(OPENFAAS.limits, timeout_s=half))
    made = packages.package(slow, tmp_path / "package")
    with pytest.raises(FunctionTimeout, match=r"within 0\.5 s"):
        allocate(made, packages.slow_request(5000), hasty, free, runs=1)


def test_without_limits_the_peak_alone_decides_and_it_is_said(
    three_slices: Path, cnn: Graph, rng: np.random.Generator, free: Limiter
) -> None:
    for allocation in allocate(three_slices, request(cnn, rng), OPENFAAS, free, runs=1).values():
        assert allocation == Allocation(
            memory_mb=OPENFAAS.allocation_mb(allocation.peak_mb, 1.0) or 0,
            peak_mb=allocation.peak_mb,
            cold_ms=allocation.cold_ms,
            run_ms=allocation.run_ms,
            tried=((allocation.memory_mb, "not enforced"),),
        )
