"""From what was measured of a model to what was not: other thread counts, other batches.

Threads: Amdahl's law between one thread and the most that were measured. Its ceiling is the machine's own, since
products that wait for memory have stopped growing at the measured count. Beyond that count nothing is gained here:
nobody has seen where memory ends. Batches: a line through the measured ones nearest; from one batch alone the time is
proportional, which is too much, never too little, as weights are read once for all rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from lamella.errors import ConfigError
from lamella.graph.model import Graph
from lamella.profile.document import BatchLive, CutProfile, Profile, Saving, Timing, Unit, Variant
from lamella.units import MB


def amdahl(one_ms: float, most_ms: float, most: int, threads: int) -> float:
    """Time on some threads from that on one and on `most` (Amdahl 1967: serial share + parallel share / threads)."""
    if most == 1 or threads == 1:
        return one_ms
    parallel = min(1.0, max(0.0, (1 - most_ms / one_ms) / (1 - 1 / most))) if one_ms else 0.0
    return one_ms * (1 - parallel + parallel / min(threads, most))


def line(known: Sequence[tuple[int, float]], batch: int) -> float:
    """A figure at a batch from those at others: through the two nearest, never falling; from one in proportion."""
    if len(known) == 1:
        return known[0][1] * batch / known[0][0]
    ordered = sorted(known)
    place = min(max(1, int(np.searchsorted([b for b, _ in ordered], batch))), len(ordered) - 1)
    (a, low), (b, high) = ordered[place - 1], ordered[place]
    slope = max(0.0, (high - low) / (b - a))
    return max(0.0, low + slope * (batch - a))


def at(profile: Profile, graph: Graph, *, batch: int, threads: int) -> Profile:
    """The profile with a variant more, where it was not measured: every planner then prices it.

    Args:
        profile: of the model; holds batch 1 on one thread.
        graph: the model.
        batch: rows of a request.
        threads: intra-op, for batch 1 (planners scale larger batches as batch 1 scales).

    Raises:
        ConfigError: no request can be so large: the model's batch axis is bound.
    """
    if batch > 1 and not graph.batchable:
        raise ConfigError(f"batch {batch} needs a free batch axis, {graph.name} has none")
    layouts = list(dict.fromkeys(v.layout for v in profile.variants))
    wanted = [Variant(1, layout, threads) for layout in layouts] + [Variant(batch, layout, 1) for layout in layouts]
    missing = [v for v in dict.fromkeys(wanted) if v not in profile.variants]
    if not missing:
        return profile
    return msgspec.structs.replace(
        profile,
        units=tuple(_unit(unit, graph, missing) for unit in profile.units),
        cuts=tuple(_cut(cut, missing) for cut in profile.cuts),
    )


def _unit(unit: Unit, graph: Graph, missing: Sequence[Variant]) -> Unit:
    known = {t.variant: t for t in unit.times}
    times = list(unit.times)
    for v in missing:
        like = known[msgspec.structs.replace(v, batch=1, threads=1)]
        times.append(
            Timing(
                v,
                _scaled({k: t.median_ms for k, t in known.items()}, v),
                _scaled({k: t.p95_ms for k, t in known.items()}, v),
                like.shared,
            )
        )
    held = {live.batch for live in unit.lives}
    lives = [_live(unit, graph, b) for b in sorted({v.batch for v in missing}) if b > 1 and b not in held]
    return msgspec.structs.replace(unit, times=tuple(times), lives=(*unit.lives, *lives))


def _scaled(known: dict[Variant, float], asked: Variant) -> float:
    if asked.threads > 1:
        same = {v.threads: ms for v, ms in known.items() if (v.batch, v.layout) == (1, asked.layout)}
        return amdahl(same[1], same[max(same)], max(same), asked.threads)
    same = {v.batch: ms for v, ms in known.items() if (v.threads, v.layout) == (1, asked.layout)}
    return line(list(same.items()), asked.batch)


def _live(unit: Unit, graph: Graph, batch: int) -> BatchLive:
    """Live memory: what was measured at the nearest batch, and what tensors take more."""
    lives = {1: unit.memory[0].live_mb, **{live.batch: live.live_mb for live in unit.lives}}
    near = min(lives, key=lambda b: (abs(b - batch), -b))
    more = graph.live_bytes(unit.first, unit.last, batch) - graph.live_bytes(unit.first, unit.last, near)
    return BatchLive(batch, max(0.0, lives[near] + more / MB))


def _cut(cut: CutProfile, missing: Sequence[Variant]) -> CutProfile:
    known = {s.variant: s for s in cut.savings}
    savings = list(cut.savings)
    for v in missing:
        like = known[msgspec.structs.replace(v, batch=1, threads=1)]
        savings.append(Saving(v, _scaled({k: max(0.0, s.ms) for k, s in known.items()}, v), like.shared))
    return msgspec.structs.replace(cut, savings=tuple(savings))
