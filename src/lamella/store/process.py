"""The daemon as a process: what `lamella store serve` becomes, without the command line's libraries.

`python -m lamella.store.process ORDER`, where the order is one JSON document, written by the command, which has parsed
the options: they are said once, there. The command is replaced (execve), so that its process id, terminal and parent
stay; what it imported, and what the daemon never needs (numpy, onnxruntime), is not held while the daemon runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import msgspec

import lamella
from lamella.errors import LamellaError
from lamella.store.access import Access, read_allow_list
from lamella.store.records import Settings
from lamella.store.serving import serve
from lamella.store.shelves import Shelves


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a daemon is told."""

    settings: Settings
    socket: Path
    allow: Path | None = None
    """The allow-list's file."""


def become(order: Order) -> NoReturn:
    """Turn this process into a daemon.

    Nothing is imported from the working directory (`-P`), which may be another user's.
    """
    home = str(Path(lamella.__file__).parents[1])
    paths = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    said = msgspec.json.encode(order, enc_hook=os.fspath).decode()
    sys.stdout.flush()
    command = [sys.executable, "-P", "-m", __name__, said]
    os.execve(sys.executable, command, os.environ | {"PYTHONPATH": paths})


def main(said: str) -> int:
    """Be the daemon of an order; the exit code."""
    order = msgspec.json.decode(said, type=Order, dec_hook=_path)
    os.umask(0o077)
    try:
        access = Access(read_allow_list(order.allow) if order.allow else None)
        shelves = Shelves(order.settings)
        serve(shelves, order.settings.root, order.socket, access, lambda: _ready(order.socket))
    except LamellaError as error:
        print(f"lamella: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _path(kind: type, value: Any) -> Any:
    """Paths are strings in the order."""
    return kind(value)


def _ready(socket: Path) -> None:
    print(f"serving at {socket}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
