"""What leaves memory first: pure choices among the segments that may leave.

A policy is a frozen value with a name. It is asked again after every victim until there is room.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from lamella.errors import ConfigError

REMEMBERED = 16
"""Uses of a segment whose times are kept."""
SEGMENTS = 4096
"""Segments whose use is remembered, those that left memory too."""


class Candidate(NamedTuple):
    """A segment that nobody leases, needs or has pinned. Times are the store's clock, s."""

    id: str
    bytes: int
    last: float
    """When it was last leased, or loaded."""
    uses: int
    """How often it was leased."""
    recent: tuple[float, ...]
    """When, at most the last `REMEMBERED` times, oldest first."""
    reload_s: float
    """How long it took to load."""


class Policy(Protocol):
    """Chooses who leaves."""

    @property
    def name(self) -> str:
        """What the settings call it."""

    def choose(self, candidates: Sequence[Candidate], now: float) -> Candidate | None:
        """Who leaves next, of at least one; None where nobody shall."""


@dataclass(frozen=True, slots=True)
class Lru:
    """The one used longest ago."""

    name: str = "lru"

    def choose(self, candidates: Sequence[Candidate], now: float) -> Candidate | None:
        """See `Policy`."""
        return min(candidates, key=lambda c: (c.last, c.id))


@dataclass(frozen=True, slots=True)
class Lfu:
    """The one used least often; among those, longest ago."""

    name: str = "lfu"

    def choose(self, candidates: Sequence[Candidate], now: float) -> Candidate | None:
        """See `Policy`."""
        return min(candidates, key=lambda c: (c.uses, c.last, c.id))


@dataclass(frozen=True, slots=True)
class CostAware:
    """The one whose bytes save least: reload cost × chance of reuse, per byte that its leaving frees.

    The chance is the rate of the remembered uses, which falls while a segment is not used.
    """

    name: str = "cost-aware"

    def choose(self, candidates: Sequence[Candidate], now: float) -> Candidate | None:
        """See `Policy`."""
        return min(candidates, key=lambda c: (self.worth(c, now), c.last, c.id))

    def worth(self, candidate: Candidate, now: float) -> float:
        """Seconds of loading that a byte of it saves per second."""
        since = now - (candidate.recent[0] if candidate.recent else candidate.last)
        rate = len(candidate.recent) / (max(since, 0.0) + 1.0)
        return candidate.reload_s * rate / max(candidate.bytes, 1)


@dataclass(frozen=True, slots=True)
class Never:
    """Nobody: what does not fit is refused."""

    name: str = "never"

    def choose(self, candidates: Sequence[Candidate], now: float) -> Candidate | None:
        """See `Policy`."""
        return None


POLICIES: dict[str, Policy] = {p.name: p for p in (Lru(), Lfu(), CostAware(), Never())}


def policy(name: str) -> Policy:
    """The policy of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in POLICIES:
        raise ConfigError(f"there is no eviction policy {name!r}", try_=f"one of {', '.join(POLICIES)}")
    return POLICIES[name]


class _Uses:
    __slots__ = ("count", "last", "recent", "reload_s")

    def __init__(self) -> None:
        self.last = float("-inf")
        self.count = 0
        self.recent: deque[float] = deque(maxlen=REMEMBERED)
        self.reload_s = 0.0


class History:
    """How segments were used: the last `REMEMBERED` times of the last `SEGMENTS` of them."""

    def __init__(self) -> None:
        """Nothing was used yet."""
        self._uses: OrderedDict[str, _Uses] = OrderedDict()

    def loaded(self, id: str, now: float, seconds: float) -> None:
        """It was brought into memory, which took so long."""
        uses = self._of(id)
        uses.last, uses.reload_s = now, seconds

    def leased(self, id: str, now: float) -> None:
        """Somebody leased it."""
        uses = self._of(id)
        uses.last = now
        uses.count += 1
        uses.recent.append(now)

    def candidate(self, id: str, bytes: int) -> Candidate:
        """A segment as policies see it."""
        uses = self._uses.get(id) or _Uses()
        return Candidate(id, bytes, uses.last, uses.count, tuple(uses.recent), uses.reload_s)

    def _of(self, id: str) -> _Uses:
        uses = self._uses.setdefault(id, _Uses())
        self._uses.move_to_end(id)
        while len(self._uses) > SEGMENTS:
            self._uses.popitem(last=False)
        return uses
