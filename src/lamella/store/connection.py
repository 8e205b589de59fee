"""One client of the daemon: its socket, what it leases, and the answer that it has not taken yet.

A connection is read only when it has nothing to take and nothing is being done for it, and a request that comes before
the last answer was received ends it (`daemon`). So the most that one client can have held for it is one answer.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import Any, NamedTuple

from lamella.errors import LamellaError
from lamella.store import protocol
from lamella.store.peer import Peer


class Outgoing(NamedTuple):
    """A packet to send; `own` descriptors are closed when it is sent, others belong to a lease."""

    data: bytes
    descriptors: tuple[int, ...] = ()
    own: bool = False


class Connection:
    """State of one client."""

    def __init__(self, sock: socket.socket, peer: Peer, now: float) -> None:
        """A connection that came `now` (s, the daemon's clock)."""
        self.sock, self.peer = sock, peer
        self.greeted = False
        self.busy = False
        """Whether work is being done for it."""
        self.closed = False
        self.since = now
        """When it came, or when the daemon began to wait for it to take an answer."""
        self.held: list[Any] = []
        """Its leases."""
        self._out: deque[Outgoing] = deque()

    @property
    def pending(self) -> bool:
        """Whether it has an answer to take."""
        return bool(self._out)

    def answer(self, message: protocol.Answer, descriptors: tuple[int, ...] = (), *, own: bool = False) -> None:
        """Have an answer sent, with as many packets as its descriptors take."""
        count = protocol.DESCRIPTORS
        parts = [descriptors[k : k + count] for k in range(0, len(descriptors), count)] or [()]
        try:
            self._out.append(Outgoing(protocol.encode(message), parts[0], own))
        except LamellaError as error:
            self._out.append(Outgoing(protocol.encode(protocol.failed(error))))
            return
        self._out.extend(Outgoing(protocol.encode(protocol.More()), part, own) for part in parts[1:])

    def fail(self, error: LamellaError) -> None:
        """Have an error told."""
        self.answer(protocol.failed(error))

    def flush(self) -> None:
        """Send what the client takes now.

        Raises:
            OSError: the connection is lost.
        """
        while self._out:
            packet = self._out[0]
            try:
                protocol.send(self.sock, packet.data, packet.descriptors)
            except BlockingIOError:
                return
            self._out.popleft()
            if packet.own:
                protocol.close_all(packet.descriptors)

    def close(self) -> None:
        """Close the socket, and drop what was to be sent."""
        self.closed = True
        for packet in self._out:
            if packet.own:
                protocol.close_all(packet.descriptors)
        self._out.clear()
        self.sock.close()
