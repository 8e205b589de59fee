"""One way to run a slice, priced: what planners choose among."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lamella.graph.divide import ShardSpan
from lamella.runtime.function import Layout


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to run a slice: units `first` to `last - 1`. MB, ms, USD per run.

    Sharded, memory and CPU are those of the largest shard, `run_ms` and `cost_usd` those of all; what joins their parts
    is in neither, since it is done by what comes next.
    """

    first: int
    last: int
    memory_mb: int
    vcpu: float
    threads: int
    layout: Layout
    peak_mb: float
    floor_mb: float
    run_ms: float
    cost_usd: float
    shards: tuple[Shard, ...] = ()
    span: ShardSpan | None = None
    at_once: int = 1
    fan_out_ms: float = 0.0
    """What sending to several shards takes more than to one."""
    join: Join | None = None
    """What is left to do for whoever comes next; none where the stage is not sharded."""
    deviation_ms: float = 0.0
    """Of a sharded stage's time, as measured."""


class Join(NamedTuple):
    """Joining the parts of a sharded stage, and the operators after its span. ms, MB."""

    first: int
    """First operator after the span,"""
    unit: int
    """and the unit before which the stage ends."""
    ms: float
    mb: float


class Shard(NamedTuple):
    """One of the functions of a sharded stage. MB, ms, USD per run."""

    memory_mb: int
    peak_mb: float
    floor_mb: float
    run_ms: float
    cost_usd: float
