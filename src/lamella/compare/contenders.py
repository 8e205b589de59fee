"""Plans deployed side by side: packaged, allocated by the rule, started, asked."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from lamella.compare.record import OUTPUT_TOLERANCE, OutputError
from lamella.deploy.local import Deployment, Size, planned_channel
from lamella.deploy.sizing import Allocation
from lamella.errors import InputRefused, OutOfMemory
from lamella.graph.extract import Extractor
from lamella.graph.model import Graph
from lamella.limits import Limiter
from lamella.limits.memory import major_faults, peak_rss_mb
from lamella.limits.pagecache import evict
from lamella.machine import on_cores
from lamella.objects import Bucket
from lamella.plan.document import Loss, Plan
from lamella.plan.validation.judge import Judge
from lamella.plan.validation.metrics import difference
from lamella.platforms import Platform
from lamella.runtime.function import open_session
from lamella.runtime.instance import ColdStart

GROWTHS = 5
"""How often a function may get the next size because a start was killed."""
CHECKED_LOSSY = 32
"""Of a lossy plan's validation so many requests are answered by the deployment, too."""
Values = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Ground:
    """What all plans run on."""

    platform: Platform
    limiter: Limiter
    cpus: frozenset[int]
    """The cores the functions are kept on."""
    everywhere: frozenset[int]
    """All cores we may use: the default session takes what it finds, as it does where people deploy it."""
    objects: Bucket | None = None
    """For plans whose channel is s3."""


@contextmanager
def ground(
    platform: Platform, limiter: Limiter, plans: Sequence[Plan], objects: Bucket | None = None
) -> Iterator[Ground]:
    """Keep this process on one core, and the functions of `plans` on as many as they keep busy, that one first."""
    everywhere = frozenset(os.sched_getaffinity(0))
    count = max((cores_of(p) for p in plans), default=1)
    with on_cores(1):
        yield Ground(platform, limiter, frozenset(sorted(everywhere)[-count:]), everywhere, objects)


def cores_of(plan: Plan) -> int:
    """How many cores a plan keeps busy at most: threads of a function, or as many shards as may run at once."""
    return max(*(f.threads for f in plan.functions), *plan.at_once)


class Contender(NamedTuple):
    """A plan that is up."""

    plan: Plan
    deployment: Deployment
    allocation: dict[str, Allocation]
    cold_ms: float
    """Latency of the first request with nothing running and no file cached."""
    cold: ColdStart
    """The slowest function's start."""

    def faults(self) -> int:
        """Major faults of its instances so far."""
        return sum(major_faults(i.pid) for i in self.deployment.instances.values())

    def peak_mb(self) -> float:
        """VmHWM, summed over its instances."""
        return sum(peak_rss_mb(i.pid) for i in self.deployment.instances.values())


@contextmanager
def deployed(
    on: Ground, plan: Plan, package: Path, allocation: dict[str, Allocation], inputs: Values
) -> Iterator[Contender]:
    """The plan, started on an empty page cache at its allocation, answering `inputs` first, then frozen."""
    sizes = {f.name: Size(allocation[f.name].memory_mb, f.vcpu) for f in plan.functions}
    with Deployment(
        package,
        limiter=on.limiter,
        objects=on.objects,
        channel=planned_channel(plan, on.platform),
        sizes=sizes if on.limiter.enforced else {name: Size(None, size.vcpu) for name, size in sizes.items()},
        period_ms=int(on.platform.cpu.period_ms.value),
        timeout_s=on.platform.limits.timeout_s.value,
        cpus=on.everywhere if plan.functions[0].kind == "default" else frozenset(sorted(on.cpus)[-cores_of(plan) :]),
        freezable=True,
        shared=False,  # costs are those of functions that hold all their weights
    ) as deployment:
        (cold_ms, cold), settled = _settle(deployment, package, plan, allocation, on.platform, inputs)
        yield Contender(plan, deployment, settled, cold_ms, cold)


def _settle(
    deployment: Deployment,
    package: Path,
    plan: Plan,
    allocation: dict[str, Allocation],
    platform: Platform,
    inputs: Values,
) -> tuple[tuple[float, ColdStart], dict[str, Allocation]]:
    """The cold start, and the allocation it lived at.

    A start is never the same twice: a function that lived through its trials a few MB below its limit may be killed
    now. Then its size was none, and it gets the next one.
    """
    share = {f.name: f.vcpu for f in plan.functions}
    for _ in range(GROWTHS):
        try:
            return _cold(deployment, package, inputs), allocation
        except OutOfMemory as error:
            name = error.where.removeprefix("function ")
            held = allocation[name]
            size = platform.allocation_mb(held.memory_mb * 1.02 + 1, share[name])
            if size is None:
                raise
            tried = (*held.tried, (size, "after the kernel killed a start one size below"))
            allocation = {**allocation, name: msgspec.structs.replace(held, memory_mb=size, tried=tried)}
            deployment.resize(name, size)
    return _cold(deployment, package, inputs), allocation


def _cold(deployment: Deployment, package: Path, inputs: Values) -> tuple[float, ColdStart]:
    evict(p for p in package.rglob("*") if p.is_file())
    answer = deployment.infer(inputs)
    deployment.pause()
    starts = [i.cold for i in deployment.instances.values() if i.cold]
    return answer.latency_ms, max(starts, key=lambda c: c.total)


def expected(graph: Graph, directory: Path, feeds: Sequence[Values]) -> list[Values]:
    """What the whole model answers, unoptimised; it is written to `directory` for that.

    Raises:
        InputRefused: it cannot take a request, such as an index out of range.
    """
    session = open_session(
        Extractor(graph).write(0, len(graph.operators), directory), "reference", threads=1, prepack=False
    )
    found = []
    for feed in feeds:
        try:
            outputs = session.run(list(graph.outputs), feed)
        except Exception as error:
            raise InputRefused(f"the model refuses a request: {str(error).splitlines()[0]}") from error
        found.append(dict(zip(graph.outputs, outputs, strict=True)))
    return found


def output_error(
    deployment: Deployment,
    feeds: Sequence[Mapping[str, np.ndarray]],
    answers: Sequence[Mapping[str, np.ndarray]],
    judge: Judge | None = None,
) -> OutputError:
    """Law 3: how far a deployment's answers are from `answers`, at worst.

    Where its plan has lossy codecs the `judge` it was made with says which requests, and what is good enough.
    """
    absolute = relative = 0.0
    seen = []
    lossy = judge if deployment.plan.lossy else None
    if lossy:
        feeds, answers = lossy.asked.judged[:CHECKED_LOSSY], lossy.expected[:CHECKED_LOSSY]
    for feed, answer in zip(feeds, answers, strict=True):
        with deployment.awake():
            got = deployment.infer(feed).outputs
        for name, want in answer.items():
            found = difference(want, got[name])
            absolute, relative = max(absolute, found[0]), max(relative, found[1])
        if lossy:
            seen.append(lossy.metric.of(answer, got))
    most = sys.float_info.max
    absolute, relative = min(absolute, most), min(relative, most)
    if not lossy:
        return OutputError(absolute, relative, relative <= OUTPUT_TOLERANCE)
    value, bound = lossy.metric.over(seen), lossy.asked.bound
    return OutputError(absolute, relative, lossy.metric.keeps(value, bound), Loss(lossy.metric.name, value, bound))
