"""Made-up models and profiles: a chain of units, one operator each, with any figures one likes. No file behind it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from hypothesis import strategies as st

from lamella.graph.model import Graph, Operator, Tensor, Weight
from lamella.machine import Machine
from lamella.plan.choice import Choice
from lamella.plan.pricing.hops import Lossy
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request
from lamella.platforms import platform
from lamella.profile.document import (
    CodecResult,
    CutProfile,
    Floor,
    HopCost,
    HopCosts,
    Noise,
    Profile,
    Saving,
    Timing,
    Unit,
    UnitMemory,
    Variant,
)
from lamella.profile.quiet import Load
from lamella.runtime.function import LOSSLESS, Layout
from lamella.units import MB

FLOOR_MB = 50.0
CORES = 2
MACHINE = Machine(cpu="made up", isa="x86_64-avx2", cores=CORES, memory_mb=4096, onnxruntime="1.0")
SPEEDUP = {1: 1.0, 2: 1.6}
"""By threads."""


@dataclass(frozen=True, slots=True)
class Made:
    """One unit. MB and ms; `out_mb` crosses the cut behind it, `saving_ms` is saved by not cutting there."""

    weights_mb: float = 10.0
    out_mb: float = 1.0
    time_ms: float = 5.0
    live_mb: float = 4.0
    private_mb: float = 2.0
    load_extra_mb: float = 6.0
    packed_mb: float = 0.0
    """Private memory beyond, where prepacked."""
    packed_speedup: float = 1.0
    blocked_speedup: float = 0.0
    """0 where nothing of it runs blocked."""
    int8_speedup: float = 0.0
    """0 where nothing of it can run on 8-bit integers."""
    admitted: bool = True
    """Whether it may."""
    saving_ms: float = 0.0
    ratio: float = 1.0
    """Of shuffle-zstd behind it; 1 where it was not measured."""
    coding_ms: float = 1.0
    """To encode by it, and as long to decode."""
    load_ms: float = 0.0
    """Opening its session."""
    spread: float = 0.0
    """How much of its time the 95th percentile lies above."""
    more_cpu: float = 1.0
    """CPU time of several threads over that of one."""


SERVING_MS = 0.3
"""Standard deviation of what serving takes."""
THREE = (
    Made(time_ms=4.0, saving_ms=0.5, packed_mb=10.0, packed_speedup=2.0),
    Made(time_ms=6.0, saving_ms=0.25, packed_mb=10.0, packed_speedup=2.0),
    Made(time_ms=8.0, packed_mb=10.0, packed_speedup=2.0),
)
"""Units of which packing doubles the speed."""


def graph_of(units: tuple[Made, ...], name: str = "made-up") -> Graph:
    """The chain x -> t0 -> t1 -> ..., the last tensor the output; a free batch axis throughout."""
    tensors = {"x": Tensor("x", "float32", ("N", 1024))}
    weights, operators = {}, []
    taken, offset = "x", 0
    for i, unit in enumerate(units):
        made = f"t{i}"
        tensors[made] = Tensor(made, "float32", ("N", max(1, round(unit.out_mb * MB / 4))))
        size = round(unit.weights_mb * MB)
        weights[f"w{i}"] = Weight(f"w{i}", "float32", (size // 4,), offset, size)
        offset += size
        operators.append(Operator(i, f"op{i}", "Gemm", (taken,), (f"w{i}",), (made,), flops=1000))
        taken = made
    return Graph(
        name=name,
        hash=f"{name}-{len(units)}",
        directory=Path("/nowhere"),
        operators=tuple(operators),
        tensors=tensors,
        weights=weights,
        inputs=("x",),
        outputs=(taken,),
        source=Path("/nowhere/model.onnx"),
    )


def profile_of(graph: Graph, units: tuple[Made, ...], hop: HopCost | None = None) -> Profile:
    """What measuring the chain on `MACHINE` would have found."""
    price = hop or HopCost(0.1, 0.5, 0.2, 0.05, deviation_ms=SERVING_MS)
    layouts: tuple[Layout, ...] = (*LOSSLESS, "int8") if any(u.int8_speedup for u in units) else LOSSLESS
    variants = [Variant(1, layout, threads) for threads in range(1, CORES + 1) for layout in layouts]
    return Profile(
        model=graph.name,
        model_hash=graph.hash,
        machine=MACHINE,
        floor=Floor(FLOOR_MB, 25.0, 100.0),
        hop=HopCosts(price, price, 64.0, price),
        noise=Noise.of([Load(1.0, 1.0)]),
        units=tuple(
            Unit(
                first=i,
                last=i + 1,
                kinds="Gemm",
                flops=1000,
                weight_bytes=graph.weight_bytes(i, i + 1),
                live_bytes=graph.live_bytes(i, i + 1),
                times=tuple(
                    Timing(
                        v,
                        _time_ms(unit, v),
                        _time_ms(unit, v) * (1 + unit.spread),
                        _shares(unit, v),
                        cpu_ms=unit.time_ms * unit.more_cpu if v.threads > 1 else None,
                    )
                    for v in variants
                ),
                memory=tuple(
                    UnitMemory(
                        layout=layout,
                        weights_mb=unit.weights_mb / (4 if layout == "int8" else 1),
                        weight_bytes=graph.weight_bytes(i, i + 1) // 4 if layout == "int8" else None,
                        private_mb=unit.private_mb + unit.packed_mb * (layout == "prepacked"),
                        live_mb=unit.live_mb,
                        load_extra_mb=unit.load_extra_mb,
                        load_ms=unit.load_ms,
                    )
                    for layout in layouts
                    if (layout != "blocked" or unit.blocked_speedup) and (layout != "int8" or unit.int8_speedup)
                ),
                int8=(f"t{i}",) if unit.int8_speedup else (),
            )
            for i, unit in enumerate(units)
        ),
        cuts=tuple(
            CutProfile(
                position=i + 1,
                tensors=(f"t{i}",),
                side=(),
                bytes=graph.tensors[f"t{i}"].bytes_at(),
                savings=tuple(
                    Saving(v, unit.saving_ms, _shares(unit, v) and _shares(units[i + 1], v)) for v in variants
                ),
                codecs=(
                    CodecResult("none", 1, 1.0, 0.1, 0.1, 0.0),
                    CodecResult("bf16", 1, 2.0, 0.3, 0.3, 0.002),
                    CodecResult("shuffle-zstd", 1, unit.ratio, 0.1 + unit.coding_ms, 0.1 + unit.coding_ms, 0.0),
                )[: 2 + (unit.ratio != 1)],
            )
            for i, unit in enumerate(units[:-1])
        ),
    )


def _shares(unit: Made, variant: Variant) -> bool:
    own = {"blocked": unit.blocked_speedup, "int8": unit.int8_speedup}
    return not own.get(variant.layout, 1.0)


def _time_ms(unit: Made, variant: Variant) -> float:
    faster = {"plain": 1.0, "prepacked": unit.packed_speedup, "blocked": unit.blocked_speedup or 1.0}
    faster["int8"] = unit.int8_speedup or 1.0
    return unit.time_ms / SPEEDUP[variant.threads] / faster[variant.layout]


def model_of(
    units: tuple[Made, ...], where: str = "openfaas", *, vcpu: float = 1.0, hop: HopCost | None = None
) -> SliceModel:
    """The priced model of a chain."""
    graph = graph_of(units)
    lossy = Lossy(int8=frozenset(k for k, unit in enumerate(units) if unit.admitted))
    return SliceModel(graph, profile_of(graph, units, hop), platform(where), Request(vcpu=vcpu), lossy)


def choice(first: int, last: int, run_ms: float, cost_usd: float) -> Choice:
    """A way to run a slice of which only time and cost matter."""
    return Choice(first, last, 128, 1.0, 1, "plain", 100.0, 100.0, run_ms, cost_usd)


UNITS = st.builds(
    Made,
    weights_mb=st.sampled_from([0.0, 0.5, 10.0, 60.0, 200.0, 700.0]),
    out_mb=st.sampled_from([0.001, 0.5, 1.0, 3.0, 12.0]),
    time_ms=st.sampled_from([0.01, 0.7, 3.0, 10.0, 42.0]),
    live_mb=st.sampled_from([0.0, 5.0, 40.0, 150.0]),
    private_mb=st.sampled_from([1.0, 2.5]),
    load_extra_mb=st.sampled_from([0.0, 7.0, 100.0]),
    packed_mb=st.sampled_from([0.0, 20.0, 90.0]),
    packed_speedup=st.sampled_from([1.0, 1.2]),
    blocked_speedup=st.sampled_from([0.0, 0.9, 1.3]),
    int8_speedup=st.sampled_from([0.0, 0.0, 0.0, 2.5]),
    admitted=st.booleans(),
    saving_ms=st.sampled_from([-0.1, 0.0, 0.005]),
    load_ms=st.sampled_from([0.0, 3.0, 120.0]),
    more_cpu=st.sampled_from([1.0, 1.0, 1.5]),
    spread=st.sampled_from([0.0, 0.1, 0.5]),
)
CODED = st.builds(
    Made,
    weights_mb=st.sampled_from([0.5, 60.0, 700.0]),
    out_mb=st.sampled_from([0.001, 1.0, 3.0, 7.0]),
    time_ms=st.sampled_from([0.01, 3.0, 42.0]),
    ratio=st.sampled_from([0.9, 1.0, 1.3, 4.0]),
    coding_ms=st.sampled_from([0.0, 0.2, 5.0, 40.0]),
)
CODED_CHAINS = st.lists(CODED, min_size=1, max_size=6).map(tuple)
CHAINS = st.lists(UNITS, min_size=1, max_size=6).map(tuple)
PLATFORMS = st.sampled_from(["openfaas", "aws-lambda", "azure-consumption", "cloud-run"])
VCPUS = st.sampled_from([0.5, 1.0, 1.7, 2.0])


def spans(model: SliceModel) -> list[tuple[int, int]]:
    """Every slice."""
    return list(combinations(range(model.units + 1), 2))
