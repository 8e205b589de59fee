"""Deploy every plan for real, let them take turns, and measure by the definitions in docs/architecture.md."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np

from lamella.compare.record import (
    ColdSplit,
    Comparison,
    Efficiency,
    FunctionRecord,
    Latency,
    MemoryTime,
    OutputError,
    PlanRecord,
)
from lamella.compare.rounds import Rounds, Sample, interval, run_rounds
from lamella.deploy.local import Deployment, Size
from lamella.deploy.sizing import Allocation, allocate
from lamella.errors import ConfigError, InfeasiblePlan, InputRefused, OutOfMemory, PlatformLimit
from lamella.graph.extract import Extractor
from lamella.graph.model import Graph
from lamella.graph.requests import read_arrays, request, unknown_ranges
from lamella.limits import Limiter, detect
from lamella.limits.memory import major_faults, peak_rss_mb
from lamella.limits.pagecache import evict
from lamella.machine import on_cores
from lamella.package import build
from lamella.plan.document import Plan
from lamella.plan.make import make_plan
from lamella.platforms import Platform
from lamella.profile.document import Profile
from lamella.runtime.function import open_session
from lamella.runtime.instance import ColdStart
from lamella.scratch import scratch
from lamella.units import MB

Progress = Callable[[float, str], None]
DEFAULT_PLANNERS = ("ort", "ort-default", "single", "uniform-4", "mopar")
GROWTHS = 5
"""How often a function may get the next size because a start was killed."""
CHECKED = 3
"""How many requests are answered by the unoptimised whole model too."""


def compare(
    graph: Graph,
    profile: Profile,
    platform: Platform,
    planners: Sequence[str] = DEFAULT_PLANNERS,
    *,
    given: str,
    slo_ms: float | None = None,
    max_stages: int = 8,
    vcpu: float = 1.0,
    batch: int = 1,
    requests: int = 40,
    inputs: Sequence[Mapping[str, np.ndarray]] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    limiter: Limiter | None = None,
    progress: Progress = lambda share, what: None,
) -> Comparison:
    """What each planner's plan really costs here.

    Args:
        graph: the model.
        profile: of it, on this machine.
        platform: whose sizes, prices and CPU rule apply.
        planners: names; those that find no plan are listed with the reason.
        given: what the user called the model.
        slo_ms: passed to the planners.
        max_stages: passed to the planners.
        vcpu: per function where the platform lets one choose.
        batch: rows per request.
        requests: per plan, in rounds of four.
        inputs: the user's own requests, used in turn; random ones by default.
        ranges: value ranges of integer inputs.
        limiter: how limits are enforced.
        progress: told how far it is.

    Raises:
        ConfigError: random values are asked for an integer input of unknown range.
    """
    unknown = [] if inputs else unknown_ranges(graph, ranges)
    if unknown:
        raise ConfigError(
            f"which values may the integer input {unknown[0]!r} take? random ones could be out of range",
            try_=f"--range {unknown[0]}=0:1000, or --inputs data.npz",
        )
    limiter = limiter or detect()
    rng = np.random.default_rng(1)
    turn = iter(range(1 << 62))

    def draw() -> dict[str, np.ndarray]:
        if inputs:
            return dict(inputs[next(turn) % len(inputs)])
        return request(graph, rng, batch, ranges)

    plans, failed = _plans(graph, profile, platform, planners, given, slo_ms, max_stages, batch, vcpu, ranges, progress)
    per_round = 4 if requests >= 12 else 1
    everywhere = frozenset(os.sched_getaffinity(0))
    cores = max((f.threads for p in plans.values() for f in p.functions), default=1)
    with scratch("compare") as space, on_cores(cores) as cpus, ExitStack() as stack:
        packages = {}
        for k, (name, plan) in enumerate(plans.items()):
            progress(0.1 + 0.2 * k / len(plans), f"packaging {name}")
            packages[name] = space / name
            build(plan, graph, packages[name])
        allocations = {}
        for k, name in enumerate(plans):
            progress(0.3 + 0.3 * k / len(plans), f"allocating {name} by the rule")
            allocations[name] = allocate(packages[name], draw(), platform, limiter)
        deployments = {}
        colds = {}
        for k, (name, plan) in enumerate(plans.items()):
            progress(0.6 + 0.05 * k / len(plans), f"cold start of {name}")
            given_sizes = {f.name: Size(allocations[name][f.name].memory_mb, f.vcpu) for f in plan.functions}
            deployments[name] = stack.enter_context(
                Deployment(
                    packages[name],
                    limiter=limiter,
                    sizes=given_sizes if limiter.enforced else {f: Size(None, s.vcpu) for f, s in given_sizes.items()},
                    period_ms=int(platform.cpu.period_ms.value),
                    timeout_s=platform.limits.timeout_s.value,
                    cpus=everywhere if plan.functions[0].kind == "default" else cpus,
                    freezable=True,
                )
            )
            colds[name], allocations[name] = _settle(
                deployments[name], packages[name], allocations[name], platform, draw()
            )
        progress(0.67, "checking answers")
        reference = Extractor(graph).write(0, len(graph.operators), space / "reference")
        errors = _errors(graph, reference, deployments, [draw() for _ in range(CHECKED)])
        faults = {n: _faults(d) for n, d in deployments.items()}
        result = run_rounds(
            deployments,
            draw,
            rounds=max(1, requests // per_round),
            per_round=per_round,
            tick=lambda share: progress(0.7 + 0.3 * share, "interleaved rounds"),
        )
        records = tuple(
            _record(
                plan,
                graph,
                profile,
                platform,
                allocations[name],
                result,
                colds[name],
                errors[name],
                _faults(deployments[name]) - faults[name],
                sum(peak_rss_mb(i.pid) for i in deployments[name].instances.values()),
                limiter.enforced,
            )
            for name, plan in plans.items()
        )
    progress(1.0, "done")
    return Comparison(
        model=given,
        platform=platform.name,
        machine=profile.machine,
        limits_reason=limiter.reason,
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        slo_ms=slo_ms,
        plans=records,
        failed=failed,
    )


def _plans(
    graph: Graph,
    profile: Profile,
    platform: Platform,
    planners: Sequence[str],
    given: str,
    slo_ms: float | None,
    max_stages: int,
    batch: int,
    vcpu: float,
    ranges: Mapping[str, tuple[float, float]] | None,
    progress: Progress,
) -> tuple[dict[str, Plan], dict[str, str]]:
    plans: dict[str, Plan] = {}
    failed: dict[str, str] = {}
    last: InfeasiblePlan | PlatformLimit | None = None
    for k, name in enumerate(dict.fromkeys(planners)):
        progress(0.1 * k / len(planners), f"planning {name}")
        try:
            plans[name] = make_plan(
                graph,
                profile,
                platform,
                name,
                given=given,
                slo_ms=slo_ms,
                max_stages=max_stages,
                batch=batch,
                vcpu=vcpu,
                ranges=ranges,
            )
        except (InfeasiblePlan, PlatformLimit) as error:
            failed[name] = str(error)
            last = error
    if not plans:
        raise last or ConfigError("no planner is named", try_="--planners ort,single,mopar")
    return plans, failed


def _settle(
    deployment: Deployment,
    package: Path,
    allocation: dict[str, Allocation],
    platform: Platform,
    inputs: dict[str, np.ndarray],
) -> tuple[tuple[float, ColdStart], dict[str, Allocation]]:
    """The cold start, and the allocation it lived at.

    A start is never the same twice: a function that lived through its trials a few MB below its limit may be killed
    now. Then its size was none, and it gets the next one.
    """
    for _ in range(GROWTHS):
        try:
            return _cold(deployment, package, inputs), allocation
        except OutOfMemory as error:
            name = error.where.removeprefix("function ")
            held = allocation[name]
            size = platform.allocation_mb(held.memory_mb * 1.02 + 1)
            if size is None:
                raise
            tried = (*held.tried, (size, "after the kernel killed a start one size below"))
            allocation = {**allocation, name: msgspec.structs.replace(held, memory_mb=size, tried=tried)}
            deployment.resize(name, size)
    return _cold(deployment, package, inputs), allocation


def _cold(deployment: Deployment, package: Path, inputs: dict[str, np.ndarray]) -> tuple[float, ColdStart]:
    """Latency of the first request with nothing running and no file cached; the slowest function's start."""
    evict(p for p in package.rglob("*") if p.is_file())
    answer = deployment.infer(inputs)
    deployment.pause()
    starts = [i.cold for i in deployment.instances.values() if i.cold]
    return answer.latency_ms, max(starts, key=lambda c: c.total)


def _faults(deployment: Deployment) -> int:
    return sum(major_faults(i.pid) for i in deployment.instances.values())


def _errors(
    graph: Graph, reference: Path, deployments: Mapping[str, Deployment], feeds: Sequence[dict[str, np.ndarray]]
) -> dict[str, OutputError]:
    """Law 3: each plan's answers against the whole model run unoptimised."""
    session = open_session(reference, "reference", threads=1, prepack=False)
    worst = {name: [0.0, 0.0] for name in deployments}
    for feed in feeds:
        expected = dict(zip(graph.outputs, session.run(list(graph.outputs), feed), strict=True))
        for name, deployment in deployments.items():
            with deployment.awake():
                got = deployment.infer(feed).outputs
            for output, want in expected.items():
                absolute, relative = difference(want, got[output])
                worst[name][0] = max(worst[name][0], absolute)
                worst[name][1] = max(worst[name][1], relative)
    return {name: OutputError(*pair) for name, pair in worst.items()}


def difference(want: np.ndarray, got: np.ndarray) -> tuple[float, float]:
    """Largest difference of two outputs, and relative to the range of the first; infinite where shapes differ."""
    if want.shape != got.shape:
        return float("inf"), float("inf")
    if want.size == 0:
        return 0.0, 0.0
    if not np.array_equal(np.isnan(want), np.isnan(got)) if want.dtype.kind == "f" and got.dtype.kind == "f" else False:
        return float("inf"), float("inf")
    if want.dtype.kind == "f":
        want, got = np.nan_to_num(want), np.nan_to_num(got)
    wide = want.astype(np.float64)
    absolute = float(np.max(np.abs(wide - got.astype(np.float64))))
    span = float(np.ptp(wide)) or float(np.max(np.abs(wide))) or 1.0
    return absolute, absolute / span


def _record(
    plan: Plan,
    graph: Graph,
    profile: Profile,
    platform: Platform,
    allocation: Mapping[str, Allocation],
    rounds: Rounds,
    cold: tuple[float, ColdStart],
    error: OutputError,
    faults: int,
    peak_mb: float,
    enforced: bool,
) -> PlanRecord:
    samples = rounds.samples[plan.planner]
    sizes = [allocation[f.name].memory_mb for f in plan.functions]
    added = sum(platform.hop_ms(h.bytes) for h in plan.hops)
    latency = np.array([s.latency_ms for s in samples]) + added
    stages = np.array([s.stage_ms for s in samples])
    costs = [sum(platform.cost_usd(m, t) for m, t in zip(sizes, s.stage_ms, strict=True)) * 1e6 for s in samples]
    hop_usd = sum(h.cost_usd for h in plan.hops) * 1e6
    billed = (
        float(
            np.mean([sum(m * platform.billed_ms(t) for m, t in zip(sizes, s.stage_ms, strict=True)) for s in samples])
        )
        / 1000
    )
    resident = float(sum(sizes) * np.mean(latency)) / 1000
    used, bare = used_memory_time(plan, graph, profile, stages.mean(axis=0))
    p50_low, p50_high = interval(_by_round(samples, lambda s: s.latency_ms + added), lambda v: float(np.median(v)))
    per_request = _by_round(
        samples,
        lambda s: sum(platform.cost_usd(m, t) for m, t in zip(sizes, s.stage_ms, strict=True)) * 1e6 + hop_usd,
    )
    cost_low, cost_high = interval(per_request, lambda v: float(np.mean(v)))
    medians = np.median(stages, axis=0)
    return PlanRecord(
        planner=plan.planner,
        stages=plan.stages,
        functions=tuple(
            FunctionRecord(
                f.name,
                sizes[i],
                f.vcpu,
                allocation[f.name].peak_mb,
                f.peak_mb,
                f.memory_mb,
                float(medians[i]),
                f.run_ms,
            )
            for i, f in enumerate(plan.functions)
        ),
        latency_ms=Latency(
            float(np.median(latency)), float(np.percentile(latency, 95)), cold[0] + added, p50_low, p50_high
        ),
        cold_split_ms=ColdSplit(*cold[1]),
        cost_usd_per_million=float(np.mean(costs)) + hop_usd,
        cost_low=cost_low,
        cost_high=cost_high,
        vcpu_s=float(np.mean([s.cpu_ms for s in samples])) / 1000,
        memory_time_mb_s=MemoryTime(billed, resident, used, bare),
        efficiency=Efficiency(used / billed, used / resident),
        peak_memory_mb=peak_mb,
        major_faults=faults,
        output_error=error,
        limits="enforced" if enforced else "unlimited",
        emulated=f"{len(plan.hops)} hops, {added:.1f} ms by the catalogue" if added else "",
        predicted=plan.predicted,
        why=plan.why,
        rounds=rounds.kept,
        rounds_rejected=rounds.rejected,
    )


def _by_round(samples: Sequence[Sample], value: Callable[[Sample], float]) -> list[list[float]]:
    rounds: dict[int, list[float]] = {}
    for sample in samples:
        rounds.setdefault(sample.round, []).append(value(sample))
    return list(rounds.values())


def used_memory_time(plan: Plan, graph: Graph, profile: Profile, stage_ms: np.ndarray) -> tuple[float, float]:
    """Integral of (runtime floor + weights and live tensors of the unit running), MB-s, with and without the floor.

    One formula for every plan: the time of each stage is shared among its units as the profile measured them.
    """
    whole = bare = 0.0
    for function, time_ms in zip(plan.functions, stage_ms.tolist(), strict=True):
        units = [u for u in profile.units if function.first <= u.first < function.last]
        shares = np.array([u.times[0].median_ms for u in units])
        for unit, share in zip(units, (shares / shares.sum()).tolist(), strict=True):
            held = (unit.weight_bytes + unit.live_bytes) / MB
            bare += held * share * time_ms / 1000
            whole += (held + profile.floor.resident_mb) * share * time_ms / 1000
    return whole, bare


def load_inputs(path: Path, graph: Graph) -> list[dict[str, np.ndarray]]:
    """Requests from an .npz file: one array per input; a leading axis longer than the model's is split into requests.

    Raises:
        InputRefused: the file cannot be read or lacks an input.
    """
    arrays = read_arrays(path)
    missing = [n for n in graph.inputs if n not in arrays]
    if missing:
        raise InputRefused(f"{path} lacks {missing[0]!r}; it holds {', '.join(arrays) or 'nothing'}")
    rows = min(len(arrays[n]) // (graph.tensors[n].shape_at(1)[0] or 1) for n in graph.inputs if graph.tensors[n].shape)
    found = []
    for row in range(max(1, rows)):
        feed = {}
        for n in graph.inputs:
            shape = graph.tensors[n].shape_at(1)
            size = shape[0] if shape else 0
            feed[n] = arrays[n][row * size : (row + 1) * size] if shape else arrays[n]
        found.append(feed)
    return found
