"""The plans still in the running: what fails for one of them puts it out with the reason, and the others go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from lamella.errors import (
    ConfigError,
    InfeasiblePlan,
    InputRefused,
    InstanceLost,
    LamellaError,
    ModelError,
    PackageError,
    PlatformLimit,
    WireError,
)

T = TypeVar("T")

OWN_FAULTS = (InfeasiblePlan, PlatformLimit, ModelError, PackageError, InputRefused, InstanceLost, WireError)
"""What is a plan's own failure, be it at planning, packaging, allocating, starting or answering. A misunderstood option
or a full disk is the same for all of them, and a broken law is a bug: these end the comparison."""


class Field:
    """Who is out, and why."""

    def __init__(self) -> None:
        """Nobody is out yet."""
        self.failed: dict[str, str] = {}
        self._last: LamellaError | None = None

    def each(self, names: Iterable[str], do: Callable[[str], T], tick: Callable[[float, str], None]) -> dict[str, T]:
        """What `do` gives for each plan it does not fail for, in order.

        Args:
            names: of the plans.
            do: one step for one plan.
            tick: told before each of them: the share of them that is done, and the plan's name.

        Raises:
            LamellaError: the last failure, when none is left.
        """
        found = {}
        todo = list(names)
        for k, name in enumerate(todo):
            tick(k / len(todo), name)
            try:
                found[name] = do(name)
            except OWN_FAULTS as error:
                self.lose(name, error)
        self.check(found)
        return found

    def lose(self, name: str, error: LamellaError) -> None:
        """A plan is out."""
        self.failed[name] = str(error)
        self._last = error

    def check(self, left: Iterable[str]) -> None:
        """Raise the last failure when no plan is left."""
        if not list(left):
            raise self._last or ConfigError("no planner is named", try_="--planners ort,single,mopar")
