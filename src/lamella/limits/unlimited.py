"""No limits, labelled as such: groups that hold nothing, know nothing, and only suggest CPUs to pin a worker to."""

from __future__ import annotations

import itertools
import math
import os
import sys
from typing import TYPE_CHECKING

from lamella.limits.group import DEFAULT_PERIOD_MS, Group, Limiter, Mode, check_limits
from lamella.limits.owner import full_name

if TYPE_CHECKING:
    from collections.abc import Sequence


class UnlimitedGroup(Group):
    """Holds nothing: its members are unknown, so the spawner has to kill what it spawned."""

    def __init__(self, name: str, turn: int) -> None:
        """`turn` rotates the choice of CPUs, so that small workers do not all crowd on the first one."""
        self.name = name
        self._turn = turn
        self._affinity: frozenset[int] | None = None

    @property
    def affinity(self) -> frozenset[int] | None:
        """ceil(vcpu) of the CPUs this process may use; None without a CPU limit or where pinning does not exist."""
        return self._affinity

    def command(self, argv: Sequence[str]) -> list[str]:
        """`argv` itself."""
        return list(argv)

    def resize(self, *, memory_mb: int | None, vcpu: float | None) -> None:
        """Change `affinity`, which the spawner has to apply again."""
        check_limits(memory_mb, vcpu)
        self._affinity = None if vcpu is None else _some_cpus(math.ceil(vcpu), self._turn)

    def oom_kills(self) -> int:
        """0."""
        return 0

    def peak_mb(self) -> float:
        """Nan."""
        return math.nan

    def pids(self) -> list[int]:
        """Empty: members are unknown."""
        return []

    def kill(self) -> None:
        """Nothing."""

    def remove(self) -> None:
        """Nothing."""


class Unlimited(Limiter):
    """Enforces nothing and says why."""

    mode = Mode.NONE

    def __init__(self, reason: str) -> None:
        """`reason` is why nothing can be enforced here, in the user's words."""
        self.reason = reason
        self._turns = itertools.count()

    def create(
        self, name: str, *, memory_mb: int | None, vcpu: float | None, period_ms: int = DEFAULT_PERIOD_MS
    ) -> Group:
        """See `Limiter.create`; `period_ms` has no effect."""
        group = UnlimitedGroup(full_name(name), next(self._turns))
        group.resize(memory_mb=memory_mb, vcpu=vcpu)
        return group

    def names(self) -> list[str]:
        """Empty: nothing is left behind."""
        return []

    def open(self, name: str) -> Group:
        """A group without affinity."""
        return UnlimitedGroup(name, 0)


def _some_cpus(count: int, turn: int) -> frozenset[int] | None:
    if sys.platform != "linux":
        return None
    cpus = sorted(os.sched_getaffinity(0))
    first = turn * count
    return frozenset(cpus[(first + step) % len(cpus)] for step in range(min(count, len(cpus))))
