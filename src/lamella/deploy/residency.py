"""Which packages' weights are in memory under a budget, and who lets go of how much for whom.

A pure account of names and bytes, without processes: `deploy.host` acts on it. Weights are taken in the order in which
a request uses them, and each package holds the first so many bytes of its own. Who is asked for needs all of them, and
others let go from their ends:

1. first of their tails, as much as a device reads while the rest is being worked on. A request that finds only its
   head in memory takes no longer, so a tail is worth nothing while its owner waits;
2. then of all they have, those first that the policy chooses.

How long a tail is, is learned: from the time of a request that found everything, and the rate at which one that found
nothing was served, which is at most that of the device. Until both are known there are no tails.

Blobs that several packages use count once, for all of them, from when the second one is known until none is: the kernel
keeps them for as long as anybody maps them, whoever lets go.

Rejected: leaving it to the kernel, which takes pages by their age, in halves of models that are asked for next and
of those that are not: it knows no models, and how often they are asked for. Whole models: with memory for 2.7 of them
it has two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from lamella.store.policies import Candidate, History, Policy

HIDDEN = 0.7
"""Of what could be read during a request, what is counted on: the runtime does not use weights at an even rate."""
GRAIN = 2 << 20
"""Who lets go does so by whole huge pages."""
LATEST = 0.3
"""Weight of the latest rate seen."""

Parts = Mapping[str, Sequence[tuple[str, int]]]
"""The functions of a package in the order they run: the id and bytes of each blob, in the order of first use."""


class Leave(NamedTuple):
    """Who lets go."""

    name: str
    keep: dict[str, int]
    """For each function the bytes that stay, from the start of its weights."""


class Residency:
    """Packages and how much of their weights is in memory."""

    def __init__(self, policy: Policy) -> None:
        """`policy` says who is worth least."""
        self._policy = policy
        self._parts: dict[str, Parts] = {}
        self._users: Counter[str] = Counter()
        self._sizes: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self._history = History()
        self._warm_s: dict[str, float] = {}
        self._rate = 0.0

    def __contains__(self, name: str) -> bool:
        """Whether some of its weights are held."""
        return self._held.get(name, 0) > 0

    @property
    def used(self) -> int:
        """Bytes that are held."""
        shared = sum(size for id, size in self._sizes.items() if self._users[id] > 1)
        return shared + sum(min(self._held[n], self.own(n)) for n in self._held)

    def knows(self, name: str) -> bool:
        """Whether its parts are known."""
        return name in self._parts

    def know(self, name: str, parts: Parts) -> None:
        """A package's weights, of which nothing is in memory yet."""
        self.forget(name)
        self._parts[name] = parts
        blobs = {id: size for blobs in parts.values() for id, size in blobs}
        self._users.update(blobs.keys())
        self._sizes.update(blobs)

    def forget(self, name: str) -> None:
        """It is no longer served."""
        self._held.pop(name, None)
        for id in {id for blobs in self._parts.pop(name, {}).values() for id, _ in blobs}:
            self._users[id] -= 1
            if not self._users[id]:
                del self._users[id], self._sizes[id]

    def drop(self, name: str) -> None:
        """Its weights are in memory no longer."""
        self._held.pop(name, None)

    def own(self, name: str) -> int:
        """Bytes that no other package uses."""
        blobs = {id: size for part in self._parts[name].values() for id, size in part}
        return sum(size for id, size in blobs.items() if self._users[id] == 1)

    def missing(self, name: str) -> int:
        """Own bytes that a request would have to bring."""
        return max(0, self.own(name) - self._held.get(name, 0))

    def tail(self, name: str) -> int:
        """Own bytes that come while a request already runs."""
        return int(min(HIDDEN * self._rate * self._warm_s.get(name, 0.0), self.own(name)))

    def use(self, name: str, budget: int, now: float) -> list[Leave]:
        """A request needs all of it: who lets go for that, so that all have `budget` bytes; counted as done."""
        excess = self.used + self.missing(name) - budget
        self._history.leased(name, now)
        self._history.loaded(name, now, float(self.own(name)))  # a device reads all at one rate
        self._held[name] = self.own(name)
        order = list(self._worst_first(name, now)) if excess > 0 else []
        before = dict(self._held)
        for spared in (True, False):
            for other in order:
                head = self.own(other) - self.tail(other) if spared else 0
                cut = min(max(excess, 0), max(0, self._held[other] - head))
                cut = min(-(-cut // GRAIN) * GRAIN, self._held[other])
                self._held[other] -= cut
                excess -= cut
        return [Leave(n, self._kept(n)) for n in order if self._held[n] < before[n]]

    def _worst_first(self, keep: str, now: float) -> Iterator[str]:
        candidates: list[Candidate] = [
            self._history.candidate(n, self.own(n)) for n, held in self._held.items() if held and n != keep
        ]
        while candidates and (worst := self._policy.choose(candidates, now)):
            candidates.remove(worst)
            yield worst.id

    def _kept(self, name: str) -> dict[str, int]:
        """Where its own held bytes end in each function's weights, those of others among them."""
        left, kept = self._held[name], {}
        for function, blobs in self._parts[name].items():
            kept[function] = 0
            for id, size in blobs:
                if left <= 0:
                    break
                kept[function] += min(size, left) if self._users[id] == 1 else size
                left -= size if self._users[id] == 1 else 0
        return kept

    def learn(self, name: str, missing: int, seconds: float) -> None:
        """How long a request ran that found all but so many bytes; of a start's first request nothing is learned."""
        if not missing:
            self._warm_s[name] = min(seconds, self._warm_s.get(name, seconds))
        elif missing == self.own(name):
            seen = missing / max(seconds, 1e-9)
            self._rate = LATEST * seen + (1 - LATEST) * self._rate if self._rate else seen
