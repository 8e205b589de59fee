"""The profile: what was measured of a model on a machine, per unit and per cut. Times in ms, memory in MB (MiB)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from lamella.documents import Document
from lamella.graph.divide import ShardSpan
from lamella.machine import Machine
from lamella.profile.quiet import Load
from lamella.runtime.function import Layout
from lamella.units import MB


class Variant(msgspec.Struct, frozen=True):
    """A way to run a unit. One thread means one vCPU; below one vCPU time follows from the CPU time."""

    batch: int
    layout: Layout
    threads: int


class Timing(msgspec.Struct, frozen=True):
    """Time of one run of a unit by itself, its input just made, its weights as cold as in the whole model."""

    variant: Variant
    median_ms: float
    p95_ms: float
    shared: bool = False
    """The plain layout's: nothing of the unit would lie otherwise in this one."""
    paused_ms: float | None = None
    """Median behind a pause,"""
    paused_p95_ms: float | None = None
    """and that; measured of models that are over in `profile.timing.SHORT_MS`, to longer ones a pause does nothing."""
    cpu_ms: float | None = None
    """CPU time of all threads, where they are several: what a quota counts."""

    def behind(self, *, pause: bool) -> tuple[float, float]:
        """Median and 95th percentile, of a request that comes at once or behind a pause, ms."""
        if pause and self.paused_ms is not None and self.paused_p95_ms is not None:
            return self.paused_ms, self.paused_p95_ms
        return self.median_ms, self.p95_ms


class UnitMemory(msgspec.Struct, frozen=True):
    """What a process holding only this unit adds to the runtime floor, at batch 1, with its weights in one layout."""

    layout: Layout
    weights_mb: float
    """Resident part of the mapped weights after runs."""
    private_mb: float
    """Anonymous memory added by loading: session, and copies of weights where prepacked."""
    live_mb: float
    """Peak beyond that while running: activations, workspace, code pages, hop buffers."""
    load_extra_mb: float
    """Peak of loading beyond what stays."""
    load_ms: float = 0.0
    """Opening the session with its files in the page cache."""
    read_ms: float = 0.0
    """What it takes more when they have to come from disk; measured where prepacking copies."""
    weight_bytes: int | None = None
    """Of its files, where they are not the model's own (int8)."""


class BatchLive(msgspec.Struct, frozen=True):
    """`UnitMemory.live_mb` of a larger batch, which depends on the layout even less."""

    batch: int
    live_mb: float


class QuotaTime(msgspec.Struct, frozen=True):
    """A unit's mean time under a CPU quota below one vCPU (10 ms period), beside its free time, ms."""

    vcpu: float
    free_ms: float
    throttled_ms: float


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """The smallest run of operators the planner will not divide: operators `first` to `last - 1`."""

    first: int
    last: int
    kinds: str
    flops: int
    weight_bytes: int
    live_bytes: int
    times: tuple[Timing, ...] = ()
    memory: tuple[UnitMemory, ...] = ()
    """By layout, plain first; blocked and int8 only where some product of it is: else it is the plain one."""
    lives: tuple[BatchLive, ...] = ()
    """Of the batches above 1 that were measured."""
    quotas: tuple[QuotaTime, ...] = ()
    """Empty where quotas cannot be enforced."""
    int8: tuple[str, ...] = ()
    """What its products that can run on 8-bit integers give; measured where that was asked for."""

    def memory_in(self, layout: Layout) -> UnitMemory:
        """What it was measured to hold in a layout; plain where that is the same."""
        return next((m for m in self.memory if m.layout == layout), self.memory[0])


class Saving(msgspec.Struct, frozen=True):
    """What running the two units beside a cut in one session saves against two (reorders, fusions, call)."""

    variant: Variant
    ms: float
    shared: bool = False
    """The plain layout's."""


class CodecResult(msgspec.Struct, frozen=True):
    """A codec on the real activations that cross a cut."""

    codec: str
    batch: int
    ratio: float
    encode_ms: float
    decode_ms: float
    max_rel: float
    """Largest error over the range of the tensor."""


class CutProfile(msgspec.Struct, frozen=True, kw_only=True):
    """A planning cut: what crosses and what it costs to divide there."""

    position: int
    tensors: tuple[str, ...]
    side: tuple[str, ...]
    bytes: int
    savings: tuple[Saving, ...] = ()
    codecs: tuple[CodecResult, ...] = ()


class ShardPart(msgspec.Struct, frozen=True):
    """One shard, measured in a process of its own."""

    run_ms: float
    """Billed: from its request to its answer."""
    peak_mb: float
    """VmHWM."""
    weights_mb: float


class ShardProfile(msgspec.Struct, frozen=True):
    """Units `first` to `last - 1` divided among parallel shards."""

    first: int
    last: int
    span: ShardSpan
    """The operators that are divided; those after them, up to the last unit's end, run with the join."""
    at_once: int
    """How many were busy at a time: on one memory bus that changes their times."""
    batch: int
    parts: tuple[ShardPart, ...]
    stage_ms: float
    """From the first shard's request to the last one's answer, hops included."""
    join_ms: float
    """Time of joining the parts and of the operators after it, in the function that comes next."""
    join_mb: float
    """What that function holds more for it: the parts and the whole."""
    layout: Layout = "plain"
    """Of their weights; they are not tried blocked."""
    deviation_ms: float = 0.0
    """Standard deviation of the stage's time."""


class Floor(msgspec.Struct, frozen=True):
    """A worker without a model: resident MB after imports, and the start of its process, ms."""

    resident_mb: float
    anonymous_mb: float
    start_ms: float


class HopCost(msgspec.Struct, frozen=True):
    """What serving takes beyond the operators, on shared memory; ms."""

    entry_ms: float
    """Per request: checking it, making its answer."""
    entry_mb_ms: float
    """Per MB of request and answer, which are copied in and out."""
    fixed_ms: float
    """Per function: what the driver does between two of them."""
    call_ms: float
    """Per function and billed: waking it, reading the request, the answer's way back."""
    entry_tensor_ms: float = 0.0
    """Per tensor of request and answer beyond the first of each,"""
    call_tensor_ms: float = 0.0
    """and what that takes the function, billed."""
    deviation_ms: float = 0.0
    """Standard deviation of all this for a function, however short its work."""


class HopCosts(msgspec.Struct, frozen=True):
    """The price of serving, which depends on how cold a request leaves the caches, and on what was before it.

    Little while driver and functions stay in them, several times that when they are read anew every time, or behind a
    pause.
    """

    warm: HopCost
    """Functions that do next to nothing."""
    cold: HopCost
    """Functions that touch `cold_mb` per request."""
    cold_mb: float
    paused: HopCost
    """Behind a pause: cores and processes have to wake up, and caches are cold."""

    def coldness(self, touched_mb: float) -> float:
        """How much of the price is that in cold caches, 0 to 1, where a request touches so much memory."""
        return min(1.0, touched_mb / self.cold_mb)

    def at(self, touched_mb: float) -> HopCost:
        """The price where a request touches so much memory; linear in between (measurements: decision 9)."""
        share = self.coldness(touched_mb)
        pairs = zip(msgspec.structs.astuple(self.warm), msgspec.structs.astuple(self.cold), strict=True)
        return HopCost(*((1 - share) * a + share * b for a, b in pairs))


class ChannelPrice(Document, frozen=True, kw_only=True):
    """What a channel takes more than shared memory, on a machine; ms, billed where not said otherwise."""

    channel: str
    machine: Machine
    edge_ms: float
    """Per request: half with the first function, half with the last."""
    edge_mb_ms: float
    """Per MB of request and answer."""
    hop_ms: float
    """Per hop: half with who gives what crosses, half with who takes it."""
    hop_mb_ms: float
    """Per MB that crosses."""
    fixed_ms: float
    """Per hop and not billed: what the driver does."""

    def transfer_ms(self, size: int) -> float:
        """Of so many bytes over a hop."""
        return self.hop_ms + self.hop_mb_ms * size / MB

    def edge_half_ms(self, size: int) -> float:
        """Of a request or an answer of so many bytes."""
        return self.edge_ms / 2 + self.edge_mb_ms * size / MB


class Work(NamedTuple):
    """Shares of the time of some work in which it does what a known load does; the rest is as long at any pace."""

    products: float = 0.0
    streaming: float = 0.0
    calls: float = 0.0


class Pace(msgspec.Struct, frozen=True):
    """How fast a machine is at a time: what known loads take, ms: products, streaming through memory, short calls."""

    products_ms: float
    streaming_ms: float
    calls_ms: float

    def over(self, other: Pace, work: Work) -> float:
        """How much longer work takes at this pace than at another."""
        return (
            1
            + work.products * (self.products_ms / other.products_ms - 1)
            + work.streaming * (self.streaming_ms / other.streaming_ms - 1)
            + work.calls * (self.calls_ms / other.calls_ms - 1)
        )


class Rounds(msgspec.Struct, frozen=True):
    """What rounds of a profile tell of the machine, relative to their times."""

    common: float
    """Standard deviation that all units of a round share: neighbours and clocks change by the second, so that a slow
    round is slow from its first unit to its last."""
    error: float
    """Standard error of their median."""

    def drift(self, spread: float) -> float:
        """Standard deviation of what requests take at any other time over what the rounds say.

        The median's own error, and the machine's pace, which changes by the minute.

        Args:
            spread: standard deviation of that pace, from some ten seconds to any others.
        """
        return math.hypot(self.error, max(self.error, spread))


EXTREMES = 4.0
"""Standard deviations between a known load's slowest and fastest of some ten runs, more or less."""


class Noise(msgspec.Struct, frozen=True):
    """What the machine did meanwhile.

    A known load before and after measuring, the slowest over the fastest seen, in a core and in memory; and what rounds
    tell (`Rounds`).
    """

    before: Load
    after: Load
    worst: float
    worst_memory: float
    common: float = 0.0
    drift: float = 0.0

    @classmethod
    def of(cls, loads: Sequence[Load], rounds: Rounds | None = None, spread: float = 0.0) -> Noise:
        """What it comes to; where no rounds were run, what is common follows from the load itself."""
        core, memory = zip(*loads, strict=True)
        worst = max(core) / min(core)
        common, drift = (rounds.common, rounds.drift(spread)) if rounds else ((worst - 1) / EXTREMES, 0.0)
        return cls(loads[0], loads[-1], worst, max(memory) / min(memory), common, drift)


class PredictedBy(msgspec.Struct, frozen=True):
    """The calibration that a profile was made from instead of running the model."""

    networks: int
    """It was fitted on."""
    error: float
    """Mean relative error of the time of networks it was not fitted on."""

    @property
    def said(self) -> str:
        """A clause for whoever reads a figure."""
        return (
            f"times and memory are predicted from single operators, not measured "
            f"({self.error:.0%} off on networks left out)"
        )


class Profile(Document, frozen=True, kw_only=True):
    """`profile.json`."""

    model: str
    model_hash: str
    machine: Machine
    floor: Floor
    hop: HopCosts
    noise: Noise
    units: tuple[Unit, ...]
    cuts: tuple[CutProfile, ...]
    shards: tuple[ShardProfile, ...] = ()
    predicted: PredictedBy | None = None
    """Where nothing of the model was measured."""
    pace: Pace | None = None
    """The machine's usual one, which times of units are scaled to; none where nothing was measured."""

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What was measured."""
        return tuple(t.variant for t in self.units[0].times)
