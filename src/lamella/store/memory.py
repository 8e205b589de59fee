"""The memory tier: segments that are there, room that is promised to loads, and who has to leave for whom.

What must stay is what somebody leases, what is pinned, what a load under way will fill, and what the very model that
asks for room needs. If the rest cannot make room the request is refused before anything left.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

from lamella.errors import StoreFull
from lamella.store.backings import Backing, PageCache
from lamella.store.policies import History, Policy
from lamella.store.records import SegmentRef


class Resident:
    """A segment in memory."""

    __slots__ = ("blob", "descriptor", "leases", "shelved")

    def __init__(self, blob: SegmentRef, descriptor: int) -> None:
        """Takes the descriptor over."""
        self.blob = blob
        self.descriptor = descriptor
        self.leases = 0
        self.shelved = True
        """False once it cannot be leased any more: its memory goes with its last lease."""


class Memory:
    """The tier."""

    def __init__(self, backing: Backing, budget: int | None, policy: Policy) -> None:
        """Empty."""
        self.backing, self.budget, self.policy = backing, budget, policy
        self._sparse: Backing = backing if isinstance(backing, PageCache) else PageCache()
        self.history = History()
        self.residents: dict[str, Resident] = {}
        self.evictions = 0
        self._promised: dict[str, int] = {}
        self._unshelved: set[Resident] = set()

    def backing_of(self, blob: SegmentRef) -> Backing:
        """Where a blob lies: tables that are read by rows in the page cache, where only touched pages take memory."""
        return self._sparse if blob.sparse else self.backing

    @property
    def cached(self) -> int:
        """The part of `used` that is pages of files."""
        held = [r.blob for r in (*self.residents.values(), *self._unshelved)]
        return sum(blob.bytes for blob in held if isinstance(self.backing_of(blob), PageCache))

    @property
    def used(self) -> int:
        """Bytes of segments, and of those that are promised room."""
        held = sum(r.blob.bytes for r in (*self.residents.values(), *self._unshelved))
        return held + sum(self._promised.values())

    def promise(self, blobs: Collection[SegmentRef], keep: Collection[str], now: float) -> None:
        """Make room for blobs, evicting by the policy none that are leased or of `keep`.

        Raises:
            StoreFull: there is none; nothing left.
        """
        for victim in self._victims(sum(b.bytes for b in blobs), set(keep), now):
            self.drop(victim)
            self.evictions += 1
        self._promised.update({b.id: b.bytes for b in blobs})

    def _victims(self, bytes: int, keep: set[str], now: float) -> list[str]:
        if self.budget is None or not bytes:
            return []
        excess = self.used + bytes - self.budget
        free = [r for r in self.residents.values() if not r.leases and r.blob.id not in keep]
        candidates = [self.history.candidate(r.blob.id, r.blob.bytes) for r in free]
        victims: list[str] = []
        while excess > 0:
            victim = self.policy.choose(candidates, now) if candidates else None
            if victim is None:
                raise self._full(bytes, sum(c.bytes for c in candidates))
            candidates.remove(victim)
            victims.append(victim.id)
            excess -= victim.bytes
        return victims

    def _full(self, bytes: int, idle: int) -> StoreFull:
        leased = sum(r.blob.bytes for r in (*self.residents.values(), *self._unshelved) if r.leases)
        kept = f", {idle} idle, which policy {self.policy.name} keeps" if idle else ""
        return StoreFull(
            f"no room in memory for {bytes} bytes: the budget is {self.budget}, {self.used} are used, {leased} of "
            f"them leased{kept}",
            where="the store's memory tier",
            try_="lamella store status; a larger --memory, or fewer pins",
        )

    def withdraw(self, id: str) -> None:
        """Take a promise back."""
        self._promised.pop(id, None)

    def shelve(self, blob: SegmentRef, descriptor: int, now: float, seconds: float) -> None:
        """A blob is in memory now, and took so long to get there."""
        self.withdraw(blob.id)
        self.residents[blob.id] = Resident(blob, descriptor)
        self.history.loaded(blob.id, now, seconds)

    def drop(self, id: str) -> None:
        """Nobody gets this segment any more; its memory is free when nobody leases it."""
        resident = self.residents.pop(id)
        resident.shelved = False
        if resident.leases:
            self._unshelved.add(resident)
        else:
            os.close(resident.descriptor)

    def lease(self, ids: Iterable[str], now: float) -> list[Resident]:
        """Take a lease of each."""
        residents = [self.residents[id] for id in ids]
        for resident in residents:
            resident.leases += 1
            self.history.leased(resident.blob.id, now)
        return residents

    def release(self, residents: Iterable[Resident]) -> None:
        """End them."""
        for resident in residents:
            resident.leases -= 1
            if not resident.leases and not resident.shelved:
                self._unshelved.discard(resident)
                os.close(resident.descriptor)

    def close(self) -> None:
        """Close every descriptor, leased or not: who has mapped one keeps its memory."""
        for resident in (*self.residents.values(), *self._unshelved):
            os.close(resident.descriptor)
        self.residents.clear()
        self._unshelved.clear()
        self._promised.clear()
