"""A platform as a value: what it sells, what it bills, what it refuses, how tensors travel, how functions start.

Memory is in MB as the platforms count it, which is MiB; prices are per GiB-second.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import msgspec

from lamella.errors import ConfigError
from lamella.platforms.figures import Figure, Flag
from lamella.profile.document import ChannelPrice

Architecture = Literal["x86", "arm"]
BASE64 = 4 / 3
"""What base64 makes of a payload."""


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which sizes are sold: every `step_mb` from the smallest to the largest, or a few."""

    min_mb: Figure
    max_mb: Figure
    step_mb: Figure | None = None
    only_mb: tuple[Figure, ...] = ()


class CpuRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which memory goes with so many vCPU at most."""

    vcpu: float
    min_mb: Figure
    max_mb: Figure


class Cpu(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How CPU is had: chosen apart from memory (within ranges, where there are some), or in proportion to it."""

    coupling: Literal["free", "memory"]
    max_vcpu: Figure
    period_ms: Figure
    mb_per_vcpu: Figure | None = None
    ranges: tuple[CpuRange, ...] = ()
    """By vCPU."""


class Provisioned(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Instances kept ready: paid while they are, and at another price when they run."""

    reserved_usd_per_gb_s: Figure
    run_usd_per_gb_s: Figure
    rounding_s: Figure


class Billing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a run costs. `granularity_ms` 0 means no rounding; CPU without a price is had with the memory."""

    usd_per_gb_s: Figure
    usd_per_request: Figure
    granularity_ms: Figure
    init_billed: Flag
    """Whether a function's start is billed as a run is."""
    usd_per_vcpu_s: Figure | None = None
    min_ms: Figure | None = None
    """A shorter run is billed as so long."""
    provisioned: Provisioned | None = None


class Arm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The same on arm64, where it has a price of its own. How fast a model is there was not measured."""

    usd_per_gb_s: Figure


class Bounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the platform refuses. None: it sets no such limit, or the thing does not exist there."""

    package_mb: Figure
    """The largest of the forms in which a package may come."""
    payload_mb: Figure
    """Of a request that waits for its answer, and of the answer."""
    timeout_s: Figure
    base64: bool
    """Whether a binary payload grows by a third on the way."""
    zip_mb: Figure | None = None
    """Unzipped."""
    image_mb: Figure | None = None
    async_payload_mb: Figure | None = None
    disk_mb: Figure | None = None
    """Temporary, at most."""
    init_s: Figure | None = None
    concurrency: Figure | None = None
    """Instances of an account, unless it asks for more."""


class HopRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How tensors go from one function to the next. `emulated` ones are added by the figures here, not measured."""

    channel: str
    emulated: bool
    latency_ms: Figure
    mb_per_s: Figure
    usd: Figure
    """Per hop, whatever its size."""
    usd_per_gb: Figure | None = None
    payload_mb: Figure | None = None
    """What it carries at most, where that is another limit than a request's."""
    billed: bool = False
    """Whether functions run while it takes its time, half with who gives and half with who takes: object storage."""
    price: ChannelPrice | None = None
    """Of another channel than the platform's own, as measured here; never in the catalogue."""

    @property
    def known(self) -> bool:
        """Whether every figure is there that a hop's time, price and limit need."""
        needed = (self.latency_ms, self.mb_per_s, self.usd, self.usd_per_gb, self.payload_mb)
        return all(figure is None or figure.known for figure in needed)


class Start(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parts of a cold start that this machine does not show, and how long a start lasts."""

    spawn_ms: Figure
    """Until the function's own process begins."""
    fetch_mb_per_s: Figure
    """At which a package comes to where it runs; 0: it is there."""
    keep_alive_s: Figure
    """How long an idle instance stays."""


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A machine of one's own cluster, or a hosted one, all of it for functions."""

    memory_mb: Figure
    vcpu: Figure
    usd_per_hour: Figure | None = None


class Platform(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What runs functions, or (`kind` instance) a machine that is always on and paid by the hour."""

    name: str
    title: str
    memory: Memory
    cpu: Cpu
    billing: Billing
    limits: Bounds
    hop: HopRule
    """What is used unless something else is asked for."""
    start: Start
    kind: Literal["functions", "instance"] = "functions"
    channels: dict[str, HopRule] = {}
    """Other ways from function to function."""
    arm: Arm | None = None
    node: Node | None = None
    """Of a cluster of one's own; None where the platform runs the machines."""

    def sizes_mb(self, vcpu: float) -> tuple[int, ...]:
        """Every size that is sold with so many vCPU, in MB, smallest first."""
        low, high = self._bounds_mb(vcpu)
        if self.memory.only_mb:
            return tuple(sorted(int(f.value) for f in self.memory.only_mb if low <= f.value <= high))
        return tuple(range(math.ceil(low), math.floor(high) + 1, self.step_mb))

    @property
    def step_mb(self) -> int:
        """How far sizes are apart, at least."""
        if self.memory.step_mb:
            return int(self.memory.step_mb.value)
        sizes = sorted(f.value for f in self.memory.only_mb)
        return int(min((b - a for a, b in pairwise(sizes)), default=1))

    def most_mb(self, vcpu: float) -> float:
        """The largest size that is sold with so many vCPU, MB."""
        return self._bounds_mb(vcpu)[1]

    def _bounds_mb(self, vcpu: float) -> tuple[float, float]:
        share = min(vcpu, self.cpu.max_vcpu.value)
        fits = next((r for r in self.cpu.ranges if share <= r.vcpu + 1e-9), None)
        low, high = self.memory.min_mb.value, self.memory.max_mb.value
        return (max(low, fits.min_mb.value), min(high, fits.max_mb.value)) if fits else (low, high)

    def allocation_mb(self, need_mb: float, vcpu: float) -> int | None:
        """The smallest size sold that holds `need_mb`, with so many vCPU; None where none does."""
        if self.memory.only_mb:
            return next((s for s in self.sizes_mb(vcpu) if s >= need_mb - 1e-9), None)
        (low, high), step = self._bounds_mb(vcpu), self.step_mb
        size = low if need_mb <= low else low + math.ceil((need_mb - low) / step - 1e-9) * step
        return int(size) if size <= high else None

    def vcpu(self, memory_mb: float, asked: float) -> float:
        """The CPU share of a function: as asked, or what its memory buys."""
        if self.cpu.mb_per_vcpu is None:
            return min(asked, self.cpu.max_vcpu.value)
        return min(memory_mb / self.cpu.mb_per_vcpu.value, self.cpu.max_vcpu.value)

    def sells(self, vcpu: float) -> bool:
        """Whether a function may have so much CPU: where sizes depend on it, fractions of one and what is listed."""
        return vcpu <= 1 or not self.cpu.ranges or any(math.isclose(vcpu, r.vcpu) for r in self.cpu.ranges)

    @property
    def paused(self) -> bool:
        """Whether requests come one by one, behind pauses, in the measure of latency: where memory buys CPU."""
        return self.cpu.mb_per_vcpu is not None

    def billed_ms(self, run_ms: float) -> float:
        """The time on the bill."""
        step = self.billing.granularity_ms.value
        billed = math.ceil(run_ms / step - 1e-9) * step if step else run_ms
        return max(billed, self.billing.min_ms.value) if self.billing.min_ms else billed

    def cost_usd(self, memory_mb: float, run_ms: float, vcpu: float) -> float:
        """One run: memory-time at the platform's rounding, CPU-time where it has a price of its own, and the fee."""
        return self.billed_ms(run_ms) * self.usd_per_ms(memory_mb, vcpu) + self.billing.usd_per_request.value

    def usd_per_ms(self, memory_mb: float, vcpu: float) -> float:
        """What a function takes while it runs."""
        cpu = self.billing.usd_per_vcpu_s.value * vcpu if self.billing.usd_per_vcpu_s else 0.0
        return (memory_mb / 1024 * self.billing.usd_per_gb_s.value + cpu) / 1000

    def hop_ms(self, size: int) -> float:
        """Time an emulated hop adds; 0 where hops are measured."""
        if not self.hop.emulated:
            return 0.0
        return self.hop.latency_ms.value + self.hop_mb(size) / self.hop.mb_per_s.value * 1000

    def hop_usd(self, size: int) -> float:
        """What an emulated hop of so many bytes costs beyond the functions' runs."""
        per_gb = self.hop.usd_per_gb.value if self.hop.usd_per_gb else 0.0
        return self.hop.usd.value + per_gb * size / 2**30

    @property
    def moves_bytes(self) -> bool:
        """Whether bytes take time on the way: they do not in shared memory."""
        return self.hop.emulated or self.hop.price is not None

    def transfer_ms(self, size: int) -> float:
        """Time that so many bytes take from one function to the next, whoever is billed for it."""
        return self.hop.price.transfer_ms(size) if self.hop.price else self.hop_ms(size)

    def over(self, price: ChannelPrice) -> Platform:
        """The same platform with another channel between its functions."""
        hop = msgspec.structs.replace(self.hop, channel=price.channel, price=price)
        return msgspec.structs.replace(self, hop=hop)

    def on(self, architecture: Architecture) -> Platform:
        """The same platform with an architecture's prices.

        Raises:
            ConfigError: it has none for arm.
        """
        if architecture == "x86":
            return self
        if self.arm is None:
            raise ConfigError(f"{self.name} has no price for arm", try_="--architecture x86")
        billing = msgspec.structs.replace(self.billing, usd_per_gb_s=self.arm.usd_per_gb_s)
        return msgspec.structs.replace(self, billing=billing)

    @property
    def cheapest_architecture(self) -> Architecture:
        """The one with the lower price, x86 where there is no other."""
        return "arm" if self.arm and self.arm.usd_per_gb_s.value < self.billing.usd_per_gb_s.value else "x86"

    def through(self, channel: str) -> Platform:
        """The same platform where hops go by that channel of its catalogue; as it is where it has no such."""
        found = self.channels.get(channel)
        return msgspec.structs.replace(self, hop=found) if found and channel != self.hop.channel else self

    def hop_mb(self, size: int) -> float:
        """What `size` bytes weigh on a hop, MB: what has a limit of its own goes as it is, the rest in a request."""
        return size / 2**20 if self.hop.payload_mb else self.payload_mb(size)

    @property
    def hop_limit_mb(self) -> float:
        """What a hop carries at most, MB."""
        return (self.hop.payload_mb or self.limits.payload_mb).value

    def from_mb(self, size_mb: int) -> Platform:
        """The same platform where nothing smaller than a size that is sold is to be had."""
        only = tuple(f for f in self.memory.only_mb if f.value >= size_mb)
        least = msgspec.structs.replace(self.memory.min_mb, number=size_mb)
        return msgspec.structs.replace(self, memory=msgspec.structs.replace(self.memory, min_mb=least, only_mb=only))

    def payload_mb(self, size: int) -> float:
        """What `size` bytes weigh on the wire, MB."""
        return size * (BASE64 if self.limits.base64 else 1) / 2**20


def threads(vcpu: float) -> int:
    """One thread below one vCPU, else one for each started vCPU."""
    return max(1, math.ceil(vcpu - 1e-9))
