"""Limits by cgroup v1: a directory in each of the memory and cpu trees (kernel docs, admin-guide/cgroup-v1).

Trees may be mounted together (`cpu,cpuacct`) or apart: the mounts decide. Groups are made below our own, so that limits
set on us from outside still hold; where our own group is not visible, at the mount point.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lamella.limits.cgroup import MIB, ControlGroup, ControlLimiter
from lamella.limits.group import Mode, check_limits, quota_us

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path, PurePosixPath

    from lamella.limits.kernel import Kernel
    from lamella.limits.mounts import Mount

_REQUIRED = ("memory", "cpu")
_MEMORY, _MEMORY_AND_SWAP = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
_QUOTA, _PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"


class V1Group(ControlGroup):
    """A group in several v1 trees under one name."""

    def resize(self, *, memory_mb: int | None, vcpu: float | None) -> None:
        """See `Group.resize`."""
        check_limits(memory_mb, vcpu)
        quota = (-1, None) if vcpu is None else quota_us(vcpu, self._period_ms)
        self._set_memory(-1 if memory_mb is None else memory_mb * MIB)
        self._set_cpu(*quota)

    def oom_kills(self) -> int:
        """See `Group.oom_kills`."""
        kills = self._figure("memory", "memory.oom_control", "oom_kill")
        return 0 if math.isnan(kills) else int(kills)

    def peak_mb(self) -> float:
        """See `Group.peak_mb`."""
        return self._figure("memory", "memory.max_usage_in_bytes") / MIB

    @property
    def gates(self) -> list[Path]:
        """See `Group.gates`; the file of threads, not processes.

        A thread that moves itself waits for nobody; moving a process waits for every core to have scheduled, some 5 ms
        in each tree. On v2 threads move within their process' domain only.
        """
        return [path / "tasks" for path in self._dirs]

    def _set_memory(self, limit_bytes: int) -> None:
        """Equal limits on memory and on memory plus swap mean no swap. The second may never be under the first."""
        if self._has("memory", "memory.swappiness"):
            self._write("memory", "memory.swappiness", "0")
        files = [_MEMORY]
        if self._has("memory", _MEMORY_AND_SWAP):
            grows = limit_bytes == -1 or limit_bytes > self._figure("memory", _MEMORY_AND_SWAP)
            files = [_MEMORY_AND_SWAP, _MEMORY] if grows else [_MEMORY, _MEMORY_AND_SWAP]
        for file in files:
            self._write("memory", file, str(limit_bytes))

    def _set_cpu(self, quota: int, period: int | None) -> None:
        """A new period goes in without a quota: with the old one it could exceed the parent's share and be refused."""
        if period is not None and period != self._figure("cpu", _PERIOD):
            self._write("cpu", _QUOTA, "-1")
            self._write("cpu", _PERIOD, str(period))
        self._write("cpu", _QUOTA, str(quota))


class V1Limiter(ControlLimiter):
    """Limits by cgroup v1."""

    mode = Mode.V1

    def _group(self, name: str, period_ms: int) -> V1Group:
        return V1Group(name, self.places, period_ms, self.kernel)


def find(mounts: Sequence[Mount], own: Mapping[str, PurePosixPath], root: Path, kernel: Kernel) -> V1Limiter | str:
    """A limiter that was seen to work, or why there is none."""
    places = {
        controller: mount.place(own[controller])
        for controller in _REQUIRED
        for mount in mounts
        if mount.version == 1 and controller in mount.options and controller in own
    }
    missing = [controller for controller in _REQUIRED if controller not in places]
    if missing:
        return f"cgroup v1 has no {' and '.join(missing)} controller under {root}"
    limiter = V1Limiter(places, kernel)
    return limiter.probe() or limiter
