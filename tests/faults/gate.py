"""A server that answers when a test lets it: what asks it waits, and what does not must not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.faults.tls import copy


class Gate:
    """Stands before a server."""

    def __init__(self, listener: socket.socket) -> None:
        """Open."""
        self.port: int = listener.getsockname()[1]
        self.connections = 0
        """That came, held ones too."""
        self.open = threading.Event()
        self.open.set()

    @property
    def endpoint(self) -> str:
        """Where to ask."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def gated(port: int) -> Iterator[Gate]:
    """A gate before the server on `port`; connections that come while it is shut are passed on when it is opened."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        gate = Gate(listener)
        threading.Thread(target=_accept, args=(listener, gate, port), daemon=True).start()
        try:
            yield gate
        finally:
            gate.open.set()
            listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts


def _accept(listener: socket.socket, gate: Gate, port: int) -> None:
    with suppress(OSError):  # until the listener is closed
        while True:
            client, _ = listener.accept()
            gate.connections += 1
            threading.Thread(target=_pass_on, args=(client, gate, port), daemon=True).start()


def _pass_on(client: socket.socket, gate: Gate, port: int) -> None:
    gate.open.wait(60)
    client.settimeout(10)
    with client, suppress(OSError), socket.create_connection(("127.0.0.1", port)) as inner:
        back = threading.Thread(target=copy, args=(inner, client), daemon=True)
        back.start()
        copy(client, inner)
        back.join()
