"""Which models stay in memory, kept in one file of the store's root, so that a restart brings them back.

The file is a convenience: a store whose pins cannot be read starts without them and says so in its status. It lies in a
directory of the daemon's own user, yet is read as if anybody had written it: a regular file of bounded size, names that
are names, of models that are here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

import msgspec

from lamella.documents import Document
from lamella.store.disk import Disk

FILE = "pins.json"
LIMIT = 1 << 20
"""Bytes of it."""


class Pinned(Document, frozen=True, kw_only=True):
    """`pins.json`."""

    models: tuple[str, ...] = ()


class Pins:
    """The pinned models of a disk tier."""

    def __init__(self, disk: Disk) -> None:
        """Those of the file, as far as they can be believed."""
        self._disk = disk
        self._path = disk.root / FILE
        self.notes: tuple[str, ...] = ()
        """What of the file was ignored, and why."""
        self._names: frozenset[str] = frozenset()
        try:
            named = self._read()
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self.notes = (f"{FILE} was ignored, nothing is pinned: {reason}"[:300],)
            return
        self._names = frozenset(n for n in named if n in disk.records)
        if gone := [n[:80] for n in named if n not in disk.records]:
            self.notes = (f"{FILE} names {len(gone)} that are not on disk, {gone[0]!r} among them",)

    def _read(self) -> tuple[str, ...]:
        """The names in the file; none where there is no file."""
        try:  # nothing is followed, nor waited for
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return ()
        try:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode) or state.st_size > LIMIT or state.st_uid != os.geteuid():
                raise OSError(None, "not a file of this user of at most 1 MB")
            found = msgspec.json.decode(os.pread(descriptor, LIMIT, 0), type=Pinned)
        finally:
            os.close(descriptor)
        if found.lamella != 1:
            raise OSError(None, f"schema version {found.lamella}, this lamella reads version 1")
        return tuple(dict.fromkeys(found.models))

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def add(self, name: str) -> None:
        """Pin a model.

        Raises:
            StorageError: the disk refuses; it is not pinned.
        """
        self._keep(self._names | {name})

    def discard(self, name: str) -> None:
        """Pin it no longer.

        Raises:
            StorageError: the disk refuses; it stays pinned.
        """
        self._keep(self._names - {name})

    def _keep(self, names: frozenset[str]) -> None:
        if names != self._names:
            self._disk.write(self._path, msgspec.json.encode(Pinned(models=tuple(sorted(names)))))
            self._names = names
            self.notes = ()
