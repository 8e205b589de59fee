"""What was measured in some minutes, at the machine's usual pace: what the history says now.

Times are kept at the pace of the minutes in which they were taken. They are scaled whenever a profile is asked for, for
the history grows: on a new machine the usual pace is that of the first minutes, which may be slow or quick ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from lamella.graph.model import Graph
from lamella.profile.document import Noise, Pace, ShardProfile, Variant, Work
from lamella.profile.pace import History, at_pace, mixed, works
from lamella.profile.steps import State, Timed
from lamella.profile.timing import Span


def at_usual(graph: Graph, units: Sequence[Span], state: State, history: History) -> State:
    """What was measured, scaled; of a thread count that the history does not know, as it is."""
    factors = {t.variant: _factors(graph, units, t, history) for t in state.timed}
    assert state.hop
    assert state.calls_ms
    return msgspec.structs.replace(
        state,
        hop=at_pace(state.hop, state.calls_ms, usual_pace(state, history)),
        timed=tuple(_scaled(t, factors[t.variant]) for t in state.timed),
        shards={key: tuple(_shard(s, state, factors) for s in found) for key, found in state.shards.items()},
    )


def usual_pace(state: State, history: History) -> Pace:
    """On one thread; that of the rounds where nothing else is known."""
    return history.usual() or state.timed[0].pace


def noise(graph: Graph, units: Sequence[Span], state: State, history: History) -> Noise:
    """What the machine did meanwhile, and how far it varies at all."""
    assert state.rounds
    plain = state.timed[0]
    likes = works(graph, units, plain.variant.batch)
    parts = [*zip(plain.paused_ms or plain.median_ms, likes, strict=True), _serving(graph, state)]
    return Noise.of(state.loads, state.rounds, history.spread(mixed(parts), plain.variant.threads))


def _factors(graph: Graph, units: Sequence[Span], timed: Timed, history: History) -> np.ndarray:
    """Of each unit."""
    variant, usual = timed.variant, history.usual(timed.variant.threads) or timed.pace
    return np.array([usual.over(timed.pace, work) for work in works(graph, units, variant.batch)])


def _scaled(timed: Timed, factors: np.ndarray) -> Timed:
    def scaled(times: Sequence[float]) -> tuple[float, ...]:
        found: tuple[float, ...] = tuple((np.array(times) * factors[: len(times)]).tolist())
        return found

    return msgspec.structs.replace(
        timed,
        median_ms=scaled(timed.median_ms),
        p95_ms=scaled(timed.p95_ms),
        saving_ms=scaled(timed.saving_ms),
        cpu_ms=scaled(timed.cpu_ms),
        paused_ms=scaled(timed.paused_ms),
        paused_p95_ms=scaled(timed.paused_p95_ms),
    )


def _shard(shard: ShardProfile, state: State, factors: dict[Variant, np.ndarray]) -> ShardProfile:
    """As its units, to whose times it was scaled when it was measured."""
    variant = Variant(shard.batch, shard.layout, 1)
    timed = next(t for t in state.timed if t.variant == variant)
    times = np.array(timed.median_ms[shard.first : shard.last])
    factor = float(times @ factors[variant][shard.first : shard.last] / times.sum())
    return msgspec.structs.replace(
        shard,
        parts=tuple(msgspec.structs.replace(part, run_ms=factor * part.run_ms) for part in shard.parts),
        stage_ms=factor * shard.stage_ms,
        deviation_ms=factor * shard.deviation_ms,
    )


def _serving(graph: Graph, state: State) -> tuple[float, Work]:
    """What a request to the whole model takes beside its operators, ms."""
    assert state.hop
    hop = state.hop.warm
    tensors = len(graph.inputs) + len(graph.outputs) - 2
    return hop.entry_ms + hop.fixed_ms + hop.call_ms + tensors * hop.entry_tensor_ms, Work(calls=1.0)
