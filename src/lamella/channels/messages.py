"""The control protocol between a driver and a worker: one small msgpack message per packet of a Unix socket.

Control goes over a SEQPACKET socket, so a message is one system call on each side and needs no framing. Tensors travel
in shared segments that messages name; on the plain socket channel their bytes go over a stream socket beside it; on the
s3 channel through a store, by the addresses in messages. On the http channel requests come as `channels.inference` has
them, and only the rest goes this way.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

import msgspec

from lamella.errors import WireError

PACKET_LIMIT = 1 << 16


class TensorRef(msgspec.Struct, frozen=True, array_like=True):
    """Where a tensor lies: in a segment, at an address, or (-1 and none) on the stream socket, in order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    segment: int = -1
    codec: str = "none"
    size: int = 0
    """Bytes on the stream socket, or encoded in the segment. Of an output, the most there can be: the answer says."""
    url: str = ""
    """Of an input where to get it, of an output where to put it; signed, so that it needs no credentials."""
    checksum: int = 0
    """CRC-32 of the bytes at the address. Of an output the answer says."""

    @property
    def streamed(self) -> bool:
        """Whether its bytes go over the stream socket."""
        return self.segment < 0 and not self.url


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


class Bring(msgspec.Struct, frozen=True, tag=True):
    """Begin to bring the weights into memory: a request follows. Not answered."""


class LetGo(msgspec.Struct, frozen=True, tag=True):
    """Drop the weights from memory, as far as nobody else uses them; they come back with a request. Not answered."""

    keep: int = 0
    """So many bytes stay: those that a request uses first."""


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
    shared: bool = False
    """Whether its weights are the store's."""


class Done(msgspec.Struct, frozen=True, tag=True):
    """The answer: outputs unless all went in place; wall and CPU seconds between request read and answer sent."""

    outputs: tuple[TensorRef, ...]
    compute_s: float
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
    try_: str = ""


Message = Attach | Detach | Run | Bring | LetGo | Report | Stop | Ready | Done | Memory | Failed

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """The message's packet.

    Raises:
        WireError: it names more tensors than fit one packet.
    """
    packet = _encoder.encode(message)
    if len(packet) > PACKET_LIMIT:
        raise WireError(f"a control message of {len(packet)} bytes; the limit is {PACKET_LIMIT}")
    return packet


def decode(packet: bytes) -> Message:
    """The message in a packet.

    Raises:
        WireError: not a message of this protocol.
        EOFError: the packet is empty, which is how a closed socket reads.
    """
    if not packet:
        raise EOFError
    try:
        message: Message = _decoder.decode(packet)
    except msgspec.MsgspecError as error:
        raise WireError(f"a message that is not of this protocol: {error}") from error
    return message


def send(sock: socket.socket, message: Message) -> None:
    """Send one message."""
    sock.send(encode(message))


def receive(sock: socket.socket) -> Message:
    """The next message; see `decode` for what it raises, and TimeoutError where the socket has a timeout."""
    return decode(sock.recv(PACKET_LIMIT))


def send_bytes(sock: socket.socket, parts: Iterable[memoryview]) -> None:
    """Send tensors over the stream socket."""
    for part in parts:
        sock.sendall(part)


def receive_bytes(sock: socket.socket, size: int) -> bytearray:
    """Exactly `size` bytes of the stream socket.

    Raises:
        EOFError: the other side closed before.
    """
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = sock.recv_into(view)
        if not got:
            raise EOFError
        view = view[got:]
    return data


def send_descriptor(sock: socket.socket, fd: int) -> None:
    """Hand over a descriptor: the packet right after Attach."""
    socket.send_fds(sock, [b"\0"], [fd])


def receive_descriptor(sock: socket.socket) -> int:
    """The descriptor that follows Attach."""
    data, fds, _, _ = socket.recv_fds(sock, 1, 1)
    if not data or not fds:
        raise EOFError
    return fds[0]
