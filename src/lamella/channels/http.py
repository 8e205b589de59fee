"""HTTP/1.1 on a socket, as much of it as functions need: one message at a time, its length said before it.

Both sides of the http channel are here: a function answers with `Connection`, and so does its driver ask. Rejected:
`http.server` and `http.client`, which parse headers as e-mail: their import adds 20 ms and 50 modules to every start.
Of HTTP/1.1 a server needs little (RFC 9112): persistent connections, Content-Length, `Expect: 100-continue`, and a
status for whatever it refuses. Chunked bodies are refused: tensors know their size.
"""

from __future__ import annotations

import socket
from typing import NamedTuple

HEAD_LIMIT = 1 << 15
BODY_LIMIT = 1 << 31
DIGITS = 18
REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    411: "Length Required",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    505: "HTTP Version Not Supported",
}


class HttpError(Exception):
    """A message that is refused, with the status that says why. The connection cannot be used any further."""

    def __init__(self, status: int, message: str) -> None:
        """The status and a sentence."""
        super().__init__(message)
        self.status = status


class Head(NamedTuple):
    """The first line of a message in three words, and its fields by their names in lower case."""

    first: tuple[str, str, str]
    fields: dict[str, str]

    @property
    def length(self) -> int:
        """Bytes of the body.

        Raises:
            HttpError: it does not say, or in a way that is not understood here.
        """
        if "transfer-encoding" in self.fields:
            raise HttpError(501, "bodies are taken with a Content-Length, not chunked")
        said = self.fields.get("content-length", "0")
        if not (said.isascii() and said.isdecimal()) or len(said) > DIGITS:
            raise HttpError(400, f"Content-Length {said[:40]!r} is no length")
        if int(said) > BODY_LIMIT:
            raise HttpError(413, f"a body of {said} bytes; the limit is {BODY_LIMIT}")
        return int(said)

    @property
    def lasting(self) -> bool:
        """Whether the connection stays open behind the message."""
        said = self.fields.get("connection", "").lower()
        return "close" not in said and "HTTP/1.0" not in self.first


class Connection:
    """One end of a connection: heads and bodies as they come, whatever the packets."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over a connected TCP socket."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # an answer in two packets must not wait for an ACK
        self.socket = sock
        self._rest = b""

    def waiting(self) -> bool:
        """Whether bytes of a next message are here already, which no poll would tell."""
        return bool(self._rest)

    def head(self) -> Head:
        """The head of the next message.

        Raises:
            EOFError: the other side closed.
            HttpError: it is none, or too long.
        """
        data = self._rest
        while (end := data.find(b"\r\n\r\n", 0, HEAD_LIMIT)) < 0:
            if len(data) >= HEAD_LIMIT:
                raise HttpError(431, f"more than {HEAD_LIMIT} bytes of header")
            got = self.socket.recv(HEAD_LIMIT)
            if not got:
                raise EOFError
            data += got
        self._rest = data[end + 4 :]
        return _parsed(data[:end])

    def body(self, size: int) -> bytearray:
        """Exactly `size` bytes.

        Raises:
            EOFError: the other side closed before.
        """
        data = bytearray(size)
        have = min(size, len(self._rest))
        data[:have], self._rest = self._rest[:have], self._rest[have:]
        view = memoryview(data)[have:]
        while view:
            got = self.socket.recv_into(view)
            if not got:
                raise EOFError
            view = view[got:]
        return data

    def send(self, *parts: bytes | memoryview) -> None:
        """Send all of it, small parts together."""
        small = b""
        for part in parts:
            if len(part) < HEAD_LIMIT:
                small += part
                continue
            if small:
                self.socket.sendall(small)
                small = b""
            self.socket.sendall(part)
        if small:
            self.socket.sendall(small)

    def close(self) -> None:
        """Close it."""
        self.socket.close()


def _parsed(data: bytes) -> Head:
    """The head in these bytes."""
    lines = data.decode("latin-1").split("\r\n")
    first = lines[0].split(" ", 2)
    if len(first) != 3 or not (first[0].startswith("HTTP/") or first[2].startswith("HTTP/")):
        raise HttpError(400, f"{lines[0][:80]!r} begins no HTTP message")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():  # no name, a folded line, or a blank before the colon
            raise HttpError(400, f"{line[:80]!r} is no header field")
        key, value = name.lower(), value.strip()
        if key == "content-length" and fields.get(key, value) != value:
            raise HttpError(400, "two lengths")
        fields[key] = value
    return Head((first[0], first[1], first[2]), fields)


def request_head(path: str, fields: str, length: int) -> bytes:
    """The head of a POST; `fields` are lines that end in CRLF."""
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Length: {length}\r\n\r\n".encode("latin-1")


def answer_head(status: int, fields: str, length: int, *, lasting: bool) -> bytes:
    """The head of an answer."""
    end = "" if lasting else "Connection: close\r\n"
    line = f"HTTP/1.1 {status} {REASONS[status]}\r\n"
    return f"{line}{fields}{end}Content-Length: {length}\r\n\r\n".encode("latin-1")
