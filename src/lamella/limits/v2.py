"""Limits by cgroup v2: one directory per group in the single tree (kernel docs, admin-guide/cgroup-v2).

A group other than the root cannot both hold processes and hand out controllers ("no internal processes"). We are a
process in our own group, so groups usually become our siblings: the places tried are our own group and then its
ancestors, nearest first, taking the first where both controllers are delegated, where we may write, and where a joined
process was seen. Under a systemd user session this ends in a slice that belongs to the user.

Rejected: moving ourselves, or worse our neighbours, into a leaf to free our own group. Other tools would notice.
"""

from __future__ import annotations

import errno
import math
from typing import TYPE_CHECKING

from lamella.limits.cgroup import MIB, ControlGroup, ControlLimiter
from lamella.limits.group import Mode, check_limits, quota_us
from lamella.limits.kernel import refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path, PurePosixPath

    from lamella.limits.kernel import Kernel
    from lamella.limits.mounts import Mount

_REQUIRED = ("cpu", "memory")


class V2Group(ControlGroup):
    """A group in the v2 tree."""

    def resize(self, *, memory_mb: int | None, vcpu: float | None) -> None:
        """See `Group.resize`."""
        check_limits(memory_mb, vcpu)
        cpu_max = "max" if vcpu is None else "{} {}".format(*quota_us(vcpu, self._period_ms))
        if self._has("memory", "memory.swap.max"):
            self._write("memory", "memory.swap.max", "max" if memory_mb is None else "0")
        self._write("memory", "memory.max", "max" if memory_mb is None else str(memory_mb * MIB))
        self._write("cpu", "cpu.max", cpu_max)

    def oom_kills(self) -> int:
        """See `Group.oom_kills`."""
        kills = self._figure("memory", "memory.events", "oom_kill")
        return 0 if math.isnan(kills) else int(kills)

    def peak_mb(self) -> float:
        """See `Group.peak_mb`; nan before Linux 5.19."""
        return self._figure("memory", "memory.peak") / MIB

    def kill(self) -> None:
        """See `Group.kill`; since Linux 5.14 the kernel kills all members at once, forks included."""
        if self._has("memory", "cgroup.kill"):
            self._write("memory", "cgroup.kill", "1")
        super().kill()


class V2Limiter(ControlLimiter):
    """Limits by cgroup v2."""

    mode = Mode.V2

    def _group(self, name: str, period_ms: int) -> V2Group:
        return V2Group(name, self.places, period_ms, self.kernel)


def find(mounts: Sequence[Mount], own: Mapping[str, PurePosixPath], root: Path, kernel: Kernel) -> V2Limiter | str:
    """A limiter that was seen to work, or why there is none (why not in the nearest place, if several were tried)."""
    reasons = []
    for mount in mounts:
        if mount.version != 2 or "" not in own:
            continue
        nearest = mount.place(own[""])
        for place in (nearest, *nearest.parents):
            if not place.is_relative_to(mount.point):
                break
            limiter = V2Limiter(dict.fromkeys(_REQUIRED, place), kernel)
            reason = _hand_out(place, kernel) or limiter.probe()
            if not reason:
                return limiter
            reasons.append(reason)
    return reasons[0] if reasons else f"cgroup v2 is not mounted under {root}"


def _hand_out(place: Path, kernel: Kernel) -> str:
    """Let groups made in `place` have cpu and memory limits. Returns why they cannot, empty if they can."""
    try:
        available = kernel.read(place / "cgroup.controllers").split()
        if missing := [controller for controller in _REQUIRED if controller not in available]:
            return f"cgroup v2 does not delegate {' and '.join(missing)} to {place}"
        handed_out = kernel.read(place / "cgroup.subtree_control").split()
        if wanted := [f"+{controller}" for controller in _REQUIRED if controller not in handed_out]:
            kernel.write(place / "cgroup.subtree_control", " ".join(wanted))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return f"{place} holds processes itself, so cgroup v2 allows no limits below it"
        return refusal(place / "cgroup.subtree_control", error)
    return ""
