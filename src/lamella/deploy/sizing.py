"""The allocation of a function, by measurement: one rule for every plan, the plain baseline included.

The smallest size the platform sells that holds the instance's VmHWM (and what law 4 demands) and at which, under the
enforced limit and with the package's files evicted from the page cache first, a cold start takes at most 1.25x and the
median run at most 1.05x of the run without a memory limit, and steady runs have no major faults. The CPU quota is the
same in both runs. A cold start goes from spawn to the end of the first run, since mapped weights are read by it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from lamella import documents
from lamella.channels import messages as wire
from lamella.channels.segments import Segment, create
from lamella.codecs import Codecs
from lamella.documents import Document
from lamella.errors import InfeasiblePlan, InstanceLost
from lamella.limits import Limiter
from lamella.limits.pagecache import evict
from lamella.machine import this_machine
from lamella.package import verify
from lamella.package.integrity import sha256
from lamella.plan.document import FunctionPlan
from lamella.plan.pricing.memory import LOAD_FACTOR
from lamella.platforms import Platform
from lamella.runtime.function import Function
from lamella.runtime.instance import Instance
from lamella.runtime.tensors import coded_tensors
from lamella.units import dim_at

SIZING_VERSION = "4"
"""Part of the cache key: raise it when the rule changes."""
RUN_FACTOR = 1.05
GRAIN_MS = 0.1
"""Runs far below a millisecond differ by this much for nothing."""
PATIENCE = 10.0
LEAST_S = 30.0
"""A trial that takes this many times what it took without a memory limit, and this long, has come to a standstill."""
PRECISION = 0.01
"""Bisection ends when the size is known to this share, or to the platform's step."""


class Trial(NamedTuple):
    """One size tried: cold start and median run in ms, peak in MB, steady major faults per run."""

    memory_mb: int | None
    cold_ms: float
    run_ms: float
    judged_ms: float
    """What the rule compares: the run; its CPU time below one vCPU, where the run depends on the period's phase."""
    peak_mb: float
    faults: int


class Allocation(Document, frozen=True, kw_only=True):
    """What the rule found for one function."""

    memory_mb: int
    peak_mb: float
    cold_ms: float
    run_ms: float
    tried: tuple[tuple[int, str], ...]
    """Sizes tried and why each was refused, or `ok`."""


def allocate(
    package: Path,
    inputs: Mapping[str, np.ndarray],
    platform: Platform,
    limiter: Limiter,
    *,
    runs: int = 7,
) -> dict[str, Allocation]:
    """The allocation of each function of a package, measured in the chain's order on real tensors.

    Where limits cannot be enforced the size rests on VmHWM alone. Results are cached by the package's content, the
    plan's demands and the size of the request.
    """
    plan = verify(package)[1]
    values = dict(inputs)
    request_bytes = sum(array.nbytes for array in inputs.values())  # a larger batch is another allocation
    functions = [[_function(package / f.name) for f in stage] for stage in plan.by_stage()]
    codecs = coded_tensors(functions, [hop.codec for hop in plan.hops])
    found = {}
    for planned in plan.functions:
        directory = package / planned.name
        function = _function(directory)
        coded = [f"-in-{codecs[s.name]}" for s in function.inputs if s.name in codecs]
        coded += [f"-out-{codecs[s.name]}" for s in function.outputs if s.name in codecs]
        least = max(planned.floor_mb, planned.memory_mb if platform.cpu.mb_per_vcpu else 0)
        key = (
            f"v{SIZING_VERSION}-{sha256(directory / 'function.json')[:24]}-{request_bytes}-{least:.0f}-{platform.name}-"
            f"{planned.vcpu:.3f}-{limiter.mode}{''.join(dict.fromkeys(coded))}"
        )
        path = documents.cache_dir() / "sizes" / f"{key}-{this_machine().key}.json"
        with _Bench(directory, values, codecs, platform, limiter, planned.vcpu, runs) as bench:
            if path.exists():
                found[planned.name] = documents.read(path, Allocation, made_by="lamella compare")
                values |= bench.outputs()
                continue
            found[planned.name] = _search(bench, planned, platform, limiter.enforced)
            values |= bench.outputs()
        documents.write(path, found[planned.name])
    return found


def _search(bench: _Bench, planned: FunctionPlan, platform: Platform, enforced: bool) -> Allocation:
    free = bench.reference()
    need = max(free.peak_mb, planned.floor_mb)
    if platform.cpu.mb_per_vcpu:  # memory was chosen for its CPU
        need = max(need, planned.memory_mb)
    size = platform.allocation_mb(need, planned.vcpu)
    if size is None:
        raise InfeasiblePlan(
            f"memory: {planned.name} peaks at {free.peak_mb:.0f} MB, the largest size of {platform.name} is "
            f"{platform.most_mb(planned.vcpu):.0f} MB",
            where=f"function {planned.name}",
        )
    if not enforced:
        return Allocation(
            memory_mb=size,
            peak_mb=free.peak_mb,
            cold_ms=free.cold_ms,
            run_ms=free.run_ms,
            tried=((size, "not enforced"),),
        )
    tried: list[tuple[int, str]] = []
    refused = 0
    while True:
        verdict = bench.judge(size, free)
        tried.append((size, verdict))
        if verdict == "ok":
            break
        refused = size
        larger = platform.allocation_mb(max(size * 1.06, size + platform.step_mb), planned.vcpu)
        if larger is None:
            raise InfeasiblePlan(f"memory: {planned.name} runs badly at {size} MB ({verdict})", where=planned.name)
        size = larger
    while refused and (size - refused) > max(platform.step_mb, size * PRECISION):
        middle = platform.allocation_mb((refused + size) / 2, planned.vcpu)
        if middle is None or middle in (refused, size):
            break
        verdict = bench.judge(middle, free)
        tried.append((middle, verdict))
        if verdict == "ok":
            size = middle
        else:
            refused = middle
    return Allocation(
        memory_mb=size, peak_mb=free.peak_mb, cold_ms=free.cold_ms, run_ms=free.run_ms, tried=tuple(tried)
    )


class _Bench:
    """Starts one function again and again, at one size after another, on the same tensors."""

    def __init__(
        self,
        directory: Path,
        values: Mapping[str, np.ndarray],
        codecs: Mapping[str, str],
        platform: Platform,
        limiter: Limiter,
        vcpu: float,
        runs: int,
    ) -> None:
        self.function = _function(directory)
        self._codecs: Codecs = self.function.codecs(directory)
        self._directory, self._platform, self._limiter = directory, platform, limiter
        self._vcpu, self._runs = vcpu, runs
        self._files = [directory / name for name in self.function.sha256]
        self._held: list[tuple[int, Segment]] = []
        self._outputs: dict[str, np.ndarray] = {}
        takes = [self._hold(n.name, values[n.name], codecs.get(n.name, "none")) for n in self.function.inputs]
        batch = _batch(self.function, values)
        gives = []
        for out in self.function.outputs:
            shape = out.shape_at(batch)
            if out.dynamic:
                gives.append(wire.TensorRef(out.name, out.dtype, shape, codec=codecs.get(out.name, "none")))
            else:
                gives.append(self._hold(out.name, np.zeros(shape, out.dtype), codecs.get(out.name, "none")))
        self._gives = tuple(gives)
        self._request = wire.encode(wire.Run(tuple(takes), self._gives))

    def _hold(self, name: str, array: np.ndarray, by: str) -> wire.TensorRef:
        segment, fd = create(array.nbytes + (by != "none"))  # no codec needs more
        data = self._codecs.of(by, name).encode(array)
        segment.bytes[: data.nbytes] = data
        self._held.append((fd, segment))
        return wire.TensorRef(name, array.dtype.name, array.shape, len(self._held) - 1, by, data.nbytes)

    def __enter__(self) -> _Bench:
        return self

    def __exit__(self, *exc: object) -> None:
        for fd, _ in self._held:
            os.close(fd)

    def outputs(self) -> dict[str, np.ndarray]:
        """The function's outputs; it is run once if it was not yet."""
        if not self._outputs:
            self.trial(None, runs=1, cold=False)
        return self._outputs

    def trial(self, memory_mb: int | None, *, runs: int, cold: bool = True, free: Trial | None = None) -> Trial:
        """Start the function at a size, its files evicted first where `cold`, and run it.

        It has the platform's timeout for its start and for each run; less where `free`, the run without a memory limit,
        says that it cannot come out well any more.
        """
        most_s = self._platform.limits.timeout_s.value
        start_s = patience_s(free.cold_ms if free else None, most_s)
        run_s = patience_s(free.run_ms if free else None, most_s)
        if cold:
            evict(self._files)
        instance = Instance(
            self.function.name,
            self._directory,
            self._limiter,
            memory_mb=memory_mb,
            vcpu=self._vcpu,
            period_ms=int(self._platform.cpu.period_ms.value),
        )
        try:
            start = instance.ready(start_s)
            for number, (fd, segment) in enumerate(self._held):
                instance.attach(number, segment.size, fd)
            instance.run(self._request, run_s)
            before = instance.report().major_faults
            replies = [instance.run(self._request, run_s) for _ in range(runs)]
            report = instance.report()
            told = {ref.name: ref for ref in replies[-1].outputs}  # nothing of what went in place
            self._outputs = {ref.name: self._value(told.get(ref.name, ref)) for ref in self._gives if ref.segment >= 0}
            run_ms, cpu_ms = (float(np.median(t)) for t in zip(*((r.run_ms, r.cpu_ms) for r in replies), strict=True))
            return Trial(
                memory_mb=memory_mb,
                cold_ms=start.total,
                run_ms=run_ms,
                judged_ms=cpu_ms if self._vcpu < 1 else run_ms,
                peak_mb=report.peak_mb,
                faults=report.major_faults - before,
            )
        finally:
            instance.stop()

    def _value(self, ref: wire.TensorRef) -> np.ndarray:
        data = self._held[ref.segment][1].bytes[: ref.size]
        return np.array(self._codecs.of(ref.codec, ref.name).decode(data, ref.dtype, ref.shape))

    def reference(self) -> Trial:
        """Without a memory limit: the better of two starts."""
        trials = [self.trial(None, runs=self._runs) for _ in range(2)]
        return Trial(
            memory_mb=None,
            cold_ms=min(t.cold_ms for t in trials),
            run_ms=min(t.run_ms for t in trials),
            judged_ms=min(t.judged_ms for t in trials),
            peak_mb=max(t.peak_mb for t in trials),
            faults=0,
        )

    def judge(self, size: int, free: Trial) -> str:
        """`ok`, or why the size is refused.

        Two of at most four starts must live, and one of them must be as quick as the rule asks: noise only ever slows,
        but a size at which one start in three is killed is no size. A start that is too slow is held against one
        without a limit right behind it, too: a shared machine may be slower for minutes than for the reference.
        """
        said = ""
        quick = False
        for lived in range(1, 5):
            try:
                tried = self.trial(size, runs=self._runs, free=free)
            except InstanceLost as error:
                return error.code
            refusal = _refusal(tried, free)
            if refusal and not tried.faults:
                refusal = _refusal(tried, self.trial(None, runs=self._runs))
            quick = quick or not refusal
            said = refusal or said
            if quick and lived >= 2:
                return "ok"
        return said


def _function(directory: Path) -> Function:
    return msgspec.json.decode((directory / "function.json").read_bytes(), type=Function)


def _batch(function: Function, values: Mapping[str, np.ndarray]) -> int:
    """The rows of a request, from whichever axis follows them; 1 where none does."""
    for spec in function.inputs:
        for dim, size in zip(spec.shape, values[spec.name].shape, strict=True):
            if isinstance(dim, str):
                return int(size) // dim_at(dim, 1)
    return 1


def patience_s(free_ms: float | None, most_s: float) -> float:
    """How long to wait for what takes `free_ms` without a memory limit, s: at most the platform's timeout."""
    return most_s if free_ms is None else min(most_s, max(LEAST_S, PATIENCE * free_ms / 1000))


def _refusal(tried: Trial, free: Trial) -> str:
    if tried.faults:
        return f"{tried.faults} major faults in steady runs"
    if tried.cold_ms > LOAD_FACTOR * free.cold_ms:
        return f"cold start {tried.cold_ms / free.cold_ms:.2f}x of unlimited"
    if tried.judged_ms > RUN_FACTOR * free.judged_ms + GRAIN_MS:
        return f"p50 {tried.judged_ms / free.judged_ms:.2f}x of unlimited"
    return ""
