"""What a zygote is asked and what it answers: packets of a Unix socket, with descriptors beside them.

An order is one packet to the zygote. Its descriptors are, in this order: the socket to report on, the worker's
control and stream sockets, its standard error, the listener on channel `http`, and the gates of its control group.
What is reported is said on that socket alone, so instances of several threads never read each other's news: first
`Forked` with a pidfd, then `go` from the driver (a worker does not touch the driver's sockets before it, so that an
order whose answer was lost can be given to the next zygote), and at the end `Ended`.
"""

from __future__ import annotations

import msgspec

MOST_DESCRIPTORS = 16
GO = b"go"


class Order(msgspec.Struct, frozen=True, array_like=True):
    """A worker to be started."""

    directory: str
    """Of its function."""
    channel: str
    environment: dict[str, str] = {}
    """Beyond what its starter was given."""
    cpus: tuple[int, ...] = ()
    """Cores to stay on; empty for those of whoever asks."""
    user: tuple[int, int] | None = None
    """Numbers of the user and group to become."""
    listens: bool = False
    """Whether a listener is among the descriptors."""


class Holding(msgspec.Struct, frozen=True, tag=True):
    """A zygote is ready to fork."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """A zygote cannot do what it is there for, and leaves."""

    code: str
    message: str


class Forked(msgspec.Struct, frozen=True, tag=True):
    """A worker lives and waits for `go`; its pidfd comes with this."""

    pid: int


class Ended(msgspec.Struct, frozen=True, tag=True):
    """A worker is buried; its exit code, or minus the signal's number."""

    code: int


News = Holding | Refused | Forked | Ended

_encode = msgspec.msgpack.Encoder().encode
_orders = msgspec.msgpack.Decoder(Order)
_news = msgspec.msgpack.Decoder(News)


def encode(what: Order | News) -> bytes:
    """The packet."""
    return _encode(what)


def decode_order(packet: bytes) -> Order:
    """The order in a packet; msgspec.MsgspecError where there is none."""
    return _orders.decode(packet)


def decode_news(packet: bytes) -> News:
    """The news in a packet; msgspec.MsgspecError where there are none."""
    news: News = _news.decode(packet)
    return news
