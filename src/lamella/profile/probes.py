"""What needs a process of its own: the memory of a unit and its time under CPU quotas."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from lamella import documents
from lamella.channels import messages as wire
from lamella.channels.segments import create
from lamella.graph.extract import Extractor
from lamella.graph.optimise import optimise
from lamella.graph.quantise import quantise
from lamella.limits import Limiter
from lamella.limits.pagecache import evict
from lamella.limits.unlimited import Unlimited
from lamella.machine import this_machine
from lamella.profile.document import QuotaTime, UnitMemory
from lamella.profile.layouts import blocked_graph, may_block
from lamella.profile.products import Timer, product_times
from lamella.runtime.function import Function, Layout, TensorSpec
from lamella.runtime.instance import Instance

RUNS = 4
QUOTAS = (0.5, 0.25)
COPIES_MB = 1.0
"""Prepacking that copies more than this is timed at load, from the page cache and from disk."""
PERIOD_MS = 10
"""Of the quota under which units are measured: that of our emulated Lambda."""


def write_function(
    directory: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], layout: Layout = "plain"
) -> Function:
    """Make the `optimised.onnx` in a directory, which has that layout, a function of one thread."""
    weights = "optimised.bin" if (directory / "optimised.bin").exists() else ""
    function = Function(
        name=directory.name,
        kind="packaged",
        graph="optimised.onnx",
        weights=weights,
        portable="",
        inputs=inputs,
        outputs=outputs,
        threads=1,
        prepack=layout == "prepacked",
        machine=this_machine(),
        sha256={},
    )
    documents.write(directory / "function.json", function)
    return function


class UnitProbe(NamedTuple):
    """What a process of its own tells about a unit."""

    memory: tuple[UnitMemory, ...]
    quotas: tuple[QuotaTime, ...]


def probe_unit(
    extractor: Extractor,
    first: int,
    last: int,
    values: Mapping[str, np.ndarray],
    scratch: Path,
    limiter: Limiter,
    timer: Timer = product_times,
) -> UnitProbe:
    """Operators `first` to `last - 1` in a process: memory in each layout, time under CPU quotas.

    Args:
        extractor: of the model.
        first: first operator.
        last: one past the last operator.
        values: the real tensors at the unit's border, by name.
        scratch: an empty directory to work in; removed afterwards.
        limiter: enforces the quotas; where it cannot, none is measured.
        timer: where times of products come from, which say what runs blocked.
    """
    takes, gives = extractor.graph.border(first, last)
    found: list[UnitMemory] = []
    quotas: list[QuotaTime] = []
    try:
        optimised = optimise(extractor.write(first, last, scratch))
        places: dict[Layout, Path] = {"plain": scratch, "prepacked": scratch}
        path = scratch / "blocked" / "optimised.onnx"
        if may_block(extractor.graph, first, last) and blocked_graph(extractor.graph, optimised, 1, 1, timer, path):
            places["blocked"] = path.parent
        for layout, place in places.items():
            write_function(place, _specs(values, takes), _specs(values, gives), layout)
            with Probe(place, values, takes, gives, limiter) as probe:
                free = min(probe.run()[1] for _ in range(RUNS))
                memory = memory_of(probe.instance.report(), layout, probe.cold.session)
                if layout == "plain" and limiter.enforced:
                    quotas = [QuotaTime(q, free, _under_quota(probe, q, free)) for q in QUOTAS]
            if layout == "prepacked" and memory.private_mb > found[0].private_mb + COPIES_MB:
                evict([place / "optimised.bin"])
                with Probe(place, values, takes, gives) as probe:
                    read_ms = max(0.0, probe.cold.session - memory.load_ms)
                memory = msgspec.structs.replace(memory, read_ms=read_ms)
            found.append(memory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return UnitProbe(tuple(found), tuple(quotas))


def probe_int8(
    extractor: Extractor,
    first: int,
    last: int,
    names: tuple[str, ...],
    values: Mapping[str, np.ndarray],
    scratch: Path,
) -> UnitMemory:
    """Memory of operators `first` to `last - 1` whose products that give `names` run on 8-bit integers."""
    takes, gives = extractor.graph.border(first, last)
    try:
        _, weights = optimise(quantise(extractor.write(first, last, scratch), names))
        size = sum(array.nbytes for array in weights.values())
        write_function(scratch, _specs(values, takes), _specs(values, gives), "int8")
        with Probe(scratch, values, takes, gives) as probe:
            for _ in range(RUNS):
                probe.run()
            memory = memory_of(probe.instance.report(), "int8", probe.cold.session)
        return msgspec.structs.replace(memory, weight_bytes=size)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def probe_live(extractor: Extractor, first: int, last: int, values: Mapping[str, np.ndarray], scratch: Path) -> float:
    """`UnitMemory.live_mb` of operators `first` to `last - 1` for the request whose border tensors are `values`."""
    takes, gives = extractor.graph.border(first, last)
    try:
        optimise(extractor.write(first, last, scratch))
        write_function(scratch, _specs(values, takes), _specs(values, gives))
        with Probe(scratch, values, takes, gives) as probe:
            for _ in range(RUNS):
                probe.run()
            return memory_of(probe.instance.report(), "plain", probe.cold.session).live_mb
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _specs(values: Mapping[str, np.ndarray], names: tuple[str, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(n, values[n].dtype.name, values[n].shape) for n in names)


def _under_quota(probe: Probe, vcpu: float, free_ms: float) -> float:
    """Mean time of a run under a quota, each from an unspent grant and another phase of the period, ms."""
    probe.instance.limit_cpu(vcpu)
    times = []
    for k in range(RUNS + 1):
        time.sleep((2 + k / (RUNS + 1)) * PERIOD_MS / 1000)
        times.append(probe.run()[1])
    return float(np.mean(times[1:]))


def memory_of(report: wire.Memory, layout: Layout, load_ms: float) -> UnitMemory:
    """What a function in a process of its own adds to the floor, from that process's report after its runs."""
    private = report.load_anonymous_mb - report.floor_anonymous_mb
    stays = report.floor_mb + report.weights_mb + private
    return UnitMemory(
        layout=layout,
        weights_mb=report.weights_mb,
        private_mb=private,
        live_mb=max(
            0.0, report.peak_mb - stays if report.peak_mb > report.load_peak_mb else report.resident_mb - stays
        ),
        load_extra_mb=report.load_peak_mb - report.floor_mb - private,
        load_ms=load_ms,
    )


class Probe:
    """A worker without a memory limit, its border tensors in shared segments."""

    def __init__(
        self,
        directory: Path,
        values: Mapping[str, np.ndarray],
        takes: tuple[str, ...],
        gives: tuple[str, ...],
        limiter: Limiter | None = None,
    ) -> None:
        limiter = limiter or Unlimited("profiling")
        self.instance = Instance("probe", directory, limiter, memory_mb=None, vcpu=1.0)
        self._fds = []
        try:
            self.cold = self.instance.ready()
        except BaseException:
            self.instance.kill()
            raise
        refs = []
        for number, name in enumerate((*takes, *gives)):
            array = values[name]
            segment, fd = create(array.nbytes)
            self._fds.append(fd)
            if name in takes:
                segment.view(array.dtype.name, array.shape)[...] = array
            self.instance.attach(number, segment.size, fd)
            refs.append(wire.TensorRef(name, array.dtype.name, array.shape, number, size=array.nbytes))
        self._request = wire.encode(wire.Run(tuple(refs[: len(takes)]), tuple(refs[len(takes) :])))

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *exc: object) -> None:
        self.instance.stop()
        for fd in self._fds:
            os.close(fd)

    def run(self) -> tuple[float, float]:
        """One request: round trip and the function's own run, ms."""
        start = time.perf_counter()
        reply = self.instance.run(self._request)
        return (time.perf_counter() - start) * 1000, reply.run_ms
