"""The contract: a `Limiter` makes `Group`s; a group holds the processes of one worker to its memory and CPU."""

from __future__ import annotations

import enum
import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

from lamella.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

DEFAULT_PERIOD_MS = 10
MAX_PERIOD_US = 1_000_000  # the kernel's own bounds on a CPU period and a quota
MIN_QUOTA_US = 1_000


class Mode(enum.StrEnum):
    """Which mechanism holds the limits."""

    V1 = "cgroup-v1"
    V2 = "cgroup-v2"
    NONE = "unlimited"


class Group(ABC):
    """The processes of one worker and their limits. As a context manager it kills and removes itself on exit.

    `name` is the full name, owner included (see `lamella.limits.owner`). Memory is in MiB throughout.
    """

    name: str

    @property
    def affinity(self) -> frozenset[int] | None:
        """The CPUs the spawner should pin the worker to with `os.sched_setaffinity(pid, ...)`, None for no pinning.

        Only an unlimited group has one: it is the nearest thing to a quota that needs no rights.
        """
        return None

    @property
    def gates(self) -> list[Path]:
        """Files that make a process of one thread a member: it writes `0` to each. None where nothing is enforced.

        Who may write is judged by whoever opened them, so a process can be handed the descriptors.
        """
        return []

    @abstractmethod
    def command(self, argv: Sequence[str]) -> list[str]:
        """`argv` prefixed so that the process joins the group, then execs `argv`.

        Exits 97 with a message on stderr if joining fails. Programs are looked up on PATH.
        """

    @abstractmethod
    def resize(self, *, memory_mb: int | None, vcpu: float | None) -> None:
        """Set both limits while members run; None means no limit.

        Below what is in use, v1 refuses (`ConfigError`) and v2 kills a member.

        Raises:
            ConfigError: a limit is not positive, or the kernel refuses it.
        """

    @abstractmethod
    def oom_kills(self) -> int:
        """How many members the kernel killed at the memory limit; 0 where the kernel does not count them."""

    @abstractmethod
    def peak_mb(self) -> float:
        """Highest memory charged so far, file cache included, in MiB; nan if the kernel does not tell."""

    @abstractmethod
    def pids(self) -> list[int]:
        """The members, ascending; 0 stands for a member in a pid namespace we cannot see. Empty if unknown."""

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL every member and wait until none is left.

        Raises:
            LamellaError: members survived for several seconds.
        """

    @abstractmethod
    def remove(self) -> None:
        """Remove the empty group; does nothing the second time.

        Raises:
            LamellaError: it still has members after several seconds.
        """

    def __enter__(self) -> Self:
        """The group itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill the members and remove the group."""
        self.kill()
        self.remove()

    def __repr__(self) -> str:
        """The kind and the name."""
        return f"<{type(self).__name__} {self.name}>"


class Limiter(ABC):
    """Makes groups by one mechanism. `reason` says why nothing can be enforced, and is empty when limits hold."""

    mode: Mode
    reason: str

    @property
    def enforced(self) -> bool:
        """Whether limits hold."""
        return self.mode is not Mode.NONE

    @abstractmethod
    def create(
        self, name: str, *, memory_mb: int | None, vcpu: float | None, period_ms: int = DEFAULT_PERIOD_MS
    ) -> Group:
        """A new group owned by this process. Limits as in `Group.resize`; `period_ms` is the CPU quota's period.

        Raises:
            ConfigError: the name is taken or malformed, a limit is out of range, or the kernel refuses.
        """

    @abstractmethod
    def names(self) -> list[str]:
        """Full names of all lamella groups in this limiter's place, whoever owns them, sorted."""

    @abstractmethod
    def open(self, name: str) -> Group:
        """The group with this full name, taken as it is."""


def check_limits(memory_mb: int | None, vcpu: float | None) -> None:
    """Refuse limits that are not positive.

    Raises:
        ConfigError: says which.
    """
    if memory_mb is not None and memory_mb <= 0:
        raise ConfigError(f"a memory limit must be positive, not {memory_mb} MiB")
    if vcpu is not None and not (math.isfinite(vcpu) and vcpu > 0):
        raise ConfigError(f"a CPU limit must be positive, not {vcpu} vCPU")


def quota_us(vcpu: float, period_ms: int) -> tuple[int, int]:
    """Quota and period in µs for a share of `vcpu` CPUs.

    The kernel takes no quota under 1 ms, so a small share gets a longer period instead of a larger share.

    Raises:
        ConfigError: the period is not within 1..1000 ms, or the share is under 0.001 CPU.
    """
    period = period_ms * 1000
    if not 1000 <= period <= MAX_PERIOD_US:
        raise ConfigError(f"a CPU period must be within 1 and 1000 ms, not {period_ms} ms")
    if vcpu * period < MIN_QUOTA_US:
        period = math.ceil(MIN_QUOTA_US / vcpu)
    if period > MAX_PERIOD_US:
        raise ConfigError(f"a CPU limit must be at least 0.001 vCPU, not {vcpu}")
    return max(MIN_QUOTA_US, round(vcpu * period)), period
