"""Divide a chain of units at least cost under a latency cap: label setting with Pareto pruning.

State: a cut position and how many stages stand before it. A label carries cost and latency; one that is beaten in both
is dropped. Exact under the model: costs and latencies add along the chain, rounding happens inside a function. The
reference in the tests is brute force over all divisions.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lamella.plan.predict import Choice

NEAR = 0.01
"""Plans within this share of the least cost count as equally cheap; the fastest of them is taken."""


class Label(NamedTuple):
    """A way to reach a position. Ordered by latency, then cost."""

    latency_ms: float
    cost_usd: float
    choice: Choice | None
    before: Label | None

    def chain(self) -> list[Choice]:
        """The choices from the first stage to here."""
        made: list[Choice] = []
        label: Label | None = self
        while label and label.choice:
            made.append(label.choice)
            label = label.before
        return made[::-1]


class Front:
    """Labels of one state, none beaten in both latency and cost."""

    def __init__(self) -> None:
        """Empty."""
        self._times: list[float] = []
        self.labels: list[Label] = []

    def add(self, label: Label) -> bool:
        """Keep the label unless one at least as fast is at least as cheap; drop those it beats."""
        at = bisect_left(self._times, label.latency_ms)
        if at < len(self._times) and self._times[at] == label.latency_ms and self.labels[at].cost_usd <= label.cost_usd:
            return False
        if at and self.labels[at - 1].cost_usd <= label.cost_usd:
            return False
        end = at
        while end < len(self.labels) and self.labels[end].cost_usd >= label.cost_usd:
            end += 1
        self.labels[at:end] = [label]
        self._times[at:end] = [label.latency_ms]
        return True


def divide(
    positions: Sequence[int],
    choices: Callable[[int, int], list[Choice]],
    hop: Callable[[int], tuple[float, float]],
    *,
    entry_ms: float,
    cap_ms: float,
    max_stages: int,
) -> dict[int, Front]:
    """For each number of stages the Pareto front of whole divisions within the cap.

    Args:
        positions: unit indices where a stage may begin or end, first and last included, ascending.
        choices: ways to run units i to j-1.
        hop: time (ms) and price (USD) of dividing before a unit.
        entry_ms: time before the first stage.
        cap_ms: latency that no plan may exceed.
        max_stages: at most so many stages.
    """
    at: dict[tuple[int, int], Front] = {(0, 0): Front()}
    at[0, 0].add(Label(entry_ms, 0.0, None, None))
    cache: dict[tuple[int, int], list[Choice]] = {}
    for end in range(1, len(positions)):
        for begin in range(end):
            span = (positions[begin], positions[end])
            ways = cache.setdefault(span, choices(*span))
            hop_ms, hop_usd = hop(positions[begin]) if begin else (0.0, 0.0)
            for stages in range(max_stages):
                front = at.get((begin, stages))
                if front is None or not ways:
                    continue
                target = at.setdefault((end, stages + 1), Front())
                for label in front.labels:
                    for way in ways:
                        latency = label.latency_ms + hop_ms + way.run_ms
                        if latency <= cap_ms:
                            target.add(Label(latency, label.cost_usd + hop_usd + way.cost_usd, way, label))
    final = len(positions) - 1
    return {k: at[final, k] for k in range(1, max_stages + 1) if (final, k) in at and at[final, k].labels}


def cheapest(fronts: dict[int, Front]) -> Label | None:
    """The fastest of the labels within 1 % of the least cost; None where nothing is feasible."""
    labels = [label for front in fronts.values() for label in front.labels]
    if not labels:
        return None
    least = min(label.cost_usd for label in labels)
    near = [label for label in labels if label.cost_usd <= least * (1 + NEAR)]
    return min(near, key=lambda label: (label.latency_ms, label.cost_usd))
