"""Divide a chain of units at least cost: label setting with Pareto pruning, a front at a time.

State: a cut position, how many stages stand before it, and the sharded stage, if one ends there, whose parts are not
joined yet: what joins them is part of what comes next. A label carries latency and cost; one that is beaten in both is
dropped. Exact under the model: costs and latencies add along the chain, rounding happens inside a function. The
reference in the tests is brute force over all divisions.

The labels of a state are arrays and are made in one sweep: with sixteen stages over the units of gpt2-medium, one label
at a time took 25 s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from lamella.plan.choice import Choice, Join
from lamella.plan.planners.pareto import undominated

NEAR = 0.01
"""Plans within this share of the least cost count as equally cheap."""
ROUNDING = 1 - 1e-9
"""Of bounds, which are sums in another order."""


class Priced(Protocol):
    """What has a latency and a cost."""

    @property
    def latency_ms(self) -> float:
        """End to end."""

    @property
    def cost_usd(self) -> float:
        """Per request."""


P = TypeVar("P", bound=Priced)


class Step(NamedTuple):
    """What one more slice takes: stages, and the time (ms) and price (USD) of the hop to it and of its run."""

    stages: int
    hop_ms: float
    hop_usd: float
    run_ms: float
    run_usd: float


class Label(NamedTuple):
    """A way to reach a position: its front in `at`, and where in it. Ordered by latency, then cost."""

    latency_ms: float
    cost_usd: float
    front: Front
    at: int

    def chain(self) -> list[Choice]:
        """The choices from the first stage to here."""
        made: list[Choice] = []
        front, at = self.front, self.at
        while front.sources:
            source, at = int(front.source[at]), int(front.before[at])
            front, choice = front.sources[source]
            if choice:
                made.append(choice)
        return made[::-1]

    def __hash__(self) -> int:
        """Of the object: fronts are arrays."""
        return id(self)

    def __eq__(self, other: object) -> bool:
        """Whether it is the same."""
        return self is other


class Front(NamedTuple):
    """Labels of one state, none beaten in both latency and cost; by latency."""

    latency_ms: np.ndarray
    cost_usd: np.ndarray
    source: np.ndarray
    """Of each label, which of `sources` it was made from,"""
    before: np.ndarray
    """and which label there."""
    sources: Sequence[tuple[Front, Choice | None]]
    """Fronts and the choice that was added to them; empty at the begin."""

    @property
    def labels(self) -> list[Label]:
        """One by one."""
        pairs = zip(self.latency_ms.tolist(), self.cost_usd.tolist(), strict=True)
        return [Label(ms, usd, self, at) for at, (ms, usd) in enumerate(pairs)]


class _State(NamedTuple):
    """What has been found for one position, stage count and open join, before the beaten ones are dropped."""

    sources: list[tuple[Front, Choice | None]]
    latency_ms: list[np.ndarray]
    cost_usd: list[np.ndarray]

    def add(self, front: Front, choice: Choice | None, step: Step) -> None:
        """The labels of a front, one step further."""
        self.sources.append((front, choice))
        self.latency_ms.append(front.latency_ms + step.hop_ms + step.run_ms)
        self.cost_usd.append(front.cost_usd + step.hop_usd + step.run_usd)

    def front(self, cap_ms: float, cap_usd: float) -> Front | None:
        """The labels within the caps that no other beats."""
        latency, cost = np.concatenate(self.latency_ms), np.concatenate(self.cost_usd)
        counts = [len(x) for x in self.latency_ms]
        source = np.repeat(np.arange(len(counts)), counts)
        before = np.concatenate([np.arange(n) for n in counts])
        kept = undominated(cost, latency)
        kept = kept[(latency[kept] <= cap_ms) & (cost[kept] <= cap_usd)]
        return Front(latency[kept], cost[kept], source[kept], before[kept], self.sources) if len(kept) else None


def divide(
    positions: Sequence[int],
    choices: Callable[[int, int], Sequence[Choice]],
    step: Callable[[Join | None, Choice | None], Step | None],
    *,
    entry_ms: float,
    max_stages: int,
    cap_ms: float = math.inf,
    cap_usd: float = math.inf,
) -> dict[int, Front]:
    """For each number of stages the Pareto front of whole divisions within the caps.

    Args:
        positions: unit indices where a stage may begin or end, first and last included, ascending.
        choices: ways to run units i to j-1.
        step: what a choice takes, the hop to it included, behind parts that it has to join, or none; without a choice
            what joining them at the end of the chain takes. None where that cannot be. Never less behind parts.
        entry_ms: time before the first stage.
        max_stages: at most so many stages.
        cap_ms: latency that no plan may exceed.
        cap_usd: cost that no plan may exceed.
    """
    ways = {(i, j): choices(i, j) for i, j in combinations(positions, 2)}
    rest_ms, rest_usd = _least(positions, ways, step)
    origin = Front(np.array([entry_ms]), np.zeros(1), np.zeros(1, int), np.zeros(1, int), ())
    at: dict[int, dict[tuple[int, Join | None], Front]] = {positions[0]: {(0, None): origin}}
    for number, end in enumerate(positions[1:], 1):
        found: dict[tuple[int, Join | None], _State] = {}
        for begin in positions[:number]:
            for join in {join for _, join in at[begin]}:
                taken = [(way, made) for way in ways[begin, end] if (made := step(join, way))]
                for (stages, open_), labels in at[begin].items():
                    for way, made in taken if open_ == join else ():
                        if stages + made.stages <= max_stages:
                            key = (stages + made.stages, way.join)
                            found.setdefault(key, _State([], [], [])).add(labels, way, made)
        left_ms, left_usd = cap_ms - rest_ms[end] * ROUNDING, cap_usd - rest_usd[end] * ROUNDING
        at[end] = {key: front for key, state in found.items() if (front := state.front(left_ms, left_usd))}
    whole: dict[int, _State] = {}
    for (stages, open_), labels in at[positions[-1]].items():
        last = step(open_, None) if open_ else Step(0, 0.0, 0.0, 0.0, 0.0)
        if last and stages + last.stages <= max_stages:
            whole.setdefault(stages + last.stages, _State([], [], [])).add(labels, None, last)
    return {k: front for k in sorted(whole) if (front := whole[k].front(cap_ms, cap_usd))}


def _least(
    positions: Sequence[int],
    ways: Mapping[tuple[int, int], Sequence[Choice]],
    step: Callable[[Join | None, Choice | None], Step | None],
) -> tuple[dict[int, float], dict[int, float]]:
    """The least latency, and the least cost, from each position to the end; with any number of stages."""
    rest_ms, rest_usd = {positions[-1]: 0.0}, {positions[-1]: 0.0}
    for number in range(len(positions) - 2, -1, -1):
        begin = positions[number]
        steps = [(made, end) for end in positions[number + 1 :] for w in ways[begin, end] if (made := step(None, w))]
        rest_ms[begin] = min((m.hop_ms + m.run_ms + rest_ms[end] for m, end in steps), default=math.inf)
        rest_usd[begin] = min((m.hop_usd + m.run_usd + rest_usd[end] for m, end in steps), default=math.inf)
    return rest_ms, rest_usd


def cheapest(plans: Iterable[P], near: float = NEAR) -> P | None:
    """Of the plans within a share of the least cost the one with the least cost x latency; None where there is none.

    So a percent more of cost has to bring a percent less of latency.
    """
    plans = list(plans)
    if not plans:
        return None
    least = min(plan.cost_usd for plan in plans)
    close = [plan for plan in plans if plan.cost_usd <= least * (1 + near)]
    return min(close, key=lambda x: (x.latency_ms * x.cost_usd, x.latency_ms, x.cost_usd))
