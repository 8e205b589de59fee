"""What the daemon of the store and its clients say to each other: one msgpack message per packet of a Unix socket.

SEQPACKET keeps packets apart, so there is no length to lie about; a packet above the limit is cut by the kernel, which
says so. A connection has one request on its way at a time, and descriptors come with the packet that names them. There
is no message for giving back: a lease ends with its connection, however that ends, and so a killed process leaks none.
What is long or has no bound (a record to put, the status) travels as a file, not in a packet.

Rejected: gRPC on a port of the loopback, which knows nothing of users; a stream with framing, where a reader has to
hold half a message; a lease number with a message to end it, which a crash never sends.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, NamedTuple

import msgspec

from lamella.errors import LamellaError, StoreError, WireError

VERSION = 1
REQUEST_LIMIT = 1 << 16
ANSWER_LIMIT = 1 << 17
DESCRIPTORS = 250
"""Descriptors in one packet."""
SCM_MAX_FD = 253
"""As many as the kernel takes."""
NAME = 255

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME)]
Digest = Annotated[str, msgspec.Meta(min_length=64, max_length=64, pattern="^[0-9a-f]{64}$")]


class Hello(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The first packet of a connection. It is answered only if it is refused: the first request follows at once."""

    version: int


class Open(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Lease a model."""

    model: Name


class Find(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Ask which model was made of a file with this SHA-256."""

    source: Digest


class Put(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A model to keep: the record's file comes with it, then one file per blob of `ids`."""

    model: Name
    ids: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=DESCRIPTORS - 1)]
    source: Digest | None = None
    """Of the self-contained file that the model was made of."""


class Pin(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Keep a model in memory, or no longer."""

    model: Name
    on: bool = True


class Evict(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Drop a model from memory, or from the disk too."""

    model: Name
    disk: bool = False


class Ask(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Ask for the status."""


class Stop(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """End the daemon."""


Request = Hello | Open | Find | Put | Pin | Evict | Ask | Stop


class Opened(msgspec.Struct, frozen=True, tag=True):
    """A lease. Descriptors: the graph, then the segments in the record's order; what does not fit comes with More."""

    record: msgspec.Raw
    """The model's record, as msgpack."""
    descriptors: int


class More(msgspec.Struct, frozen=True, tag=True):
    """Further descriptors."""


class Found(msgspec.Struct, frozen=True, tag=True):
    """The model that was asked for, or nothing."""

    model: str


class Told(msgspec.Struct, frozen=True, tag=True):
    """The status comes with it, a JSON file."""


class Done(msgspec.Struct, frozen=True, tag=True):
    """It was done."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """It was not done."""

    code: str
    message: str
    where: str = ""
    try_: str = ""


Answer = Opened | More | Found | Told | Done | Failed

_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(Request)
_answers = msgspec.msgpack.Decoder(Answer)


class Packet(NamedTuple):
    """What came in one packet. The descriptors are the caller's to close."""

    data: bytes
    descriptors: tuple[int, ...]

    def close(self) -> None:
        """Close the descriptors."""
        close_all(self.descriptors)


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors, for as long as their file systems take; those that are closed already are passed over."""
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)


def encode(message: Request | Answer) -> bytes:
    """The message's packet.

    Raises:
        WireError: it is longer than a packet may be.
    """
    packet = _encoder.encode(message)
    if len(packet) > ANSWER_LIMIT:
        raise WireError(f"a message of {len(packet)} bytes to or from the store; the limit is {ANSWER_LIMIT}")
    return packet


def request(data: bytes) -> Request:
    """The request in a packet.

    Raises:
        WireError: it is none.
    """
    try:
        found: Request = _requests.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a request to the store: {error}") from error
    return found


def answer(data: bytes) -> Answer:
    """The answer in a packet.

    Raises:
        WireError: it is none.
    """
    try:
        found: Answer = _answers.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"not an answer of the store: {error}") from error
    return found


def send(sock: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send a packet with descriptors, `DESCRIPTORS` of them at most.

    Raises:
        BlockingIOError: the socket does not block and its reader does not read.
        OSError: the connection is lost.
    """
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def peek(sock: socket.socket, limit: int) -> bytes:
    """The data of the next packet, which stays to be received: nothing of what comes with it is opened.

    Raises:
        EOFError, WireError, OSError: as `receive`.
    """
    data, _, flags, _ = sock.recvmsg(limit, 0, socket.MSG_PEEK)
    if flags & socket.MSG_TRUNC:
        raise WireError(f"a packet of more than {limit} bytes")
    if not data:
        raise EOFError
    return data


def receive(
    sock: socket.socket,
    limit: int,
    descriptors: int = DESCRIPTORS,
    close: Callable[[tuple[int, ...]], None] = close_all,
) -> Packet:
    """The next packet of at most `limit` bytes and so many descriptors.

    Raises:
        EOFError: the other side closed.
        WireError: the packet, or what came with it, was longer; what came of it is given to `close`.
        OSError: the connection is lost, or (BlockingIOError, TimeoutError) there is nothing yet.
    """
    room = socket.CMSG_SPACE(descriptors * array.array("i").itemsize) if descriptors else 0
    data, ancillary, flags, _ = sock.recvmsg(limit, room, socket.MSG_CMSG_CLOEXEC)
    packet = Packet(data, tuple(fd for item in ancillary for fd in _rights(*item)))
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close(packet.descriptors)
        raise WireError(f"a packet of more than {limit} bytes or {descriptors} descriptors")
    if not data:
        close(packet.descriptors)
        raise EOFError
    return packet


def _rights(level: int, kind: int, data: bytes) -> Iterable[int]:
    fds = array.array("i")
    if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
        fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds


def untaken(sock: socket.socket) -> bool:
    """Whether something that was sent has not been received yet."""
    return bool(struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0])


def failed(error: LamellaError) -> Failed:
    """What a client is told of an error."""
    return Failed(error.code, error.message[:2000], error.where[:1000], error.try_[:1000])


def raised(told: Failed) -> LamellaError:
    """The error that a client was told of, of the class its code belongs to."""
    kind = _by_code(StoreError, told.code) or _by_code(LamellaError, told.code) or StoreError
    return kind(told.message, where=told.where, try_=told.try_)


def _by_code(kind: type[LamellaError], code: str) -> type[LamellaError] | None:
    if kind.code == code:
        return kind
    return next((found for sub in kind.__subclasses__() if (found := _by_code(sub, code))), None)
