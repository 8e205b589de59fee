"""Which machine this is: what a profile was measured on and an optimised package is good for."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import msgspec


class Machine(msgspec.Struct, frozen=True):
    """A machine as far as measurements and optimised graphs depend on it."""

    cpu: str
    isa: str
    """The widest vector instructions: the blocked layout of convolutions depends on them."""
    cores: int
    memory_mb: int
    onnxruntime: str

    @property
    def key(self) -> str:
        """Short and stable: part of cache paths."""
        import hashlib  # here, because it loads OpenSSL: megabytes that no function needs

        return hashlib.sha256(repr((self.cpu, self.isa, self.cores, self.onnxruntime)).encode()).hexdigest()[:12]

    def runs(self, other: Machine) -> bool:
        """Whether a graph optimised on `other` gives right answers here."""
        return (self.isa, self.onnxruntime) == (other.isa, other.onnxruntime)


@cache
def this_machine() -> Machine:
    """The machine this process runs on; `cores` are those it may use."""
    fields = _cpuinfo()
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    isa = next((f for f in ("avx512f", "avx2", "avx", "asimd") if f in flags), "none")
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cpu=fields.get("model name") or platform.processor() or platform.machine(),
        isa=f"{platform.machine()}-{isa}",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_mb=pages * size >> 20,
        onnxruntime=_runtime_version(),
    )


def _runtime_version() -> str:
    """Of the loaded module where there is one: package metadata costs a function's start 40 more imports."""
    if "onnxruntime" in sys.modules:
        return str(sys.modules["onnxruntime"].__version__)
    from importlib.metadata import version

    return version("onnxruntime")


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


@contextmanager
def on_cores(count: int) -> Iterator[frozenset[int]]:
    """Keep this process on `count` of its cores meanwhile; the cores.

    A chain runs one stage at a time, so its functions and the driver lose nothing by sharing a core, and a hop within a
    core takes half the time of one that has to wake another. The last cores are taken: the first serve interrupts.
    """
    this_machine()  # count the cores before there are fewer
    if not hasattr(os, "sched_setaffinity"):
        yield frozenset()
        return
    before = os.sched_getaffinity(0)
    chosen = frozenset(sorted(before)[-count:])
    os.sched_setaffinity(0, chosen)
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, before)
