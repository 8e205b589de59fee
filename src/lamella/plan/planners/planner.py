"""What every planner is: a pure function of a priced model, a frozen value with a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from lamella.plan.choice import Choice
from lamella.plan.document import Orders
from lamella.plan.pricing.coding import Coding
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request


class Candidate(NamedTuple):
    """A division with its total by the model."""

    name: str
    choices: tuple[Choice, ...]
    latency_ms: float
    cost_usd: float


class Decision(NamedTuple):
    """What a planner chose, why, and what it turned down with the reason."""

    chosen: Candidate
    why: str
    losers: tuple[tuple[Candidate, str], ...]
    codings: Mapping[int, Coding] | None = None
    """Codecs of the hops, by the unit behind them, where the planner chose them; else the quickest of each hop."""
    percentile: float | None = None
    """Of latency, that was held to the bound; none: its mean."""
    size_mb: int | None = None
    """Of every function, where they are all of one size."""
    orders: Orders | None = None
    """What plans in another order of units could save, where the planner says it."""
    gap: float | None = None
    """Share of the cheapest plan's cost that one within the same bounds may save, where the planner proves it."""


class Planner(Protocol):
    """Decides how to divide."""

    @property
    def name(self) -> str:
        """What the command line and the plan call it."""

    @property
    def shards(self) -> bool:
        """Whether it takes stages of parallel shards."""

    @property
    def codes(self) -> bool:
        """Whether it chooses the codec of each hop, and between shards and codecs: else each hop gets its quickest."""

    @property
    def holds(self) -> bool:
        """Whether it keeps a percentile and a budget and chooses rows per run: else `plan.held` keeps the first."""

    def decide(self, model: SliceModel, request: Request) -> Decision:
        """The division to use; InfeasiblePlan with the nearest feasible one where the request cannot be met."""
