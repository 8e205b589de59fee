"""Nodes of one's own cluster: how many functions fit one, and how many requests it answers in an hour.

Own nodes are paid by the hour, whatever runs on them: there a plan is cheap when many requests fit, not when little
memory-time is billed. An instance reserves its memory and its vCPU on its node (Kubernetes: requests equal to limits),
busy or not. At a high rate of requests every instance is busy, so the instances of a function are in proportion to its
run time; they are packed by first fit, largest first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from lamella.platforms.platform import Node

BUSY = 1000
"""Instances that are packed, about: so many that rounding them up for each function matters little."""
HOUR_MS = 3_600_000


class Load(NamedTuple):
    """One function: what an instance reserves, and how long a request keeps it busy."""

    memory_mb: float
    vcpu: float
    run_ms: float


class Packing(msgspec.Struct, frozen=True):
    """What a node does for a plan."""

    functions: float
    """Instances on a node, on average, in the proportions that serve the most requests."""
    requests_per_hour: float
    """Per node, every instance busy."""
    bound: str
    """`memory` or `vcpu`: what a node runs out of first."""


def pack(loads: Sequence[Load], node: Node) -> Packing | None:
    """Instances of a plan's functions on nodes; None where one of them is larger than a node.

    Args:
        loads: one per function of the plan.
        node: its memory and vCPU, all of it for functions.
    """
    memory_mb, vcpu = node.memory_mb.value, node.vcpu.value
    if any(f.memory_mb > memory_mb or f.vcpu > vcpu for f in loads):
        return None
    rate = BUSY / sum(f.run_ms for f in loads)  # requests per ms that keep so many instances busy
    counts = [math.ceil(rate * f.run_ms - 1e-9) for f in loads]
    free: list[tuple[float, float]] = []
    by_share = sorted(
        zip(loads, counts, strict=True), key=lambda item: -max(item[0].memory_mb / memory_mb, item[0].vcpu / vcpu)
    )
    for load, count in by_share:
        for _ in range(count):
            _place(load, free, (memory_mb, vcpu))
    nodes = len(free)
    held = sum(count * load.memory_mb for load, count in by_share) / memory_mb
    busy = sum(count * load.vcpu for load, count in by_share) / vcpu
    return Packing(sum(counts) / nodes, rate * HOUR_MS / nodes, "memory" if held > busy else "vcpu")


def _place(load: Load, free: list[tuple[float, float]], whole: tuple[float, float]) -> None:
    """On the first node with room, else on a new one."""
    for number, (memory_mb, vcpu) in enumerate(free):
        if memory_mb >= load.memory_mb and vcpu + 1e-9 >= load.vcpu:
            free[number] = (memory_mb - load.memory_mb, vcpu - load.vcpu)
            return
    free.append((whole[0] - load.memory_mb, whole[1] - load.vcpu))
