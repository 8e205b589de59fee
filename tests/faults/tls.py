"""An object store behind TLS: certificates of an authority of our own, and who ends TLS in front of a server."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest


class Certificates(NamedTuple):
    """PEM files."""

    authority: Path
    server: Path
    key: Path
    """Of the server."""


def certificates(directory: Path) -> Certificates:
    """A new authority, and what it signed for 127.0.0.1; made by openssl, as users make them."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl here to make certificates")
    made = Certificates(*(directory / name for name in ("authority.pem", "server.pem", "server.key")))
    secret = directory / "authority.key"
    new: list[str | Path] = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    leaf: list[str | Path] = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    signed: list[str | Path] = ["-CA", made.authority, "-CAkey", secret]
    for command in (
        [*new, "-subj", "/CN=authority", "-out", made.authority, "-keyout", secret],
        [*new, "-subj", "/CN=store", "-out", made.server, "-keyout", made.key, *signed, *leaf],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return made


@contextmanager
def behind_tls(port: int, given: Certificates) -> Iterator[int]:
    """A port where the server on `port` speaks TLS; bytes pass as they are, so that signatures stay valid."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(given.server, given.key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener, context, port), daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts


def _accept(listener: socket.socket, context: ssl.SSLContext, port: int) -> None:
    with suppress(OSError):  # until the listener is closed
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_pass_on, args=(client, context, port), daemon=True).start()


def _pass_on(client: socket.socket, context: ssl.SSLContext, port: int) -> None:
    """One connection, both ways, until either side ends; a client that does not trust us is left."""
    client.settimeout(10)
    with (
        client,
        suppress(OSError),
        context.wrap_socket(client, server_side=True) as outer,
        socket.create_connection(("127.0.0.1", port)) as inner,
    ):
        back = threading.Thread(target=copy, args=(inner, outer), daemon=True)
        back.start()
        copy(outer, inner)
        back.join()


def copy(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes, until either side ends, and end both."""
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
