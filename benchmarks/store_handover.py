"""How long the store takes to hand over a model's descriptors, alone and beside clients that misbehave.

Small models of 1, 8 and 64 blobs, one process: open, receive, close, hundreds of times a round. Quiet and hostile
rounds take turns, so that their ratio holds on a noisy machine. A part of `benchmarks/store.py`.
"""

from __future__ import annotations

import hashlib
import os
import socket
import statistics
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.store_table import HandedOver
from lamella.machine import this_machine
from lamella.runtime.function import Function
from lamella.store import protocol
from lamella.store.client import Connection
from lamella.store.records import ModelRecord, SegmentRef

BLOBS = (1, 8, 64)
HOSTILE = 150


def handed_over(path: Path, place: Path, rounds: int, times: int) -> list[HandedOver]:
    """Of the daemon at `path`; models are made in `place`."""
    found = []
    for count in BLOBS:
        put(path, place, count)
        alone, hostile = [], []
        for _ in range(rounds):
            alone.append(statistics.median(opens(path, count, times)))
            with ExitStack() as bad:
                misbehave(path, bad)
                hostile.append(statistics.median(opens(path, count, times)))
        found.append(HandedOver(count + 1, tuple(alone), tuple(hostile)))
    return found


def put(path: Path, place: Path, count: int) -> None:
    """A model of so many segments of 4 KiB; its graph is never opened."""
    blobs = {}
    for data in [b"graph" + bytes([count]), *(os.urandom(4096) for _ in range(count))]:
        blobs[hashlib.sha256(data).hexdigest()] = data
    for id, data in blobs.items():
        (place / id).write_bytes(data)
    refs = [SegmentRef(id, len(data)) for id, data in blobs.items()]
    function = Function(
        name="f", kind="packaged", graph=refs[0].id, weights="", portable="", inputs=(), outputs=(), threads=1,
        prepack=False, machine=this_machine(), sha256={},
    )  # fmt: skip
    record = ModelRecord(name=f"m@{count}", graph=refs[0], segments=tuple(refs[1:]), function=function)
    with Connection(path) as connection:
        connection.put(record, {id: place / id for id in blobs})


def opens(path: Path, count: int, times: int) -> list[float]:
    """Milliseconds from the request to the last descriptor, per open; connecting is not counted."""
    found = []
    for _ in range(times):
        with Connection(path) as connection:
            begun = time.perf_counter()
            _, fds = connection.hold(f"m@{count}")
            found.append((time.perf_counter() - begun) * 1000)
            protocol.close_all(fds)
    return found


def misbehave(path: Path, stack: ExitStack) -> None:
    """Clients that are silent, that send half a message, and that ask and never read."""
    for k in range(HOSTILE):
        sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        sock.connect(str(path))
        sock.setblocking(False)
        if k % 3 == 1:
            protocol.send(sock, b"\xdb\xff\xff\xff\xff")
        elif k % 3 == 2:
            protocol.send(sock, protocol.encode(protocol.Hello(protocol.VERSION)))
            protocol.send(sock, protocol.encode(protocol.Ask()))
