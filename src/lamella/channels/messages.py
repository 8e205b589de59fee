"""The control protocol between a driver and a worker: small msgpack messages over a Unix stream socket.

A frame is 4 bytes of header length, 8 bytes of payload length, the header, the payload. Tensors travel in shared
segments (the header names them) or, on the plain socket channel, as the payload.
"""

from __future__ import annotations

import socket
import struct

import msgspec

from lamella.errors import WireError

_FRAME = struct.Struct("<IQ")
HEADER_LIMIT = 1 << 20


class TensorRef(msgspec.Struct, frozen=True, array_like=True):
    """Where a tensor lies: in a segment, or (-1) in the payload, in order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    segment: int = -1
    codec: str = "none"


class Attach(msgspec.Struct, frozen=True, tag=True):
    """A new segment; its descriptor follows with the next byte."""

    segment: int
    size: int


class Detach(msgspec.Struct, frozen=True, tag=True):
    """A segment that is no longer used."""

    segment: int


class Run(msgspec.Struct, frozen=True, tag=True):
    """One request: read the inputs, leave the outputs where it says."""

    inputs: tuple[TensorRef, ...]
    outputs: tuple[TensorRef, ...]


class Report(msgspec.Struct, frozen=True, tag=True):
    """Ask for memory and fault counters."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Finish and leave."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The worker can serve. Times are CLOCK_MONOTONIC seconds, at the end of each phase."""

    started: float
    imported: float
    mapped: float
    opened: float
    warmed: float


class Done(msgspec.Struct, frozen=True, tag=True):
    """The answer to Run. `outputs` give shapes; seconds the function ran, and of CPU time."""

    outputs: tuple[TensorRef, ...]
    run_s: float
    cpu_s: float


class Memory(msgspec.Struct, frozen=True, tag=True):
    """The answer to Report: MB (MiB) and counts since the start."""

    peak_mb: float
    resident_mb: float
    anonymous_mb: float
    weights_mb: float
    """Resident part of the mapped weight file."""
    load_peak_mb: float
    """Peak until the session was open, before the first run."""
    load_anonymous_mb: float
    floor_mb: float
    """Resident before the model was opened."""
    floor_anonymous_mb: float
    major_faults: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The worker could not do what was asked; it stays alive where it can."""

    code: str
    message: str


Message = Attach | Detach | Run | Report | Stop | Ready | Done | Memory | Failed

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def send(sock: socket.socket, message: Message, payload: tuple[memoryview, ...] = ()) -> None:
    """Send one message, with the bytes of tensors behind it."""
    header = _encoder.encode(message)
    size = sum(p.nbytes for p in payload)
    sock.sendall(_FRAME.pack(len(header), size) + header)
    for part in payload:
        sock.sendall(part)


def receive(sock: socket.socket) -> tuple[Message, bytearray]:
    """The next message and its payload.

    Raises:
        WireError: not a message of this protocol.
        EOFError: the other side closed.
        TimeoutError: the socket has a timeout and it passed.
    """
    length, size = _FRAME.unpack(_exactly(sock, _FRAME.size))
    if length > HEADER_LIMIT:
        raise WireError(f"a header of {length} bytes; the limit is {HEADER_LIMIT}")
    try:
        message = _decoder.decode(_exactly(sock, length))
    except msgspec.MsgspecError as error:
        raise WireError(f"a message that is not of this protocol: {error}") from error
    return message, _exactly(sock, size)


def _exactly(sock: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = sock.recv_into(view)
        if not got:
            raise EOFError
        view = view[got:]
    return data


def send_descriptor(sock: socket.socket, fd: int) -> None:
    """Hand over a descriptor, right after Attach."""
    socket.send_fds(sock, [b"\0"], [fd])


def receive_descriptor(sock: socket.socket) -> int:
    """The descriptor that follows Attach."""
    data, fds, _, _ = socket.recv_fds(sock, 1, 1)
    if not data or not fds:
        raise EOFError
    return fds[0]
