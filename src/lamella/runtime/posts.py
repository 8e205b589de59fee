"""An instance on the http channel: requests of `channels.inference` on a port, and its driver's messages beside them.

One request at a time in one thread, whoever asks: connections wait in the order in which they have something to read.
A client that stops in the middle of a message is left after `CLIENT_S`, since everybody else waits for it.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import numpy as np

from lamella.channels import messages as wire
from lamella.channels.http import Connection, Head, HttpError
from lamella.channels.inference import DATATYPES, DTYPES, Post, path_of, refuse, say
from lamella.errors import InputRefused, LamellaError
from lamella.runtime.function import Function, TensorSpec

CLIENT_S = 10.0
"""Without a byte of a message that has begun."""
CLIENTS = 64
"""Connections at a time; a further one takes the place of the one that has been there longest."""
REFUSED = (InputRefused.code, "wire.codec")
"""What is the client's fault."""


class Runs(Protocol):
    """What answers: a worker."""

    @property
    def function(self) -> Function:
        """What it runs."""

    def told(self, packet: bytes) -> bool:
        """Do what its driver says; whether to go on."""

    def decoded(self, refs: Sequence[wire.TensorRef], sent: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Tensors by name, from their bytes."""

    def run(
        self, wanted: list[wire.TensorRef], feeds: dict[str, np.ndarray]
    ) -> list[tuple[wire.TensorRef, np.ndarray]]:
        """The outputs and their bytes."""


def serve(worker: Runs, control: socket.socket, listener: socket.socket) -> None:
    """Answer until the driver says Stop.

    Raises:
        EOFError: the driver is gone.
    """
    poll = select.poll()
    for sock in (control, listener):
        poll.register(sock, select.POLLIN)
    connections: dict[int, Connection] = {}
    while True:
        for number, _ in poll.poll():
            if number == control.fileno():
                if not worker.told(control.recv(wire.PACKET_LIMIT)):
                    return
            elif number == listener.fileno():
                with suppress(OSError):  # a client that is gone before it is taken
                    sock = listener.accept()[0]
                    sock.settimeout(CLIENT_S)
                    connections[sock.fileno()] = Connection(sock)
                    poll.register(sock, select.POLLIN)
                if len(connections) > CLIENTS:
                    _leave(connections, next(iter(connections)), poll)
            elif number in connections and not _attend(worker, connections[number]):
                _leave(connections, number, poll)


def _leave(connections: dict[int, Connection], number: int, poll: select.poll) -> None:
    poll.unregister(number)
    connections.pop(number).close()


def _attend(worker: Runs, connection: Connection) -> bool:
    """Answer what is there; whether the connection stays open."""
    try:
        while True:
            lasting = _answer(worker, connection)
            if not lasting or not connection.waiting():
                return lasting
    except HttpError as error:
        with suppress(OSError):
            refuse(connection, error.status, str(error))
    except TimeoutError:
        with suppress(OSError):
            refuse(connection, 408, f"nothing came for {CLIENT_S:g} s in the middle of a message")
    except (EOFError, OSError):
        pass  # the client is gone
    return False


def _answer(worker: Runs, connection: Connection) -> bool:
    """Read a request and answer it; whether the connection can be used further."""
    head = connection.head()
    verb, path, version = head.first
    function = worker.function
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise HttpError(505, f"{version!r}: this is an HTTP/1.1 server")
    if path == path_of(function.name):
        if verb != "POST":
            raise HttpError(405, f"{verb} {path}: a function is asked with POST")
        return _infer(worker, connection, head)
    ready = {"/v2/health/live", "/v2/health/ready", f"/v2/models/{function.name}/ready"}
    if verb == "GET" and (path in ready or path == f"/v2/models/{function.name}"):
        connection.body(head.length)
        say(connection, {"ready": True} if path in ready else _metadata(function), lasting=head.lasting)
        return head.lasting
    raise HttpError(404, f"there is no {path[:200]}; requests go to {path_of(function.name)}")


def _infer(worker: Runs, connection: Connection, head: Head) -> bool:
    started, cpu = time.monotonic(), time.process_time()
    if "content-length" not in head.fields and "transfer-encoding" not in head.fields:
        raise HttpError(411, "a request says the length of its body")
    try:
        post = Post(connection, head)
        feeds = _fed(worker, post)
        made = worker.run(_wanted(worker.function, post), feeds)
    except (HttpError, EOFError, OSError):
        raise
    except LamellaError as error:
        status = 400 if error.code in REFUSED else 500
        refuse(connection, status, error.message, code=error.code, try_=error.try_, lasting=head.lasting)
    except Exception as error:  # noqa: BLE001 - the binding raises bare exceptions
        refuse(connection, 400, str(error).splitlines()[0][:500], code=InputRefused.code, lasting=head.lasting)
    else:
        refs, parts = [ref for ref, _ in made], [data.data for _, data in made]
        post.answer(worker.function.name, refs, parts, time.monotonic() - started, time.process_time() - cpu)
    return head.lasting


def _fed(worker: Runs, post: Post) -> dict[str, np.ndarray]:
    """The tensors of a request, decoded.

    Raises:
        InputRefused: not those that the function takes.
        CodecError: bytes that are none of their tensor.
    """
    function = worker.function
    takes, given = {s.name for s in function.inputs}, {ref.name for ref in post.inputs}
    if takes != given or len(given) < len(post.inputs):
        raise InputRefused(f"{function.name} takes {', '.join(sorted(takes))}; given {', '.join(sorted(given))}")
    for ref in post.inputs:
        if ref.dtype not in DATATYPES:
            raise InputRefused(f"input {ref.name!r}: the datatypes are {', '.join(DTYPES)}")
    return worker.decoded(post.inputs, post.sent)


def _wanted(function: Function, post: Post) -> list[wire.TensorRef]:
    """The outputs that are asked for; all of them where none is."""
    specs = {s.name: s for s in function.outputs}
    names = post.wanted or specs
    if unknown := [name for name in names if name not in specs]:
        raise InputRefused(f"{function.name} gives {', '.join(specs)}; asked for {', '.join(unknown)}")
    codecs = {name: parameters.codec for name, parameters in post.wanted.items()}
    return [wire.TensorRef(name, specs[name].dtype, (), codec=codecs.get(name, "none")) for name in names]


def _metadata(function: Function) -> dict[str, object]:
    def told(specs: tuple[TensorSpec, ...]) -> list[dict[str, object]]:
        return [
            {
                "name": s.name,
                "datatype": DATATYPES.get(s.dtype, s.dtype),
                "shape": [d if isinstance(d, int) else -1 for d in s.shape],
            }
            for s in specs
        ]

    return {
        "name": function.name,
        "platform": "onnxruntime",
        "inputs": told(function.inputs),
        "outputs": told(function.outputs),
    }
