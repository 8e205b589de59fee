"""A platform as a value, read from a TOML file in which every figure has a source and a date.

Memory is in MB as the platforms count it, which is MiB; prices are per GiB-second.
"""

from __future__ import annotations

import math
from functools import cache
from importlib import resources
from typing import Literal

import msgspec

from lamella.errors import ConfigError
from lamella.profile.document import ChannelPrice


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A number with where it is from and when it was looked up."""

    value: float
    source: str
    date: str


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which sizes are sold."""

    min_mb: Figure
    max_mb: Figure
    step_mb: Figure


class Cpu(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How CPU is had: chosen apart from memory, or in proportion to it."""

    coupling: Literal["free", "memory"]
    max_vcpu: Figure
    period_ms: Figure
    mb_per_vcpu: Figure | None = None


class Billing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a run costs. `granularity_ms` 0 means no rounding; CPU without a price is had with the memory."""

    usd_per_gb_s: Figure
    usd_per_request: Figure
    granularity_ms: Figure
    usd_per_vcpu_s: Figure | None = None
    min_ms: Figure | None = None
    """A shorter run is billed as so long."""


class Bounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the platform refuses."""

    package_mb: Figure
    payload_mb: Figure
    timeout_s: Figure
    base64: bool
    """Whether a binary payload grows by a third on the way."""


class HopRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How tensors go from one function to the next. `emulated` ones are added by the figures here, not measured."""

    channel: str
    emulated: bool
    latency_ms: Figure
    mb_per_s: Figure
    usd: Figure
    price: ChannelPrice | None = None
    """Of another channel than the platform's own, as measured here; never in the catalogue."""


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A machine of one's own cluster, all of it for functions."""

    memory_mb: Figure
    vcpu: Figure


class Platform(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What runs functions."""

    name: str
    title: str
    memory: Memory
    cpu: Cpu
    billing: Billing
    limits: Bounds
    hop: HopRule
    node: Node | None = None
    """Of a cluster of one's own; None where the platform runs the machines."""

    def allocation_mb(self, need_mb: float) -> int | None:
        """The smallest size sold that holds `need_mb`; None where none does."""
        low, step = self.memory.min_mb.value, self.memory.step_mb.value
        size = low if need_mb <= low else low + math.ceil((need_mb - low) / step - 1e-9) * step
        return int(size) if size <= self.memory.max_mb.value else None

    def vcpu(self, memory_mb: float, asked: float) -> float:
        """The CPU share of a function: as asked, or what its memory buys."""
        if self.cpu.mb_per_vcpu is None:
            return min(asked, self.cpu.max_vcpu.value)
        return min(memory_mb / self.cpu.mb_per_vcpu.value, self.cpu.max_vcpu.value)

    def billed_ms(self, run_ms: float) -> float:
        """The time on the bill."""
        step = self.billing.granularity_ms.value
        billed = math.ceil(run_ms / step - 1e-9) * step if step else run_ms
        return max(billed, self.billing.min_ms.value) if self.billing.min_ms else billed

    def cost_usd(self, memory_mb: float, run_ms: float, vcpu: float) -> float:
        """One run: memory-time at the platform's rounding, CPU-time where it has a price of its own, and the fee."""
        billed_s = self.billed_ms(run_ms) / 1000
        cpu = self.billing.usd_per_vcpu_s.value * vcpu if self.billing.usd_per_vcpu_s else 0.0
        memory = memory_mb / 1024 * self.billing.usd_per_gb_s.value
        return billed_s * (memory + cpu) + self.billing.usd_per_request.value

    def hop_ms(self, size: int) -> float:
        """Time an emulated hop adds; 0 where hops are measured."""
        if not self.hop.emulated:
            return 0.0
        return self.hop.latency_ms.value + self.payload_mb(size) / self.hop.mb_per_s.value * 1000

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

    def payload_mb(self, size: int) -> float:
        """What `size` bytes weigh on the wire, MB."""
        return size * (4 / 3 if self.limits.base64 else 1) / 2**20


def threads(vcpu: float) -> int:
    """One thread below one vCPU, else one for each started vCPU."""
    return max(1, math.ceil(vcpu - 1e-9))


def names() -> tuple[str, ...]:
    """The platforms of the catalogue."""
    folder = resources.files(__package__) / "catalogue"
    return tuple(sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")))


@cache
def platform(name: str) -> Platform:
    """The platform of that name.

    Raises:
        ConfigError: there is none, with the names there are.
    """
    if name not in names():
        raise ConfigError(f"no platform {name!r}; there are {', '.join(names())}", try_=f"--platform {names()[0]}")
    text = (resources.files(__package__) / "catalogue" / f"{name}.toml").read_text()
    return msgspec.toml.decode(text, type=Platform)
