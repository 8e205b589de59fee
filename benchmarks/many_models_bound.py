"""What no system can beat at the requests of `many_models`: Belady's eviction, the device's rate, warm inference.

A request touches all blobs of its model. What is not in memory is read at the rate that was measured of the device, and
the model then runs as long as a request did that found all it needs. Eviction knows the future: what leaves is what is
asked for last (Belady 1966, "A study of replacement algorithms for a virtual-storage computer": the fewest bytes read).
It is generous besides: any part of a blob may stay; all of the group's memory is for weights, none for processes; what
a request reads needs room only once it is over; there are no forks, sessions, messages and no writing of answers.

With reading beside inference, a model's last bytes cost nothing while its first are worked on: as many as the device
reads in the time of the inference. To keep those bytes is then of no use, so the optimum is Belady's for models that
are shorter by them. Models that share blobs have no bound of this kind but their inference, since whose
reading hides what of a common blob is not said by sizes alone.

Requests do not overlap in either, nor is anything read before the request that needs it.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from mmap import MAP_SHARED, PROT_READ, mmap
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lamella.limits.pagecache import evict
from lamella.runtime.pages import Pages

Blobs = Sequence[tuple[str, int]]
"""Ids and bytes of what a model's requests need of the store; not the tables of which they read some rows."""
MOST = 512 << 20
"""Bytes that are read to measure the device."""


class Bound(NamedTuple):
    """Seconds that the measured requests take at least."""

    read_then_run: float
    overlapped: float


def fewest_bytes(models: Sequence[Blobs], asked: Sequence[int], room: float) -> list[float]:
    """Bytes that Belady's eviction reads for each request, whose sum no other eviction undercuts.

    Args:
        models: the blobs of each; those with one id are one.
        asked: which model each request is for, nothing being in memory before.
        room: bytes that memory holds from one request to the next.
    """
    sizes = {id: float(size) for blobs in models for id, size in blobs}
    uses: dict[str, list[int]] = {id: [] for id in sizes}
    for at in reversed(range(len(asked))):
        for id in {id for id, _ in models[asked[at]]}:
            uses[id].append(at)
    held, read = dict[str, float](), []
    for k in asked:
        needed = {id for id, _ in models[k]}
        read.append(sum(sizes[id] - held.get(id, 0.0) for id in needed))
        for id in needed:
            uses[id].pop()
            held[id] = sizes[id]
        left = room
        for id in sorted(held, key=lambda id: (uses[id][-1] if uses[id] else len(asked), id)):
            held[id] = min(held[id], left) if uses[id] else 0.0
            left -= held[id]
    return read


def bound(
    models: Sequence[Blobs], asked: Sequence[int], *, room: float, bytes_per_s: float, warm_s: Sequence[float]
) -> Bound:
    """How long these requests take at least, whatever was asked for before.

    Args:
        models: the blobs of each.
        asked: models, in order.
        room: bytes of memory.
        bytes_per_s: of the device.
        warm_s: seconds of each model's inference.
    """
    run = sum(warm_s[k] for k in asked)
    users = Counter(id for blobs in models for id, _ in blobs)
    heads = [
        [(f"model {k}", max(0, sum(size for _, size in blobs) - int(warm_s[k] * bytes_per_s)))]
        for k, blobs in enumerate(models)
    ]
    shared = max(users.values(), default=1) > 1
    reading = _reading(models, asked, room) / bytes_per_s
    return Bound(run + reading, run if shared else run + _reading(heads, asked, room) / bytes_per_s)


def blind_bound(
    models: Sequence[Blobs], shares: Sequence[float], *, room: float, bytes_per_s: float, warm_s: Sequence[float]
) -> Bound:
    """Seconds that a request takes at least on average, where requests are drawn independently and nobody knows them.

    What is in memory then says nothing of the next request, so no state of memory saves more bytes than the one that
    holds what is asked for most often.

    Args:
        models: the blobs of each.
        shares: of the requests, by model.
        room: bytes of memory.
        bytes_per_s: of the device.
        warm_s: seconds of each model's inference.
    """
    run = sum(share * s for share, s in zip(shares, warm_s, strict=True))
    heads = [
        [(f"model {k}", max(0, sum(size for _, size in blobs) - int(warm_s[k] * bytes_per_s)))]
        for k, blobs in enumerate(models)
    ]
    users = Counter(id for blobs in models for id, _ in blobs)
    reading = [_missed(each, shares, room) / bytes_per_s for each in (models, heads)]
    return Bound(run + reading[0], run if max(users.values(), default=1) > 1 else run + reading[1])


def _missed(models: Sequence[Blobs], shares: Sequence[float], room: float) -> float:
    """Bytes that a request misses on average, with the most popular ones in memory."""
    wanted, sizes = dict[str, float](), dict[str, int]()
    for blobs, share in zip(models, shares, strict=True):
        for id, size in dict(blobs).items():
            wanted[id] = wanted.get(id, 0.0) + share
            sizes[id] = size
    missed = 0.0
    for id, often in sorted(wanted.items(), key=lambda item: -item[1]):
        kept = min(float(sizes[id]), room)
        room -= kept
        missed += often * (sizes[id] - kept)
    return missed


def _reading(models: Sequence[Blobs], asked: Sequence[int], room: float) -> float:
    """The fewest bytes, if before the first request memory was filled as well as can be.

    What was there then saves at most its own size of the reading that an empty memory takes.
    """
    there = sum({id: size for k in asked for id, size in models[k]}.values())
    return max(0.0, sum(fewest_bytes(models, asked, room)) - min(room, there))


def bytes_per_s(blobs: Sequence[Path]) -> float:
    """Bytes per second of reading files that are not in memory, as instances do; the best of three times."""
    chosen, total = list[Path](), 0
    for path in blobs:
        if total < MOST and path.stat().st_size:
            chosen.append(path)
            total += path.stat().st_size
    return total / min(_seconds(chosen) for _ in range(3))


def _seconds(paths: Sequence[Path]) -> float:
    evict(paths)
    maps = []
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        maps.append(mmap(fd, 0, MAP_SHARED, PROT_READ))
        os.close(fd)
    ranges = [(at, at + len(m)) for m in maps for at in [np.frombuffer(m, np.uint8).ctypes.data]]
    pages, begun = Pages(ranges, maps), time.monotonic()
    pages.bring()
    pages.wait()
    return time.monotonic() - begun
