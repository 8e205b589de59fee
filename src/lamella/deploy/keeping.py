"""What is kept alive under a budget, and who leaves first: least recently used.

A pure account of names and megabytes, without processes: `deploy.host` acts on it, and so does the benchmark's
baseline, so that both evict by the same rule.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator


class Keeping:
    """Names in the order of their last use, each with what it holds."""

    def __init__(self, budget_mb: float) -> None:
        """`budget_mb` is for all of them together."""
        self.budget_mb = budget_mb
        self._held: OrderedDict[str, float] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def __iter__(self) -> Iterator[str]:
        """The one used longest ago first."""
        return iter(tuple(self._held))

    @property
    def used_mb(self) -> float:
        """What all of them hold."""
        return sum(self._held.values())

    def use(self, name: str, held_mb: float | None = None) -> None:
        """Make it the last used; `held_mb` is what it holds now, as before where it is not given."""
        self._held[name] = self._held.get(name, 0.0) if held_mb is None else held_mb
        self._held.move_to_end(name)

    def drop(self, name: str) -> None:
        """It is alive no longer."""
        self._held.pop(name, None)

    def leaving(self, need_mb: float = 0.0, keep: str = "", last: Collection[str] = ()) -> list[str]:
        """Who has to leave so that `need_mb` more fit, longest unused first, those of `last` after all others.

        `keep` never leaves.

        All others, where that is not enough either.
        """
        excess, chosen = self.used_mb + need_mb - self.budget_mb, []
        for name, held_mb in sorted(self._held.items(), key=lambda each: each[0] in last):  # in order else
            if excess <= 0:
                break
            if name != keep:
                chosen.append(name)
                excess -= held_mb
        return chosen
