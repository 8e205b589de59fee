"""Made-up instances for planners: chains as bare arcs, and as profiled models. The same seed gives the same one."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np

from lamella.graph.divide import ShardSpan
from lamella.plan.planners.milp import Arcs
from lamella.plan.planners.route import Route, Sums
from lamella.plan.planners.routes import Routes
from lamella.plan.pricing.hops import Lossy
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request
from lamella.platforms import platform
from lamella.profile.document import CodecResult, Profile, ShardPart, ShardProfile
from tests.unit.plan.synthetic import Made, graph_of, profile_of

SEED = 5
TIGHT = 0.3
"""Where the SLO of an instance lies between the quickest plan's latency (0) and the cheapest one's (1)."""
GB_S = 1.667e-5
FEE = 2e-7
STEP_MS = 1.0
SHARDS = (2, 3, 4)
"""Beside no shards at all."""
CODECS = ("bf16", "shuffle-zstd", "bf16-shuffle-zstd")
"""Beside none."""
LOSSY = frozenset({"bf16", "bf16-shuffle-zstd"})


class Instance(NamedTuple):
    """A chain with sizes, and how much time its plan may take, ms."""

    arcs: Arcs
    slo_ms: float


def chain(units: int, sizes: int, *, seed: int = SEED) -> Arcs:
    """Slices of a chain by sizes: whole milliseconds are billed, memory buys less and less CPU, hops take time.

    Args:
        units: in the chain.
        sizes: of memory, the smallest holding a few units, the largest half of them.
        seed: of times, weights and bytes.
    """
    rng = np.random.default_rng(seed)
    work = rng.lognormal(1.5, 0.8, units)
    weights = rng.lognormal(2.0, 1.0, units)
    hop = np.r_[0.0, 2.0 + rng.lognormal(0.5, 0.7, units - 1)]
    memory = 64 + np.linspace(0.1, 0.6, sizes) * weights.sum()
    speed = 2.0 * (memory / memory[-1]) ** 0.6
    first, last = np.triu_indices(units + 1, 1)
    need = np.r_[0.0, np.cumsum(weights)]
    slices, size = np.nonzero((need[last] - need[first] + 50.0)[:, None] <= memory)
    first, last = first[slices], last[slices]
    done = np.r_[0.0, np.cumsum(work)]
    run = (done[last] - done[first]) / speed[size] + 1.0
    usd = np.ceil(run / STEP_MS) * STEP_MS / 1000 * memory[size] / 1024 * GB_S + FEE
    return Arcs(units + 1, first, last, usd, run + hop[first])


def routes(arcs: Arcs, most_stages: int | None = None) -> Routes:
    """The same for our own search."""
    sums, ones = Sums(arcs.usd, arcs.ms, np.zeros(len(arcs.ms))), np.ones(len(arcs.ms), int)
    return Routes(arcs.states, arcs.tail, arcs.head, sums, stages=ones, most_stages=most_stages)


def instance(units: int, sizes: int, *, seed: int = SEED) -> Instance:
    """A chain under an SLO that binds."""
    arcs = chain(units, sizes, seed=seed)
    ours = routes(arcs)
    quick, cheap = ours.fastest(), _cheap(ours)
    assert quick
    return Instance(arcs, quick.latency_ms + TIGHT * (cheap.latency_ms - quick.latency_ms))


def _cheap(ours: Routes) -> Route:
    return ours.cheapest().routes[0]


def profiled(
    units: int, where: str, *, shards: bool = False, codecs: bool = False, seed: int = SEED
) -> tuple[SliceModel, Request]:
    """A chain as a model with its profile on a platform, and what is asked: every choice there is.

    Args:
        units: in the chain.
        where: the platform.
        shards: whether each unit was measured as 2, 3 and 4 shards.
        codecs: whether each cut was measured with three codecs, the lossy ones allowed.
        seed: of times, weights and bytes.
    """
    rng = np.random.default_rng(seed)
    made = tuple(
        Made(
            weights_mb=float(rng.lognormal(1.0, 1.0)),
            out_mb=float(rng.lognormal(-1.0, 1.0)),
            time_ms=float(rng.lognormal(1.5, 0.8)),
            live_mb=float(rng.lognormal(2.0, 0.7)),
            packed_mb=float(rng.lognormal(0.5, 0.5)),
            packed_speedup=1.1,
        )
        for _ in range(units)
    )
    graph = graph_of(made)
    profile = profile_of(graph, made)
    if shards:
        profile = msgspec.structs.replace(profile, shards=tuple(s for k, u in enumerate(made) for s in _shards(k, u)))
    if codecs:
        profile = _coded(profile)
    allowed = dict.fromkeys(range(1, units), LOSSY) if codecs else {}
    request = Request(shards=shards, codec=codecs, max_stages=units)
    return SliceModel(graph, profile, platform(where), request, Lossy(allowed)), request


def _shards(unit: int, made: Made) -> list[ShardProfile]:
    found = []
    for count in SHARDS:
        span = ShardSpan(unit, unit + 1, count, "channels")
        part = ShardPart(made.time_ms / count + 0.3, 60.0 + made.weights_mb / count, 60.0)
        found.append(ShardProfile(unit, unit + 1, span, 2, 1, (part,) * count, 99.0, 0.1, 0.1))
    return found


def _coded(profile: Profile) -> Profile:
    plain = CodecResult("none", 1, 1.0, 0.1, 0.1, 0.0)
    cuts = []
    for cut in profile.cuts:
        mb = cut.bytes / 2**20
        costs = ((2.0, 0.2, 2e-3), (1.4, 2.0, 0.0), (2.8, 1.5, 2e-3))
        coded = [
            CodecResult(name, 1, ratio, 0.1 + ms * mb, 0.1 + ms * mb, error)
            for name, (ratio, ms, error) in zip(CODECS, costs, strict=True)
        ]
        cuts.append(msgspec.structs.replace(cut, codecs=(plain, *coded)))
    return msgspec.structs.replace(profile, cuts=tuple(cuts))
