"""One blob on its way into memory: from disk, or where it is missing or damaged there, from remote storage.

A load is planned and committed by the shelves; only `run` may be called in another thread, since it reads what never
changes and writes nothing but new files and itself.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.errors import LamellaError, StoreDamaged, StoreError, StoreFull
from lamella.store.backings import Backing, Mismatch
from lamella.store.disk import Disk
from lamella.store.records import SegmentRef

if TYPE_CHECKING:
    from lamella.store.remote import Remote


class Load:
    """Made by `Shelves.plan_load`, which has reserved its room."""

    def __init__(
        self, blob: SegmentRef, backing: Backing, disk: Disk, remote: Remote | None, clock: Callable[[], float]
    ) -> None:
        """Nothing is read yet."""
        self.blob = blob
        self.near = blob.id in disk.sizes
        """Whether the disk should have it."""
        self.bad_on_disk = False
        self.bad_remotely = False
        self.fetched: Path | None = None
        """The file it was downloaded to."""
        self.seconds = 0.0
        self.error: LamellaError | None = None
        self.descriptor = -1
        self.done = False
        self._backing, self._disk, self._remote, self._clock = backing, disk, remote, clock
        self._one = threading.Lock()

    @property
    def id(self) -> str:
        """The blob's."""
        return self.blob.id

    @property
    def bytes(self) -> int:
        """The blob's."""
        return self.blob.bytes

    def run(self) -> None:
        """Read, verify and place it; once, however often it is called. What goes wrong is raised by the commit."""
        with self._one:
            if self.done:
                return
            started = self._clock()
            try:
                self.descriptor = self._read()
            except LamellaError as error:
                self.error = error
            except OSError as error:
                self.error = self._refused(error)
            self.seconds = self._clock() - started
            self.done = True

    def discard(self) -> None:
        """Close and remove what it made, once it does not run; it never will again."""
        with self._one:
            self.done = True
            if self.descriptor >= 0:
                os.close(self.descriptor)
                self.descriptor = -1
            if self.fetched:
                self.fetched.unlink(missing_ok=True)
                self.fetched = None

    def _read(self) -> int:
        try:
            return self._backing.hold(self.blob, self._disk.path(self.id))
        except FileNotFoundError:
            what = "is missing from the disk"
        except Mismatch as error:
            what = self._bad(f"is damaged on disk ({error})")
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            what = self._bad("cannot be read from the disk")
        if self._remote is None:
            raise StoreDamaged(
                f"blob {self.id[:12]} {what}, and there is no remote storage to get it from",
                where=str(self._disk.path(self.id)),
                try_="put the model again",
            )
        try:
            self.fetched = self._remote.fetch(self.blob, self._disk)
        except StoreDamaged:
            self.bad_remotely = True
            raise
        try:
            return self._backing.hold(self.blob, self.fetched)
        except Mismatch as error:
            raise StoreDamaged(f"the disk damages what is written to it: {error}", where=str(self.fetched)) from error

    def _bad(self, what: str) -> str:
        self.bad_on_disk = True
        return what

    def _refused(self, error: OSError) -> StoreError:
        kind = StoreFull if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT) else StoreError
        return kind(
            f"cannot bring blob {self.id[:12]} of {self.bytes} bytes into memory as {self._backing.name}: "
            f"{error.strerror}",
            where=str(self._disk.root),
        )
