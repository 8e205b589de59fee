"""How what crosses a border may travel: codecs and channels, those left out that another is as good as."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

from lamella.plan.pricing.coding import Coding
from lamella.plan.pricing.predict import SliceModel


class Mode(NamedTuple):
    """How what crosses a border travels: its codec, and what that takes whom."""

    coding: Coding
    hop_ms: float
    hop_usd: float
    giving_ms: float
    taking_ms: float
    """Work and carrying of the functions on either side, billed,"""
    wait_ms: float
    """and what both wait for the channel."""


def modes(model: SliceModel, unit: int) -> tuple[Mode, ...]:
    """The ways to cross the border before a unit that no other is as good as, plain first; none where none may travel.

    At the model's own ends there is one: request and answer are not ours to encode.
    """
    if unit in (0, model.units):
        carried = model.hops.carrying_ms(unit)
        return (Mode(model.coding(unit), 0.0, 0.0, carried, carried, 0.0),)
    allowed = model.lossy.allowed.get(unit, frozenset())
    found: list[Mode] = []
    for coding, channel in product(model.codings(unit), channels(model)):
        sent = coding._replace(channel=channel)
        if not (coding.lossless or coding.codec in allowed) or not model.hops.may_travel(sent):
            continue
        hop = model.hop_of(sent)
        giving, taking = coding.encode_ms + hop.carried_ms, coding.decode_ms + hop.carried_ms
        mode = Mode(sent, hop.ms, hop.usd, giving, taking, hop.wait_ms)
        if not any(_as_good(other, mode) for other in found):
            found.append(mode)
    return tuple(found)


def channels(model: SliceModel) -> list[str]:
    """Those that a hop may go by: the platform's own first, then where that is emulated others whose figures are known.

    One that was asked for is the platform's own.
    """
    rules = model.platform
    if not rules.hop.emulated or model.request.channel:
        return [""]
    return ["", *(name for name, way in rules.channels.items() if way.known)]


def _as_good(one: Mode, other: Mode) -> bool:
    a, b = one.coding, other.coding
    held = a.giving_bytes <= b.giving_bytes and a.taking_bytes <= b.taking_bytes
    return held and all(x <= y for x, y in zip(one[1:], other[1:], strict=True))
