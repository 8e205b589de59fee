"""How a driver asks one instance: over its Unix sockets, or over HTTP as an orchestrator does on a real platform.

A line carries requests and answers. What an instance is told besides (attach, report, stop) goes over its control
socket whatever the line, and so does the news of its end.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Protocol

from lamella.channels import messages as wire
from lamella.errors import WireError


class Line(Protocol):
    """Requests to an instance and its answers, one at a time."""

    def fileno(self) -> int:
        """Readable when an answer is there."""

    def settimeout(self, timeout_s: float) -> None:
        """How long sending and receiving may wait."""

    def send(self, request: bytes, parts: Sequence[memoryview]) -> None:
        """Send a request and its tensors; OSError where the instance is gone."""

    def receive(self) -> tuple[wire.Message, Sequence[bytearray]]:
        """The answer and the bytes of its outputs; EOFError or OSError where the instance is gone."""

    def close(self) -> None:
        """Close it."""


class UnixLine:
    """Messages over the control socket, and the bytes of tensors over a stream socket beside it."""

    def __init__(self, sock: socket.socket, stream: socket.socket) -> None:
        """The sockets are closed by whoever made them."""
        self._sock, self._stream = sock, stream
        self.fileno = sock.fileno

    def settimeout(self, timeout_s: float) -> None:
        """For both sockets."""
        self._sock.settimeout(timeout_s)
        self._stream.settimeout(timeout_s)

    def send(self, request: bytes, parts: Sequence[memoryview]) -> None:
        """One packet, and the tensors behind each other."""
        self._sock.send(request)
        wire.send_bytes(self._stream, parts)

    def receive(self) -> tuple[wire.Message, Sequence[bytearray]]:
        """One packet, and the outputs that it says were streamed."""
        message = wire.receive(self._sock)
        if not isinstance(message, wire.Done):
            return message, ()
        return message, [wire.receive_bytes(self._stream, ref.size) for ref in message.outputs if ref.streamed]

    def close(self) -> None:
        """Nothing: the sockets are the instance's."""


class HttpLine:
    """POSTs over a connection that is kept."""

    def __init__(self, address: tuple[str, int]) -> None:
        """Where the function listens; connected with the first request."""
        from lamella.channels.http import Connection  # here, for the channels that do without

        self._address, self._kind = address, Connection
        self._connection: Connection | None = None
        self._timeout_s: float | None = None

    def fileno(self) -> int:
        """Of the connection that a request went over."""
        assert self._connection
        return self._connection.socket.fileno()

    def settimeout(self, timeout_s: float) -> None:
        """For connecting, sending and receiving."""
        self._timeout_s = timeout_s
        if self._connection:
            self._connection.socket.settimeout(timeout_s)

    def send(self, request: bytes, parts: Sequence[memoryview]) -> None:
        """A head with its JSON, and the tensors behind each other."""
        if self._connection is None:
            self._connection = self._kind(socket.create_connection(self._address, self._timeout_s))
        self._connection.send(request, *parts)

    def receive(self) -> tuple[wire.Message, Sequence[bytearray]]:
        """The answer."""
        from lamella.channels.http import HttpError
        from lamella.channels.inference import read_answer

        assert self._connection
        try:
            message, data, lasting = read_answer(self._connection)
        except HttpError as error:
            self.close()
            raise WireError(f"a function's answer is not of this protocol: {error}") from error
        if not lasting:
            self.close()
        return message, data

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection:
            self._connection.close()
            self._connection = None
