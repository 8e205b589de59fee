"""How a function of a package is opened from the store: by what its manifest says, where a daemon has it.

The daemon is asked for the model that was made of this very `function.json`, whose hashes cover the graph and the
weights. Where none listens, or it does not know the function, denies it or has no room, the function's own files are
opened as ever: the store saves, and nothing depends on it.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from lamella.errors import StoreError, WireError
from lamella.runtime.function import Function
from lamella.runtime.pages import Pages
from lamella.runtime.worker import Opened, open_files
from lamella.store.client import Connection, Lease, StoreSession, has_daemon, lease_of
from lamella.units import HASTE

ASK_S = 5.0
"""For a daemon to say what it knows: a function that waits longer opens its files."""


def open_shared(directory: Path, function: Function) -> Opened:
    """Open a function on the store's segments, or on its own files.

    Args:
        directory: of its files.
        function: its manifest.

    Raises:
        ModelError, PackageError: as of its own files.
    """
    with suppress(StoreError, WireError):
        lease = _lease(directory)
        if lease:
            mapped = time.monotonic()
            pages = _pages(lease)
            if haste := bool(os.environ.get(HASTE)):
                pages.bring()  # while the graph is read, and the first request runs
            session = StoreSession(lease)
            if not haste:
                pages.populate()
            return Opened(session, lease.record.function.kind, mapped, shared=True, pages=pages)
    return open_files(directory, function)


def _pages(lease: Lease) -> Pages:
    """Where a lease's weights are mapped, but for tables that are read by rows."""
    maps = [lease.segments[blob.id] for blob in lease.record.segments if not blob.sparse]
    return Pages(((at, at + len(m)) for m in maps for at in [np.frombuffer(m, np.uint8).ctypes.data]), lease)


def _lease(directory: Path) -> Lease | None:
    """A lease of the function, where a daemon listens and has it."""
    if not has_daemon():
        return None
    with Connection(timeout_s=ASK_S) as connection:
        model = connection.find(function_of(directory))
    return lease_of(model) if model else None


def function_of(directory: Path) -> str:
    """What a packaged function is found by in the store: the hash of its manifest, hex."""
    return hashlib.sha256((directory / "function.json").read_bytes()).hexdigest()
