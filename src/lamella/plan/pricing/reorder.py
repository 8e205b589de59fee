"""The same model whose units run in another order, priced by what was measured in the profile's.

Units are the same sets of operators, so what was measured of them carries over. A border that the profile's order has,
too, keeps what was measured there; of any other nothing was: it saves nothing, and what crosses it goes plain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import msgspec
import numpy as np

from lamella.graph.model import Graph
from lamella.graph.orders import reordered
from lamella.plan.pricing.hops import Lossy
from lamella.plan.pricing.predict import SliceModel
from lamella.profile.document import CutProfile, Profile, Saving, ShardProfile, Unit

T = TypeVar("T")


def in_order(model: SliceModel, order: Sequence[int]) -> SliceModel | None:
    """The same model whose units run in another order; None where something would cross that cannot travel.

    Args:
        model: in the profile's order.
        order: all its units, each behind those it needs.
    """
    profile = model.profile
    graph = reordered(model.graph, [(profile.units[u].first, profile.units[u].last) for u in order])
    ends = np.cumsum([profile.units[u].last - profile.units[u].first for u in order]).tolist()
    units = tuple(
        msgspec.structs.replace(profile.units[u], first=end - profile.units[u].last + profile.units[u].first, last=end)
        for u, end in zip(order, ends, strict=True)
    )
    crosses = _crossing(graph, ends)
    if any(graph.tensors[n].dynamic or not graph.tensors[n].portable for names in crosses for n in names):
        return None
    same = [set(order[:number]) == set(range(number)) for number in range(len(order) + 1)]
    cuts = []
    for number, ((left, right), names) in enumerate(zip(pairwise(order), crosses, strict=True), 1):
        side = tuple(n for n in names if n in graph.request_constants)
        cuts.append(
            CutProfile(
                position=ends[number - 1],
                tensors=tuple(n for n in names if n not in side),
                side=side,
                bytes=sum(graph.tensors[n].bytes_at() for n in names),
                savings=profile.cuts[left].savings if right == left + 1 else _nothing(profile),
                codecs=profile.cuts[number - 1].codecs if same[number] else (),
            )
        )
    shards = tuple(moved for one in profile.shards if (moved := _moved(one, profile, order, units)))
    profile = msgspec.structs.replace(profile, units=units, cuts=tuple(cuts), shards=shards)
    lossy = Lossy(
        _still(model.lossy.allowed, same),
        _still(model.lossy.fitted, same),
        _still(model.lossy.said, same),
        frozenset(number for number, unit in enumerate(order) if unit in model.lossy.int8),
    )
    return SliceModel(graph, profile, model.platform, model.request, lossy)


def _still(known: Mapping[int, T], same: Sequence[bool]) -> dict[int, T]:
    """What is known of borders that the order has, too."""
    return {unit: what for unit, what in known.items() if same[unit]}


def _nothing(profile: Profile) -> tuple[Saving, ...]:
    return tuple(Saving(variant, 0.0) for variant in profile.variants)


def _crossing(graph: Graph, ends: Sequence[int]) -> list[list[str]]:
    """What crosses each border but the last, which is the model's end."""
    return [[name for name, made in graph.producer.items() if made < end <= graph.last_use[name]] for end in ends[:-1]]


def _moved(shard: ShardProfile, profile: Profile, order: Sequence[int], units: Sequence[Unit]) -> ShardProfile | None:
    """Where a stage of shards lies in another order; None where its units do not follow each other there."""
    begin = list(order).index(shard.first)
    width = shard.last - shard.first
    if tuple(order[begin : begin + width]) != tuple(range(shard.first, shard.last)):
        return None
    more = units[begin].first - profile.units[shard.first].first
    span = msgspec.structs.replace(shard.span, first=shard.span.first + more, last=shard.span.last + more)
    return msgspec.structs.replace(shard, first=begin, last=begin + width, span=span)
