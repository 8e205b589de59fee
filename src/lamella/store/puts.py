"""A model on its way into the store: its blobs are copied, verified and sent to remote storage before anybody sees it.

As a load it is planned and committed by the shelves, which have reserved its room on disk; only `run` may be called in
another thread.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.errors import LamellaError, StorageError, StoreConflict, StoreError
from lamella.store.disk import Disk
from lamella.store.records import ModelRecord, SegmentRef

if TYPE_CHECKING:
    from lamella.store.remote import Remote


def conflict(name: str) -> StoreConflict:
    """The error of a name that is taken."""
    return StoreConflict(
        f"{name} is in the store already, and is another model",
        where=name,
        try_="put it under another version, or lamella store remove it first",
    )


class Put:
    """Made by `Shelves.plan_put`."""

    def __init__(
        self,
        record: ModelRecord,
        new: Mapping[SegmentRef, Path],
        elsewhere: Collection[SegmentRef],
        bad_remotely: Collection[str],
        disk: Disk,
        remote: Remote | None,
    ) -> None:
        """Nothing is read yet.

        Args:
            record: the model.
            new: the files of the blobs that are not on disk.
            elsewhere: the blobs that are neither on disk nor given.
            bad_remotely: ids of blobs that remote storage has damaged.
            disk: where they go.
            remote: where they go too.
        """
        self.record = record
        self.bytes = sum(blob.bytes for blob in new)
        self.staged: dict[SegmentRef, Path] = {}
        self.sent: set[str] = set()
        self.error: LamellaError | None = None
        self.done = False
        self._new, self._elsewhere, self._bad_remotely = new, elsewhere, frozenset(bad_remotely)
        self._disk, self._remote = disk, remote
        self._one = threading.Lock()

    def run(self) -> None:
        """Copy, verify and send it; once, however often it is called. What goes wrong is raised by the commit."""
        with self._one:
            if self.done:
                return
            try:
                self._run()
            except LamellaError as error:
                self.error = error
            except OSError as error:
                self.error = StorageError(f"cannot put {self.record.name}: {error.strerror}")
            self.done = True

    def discard(self) -> None:
        """Remove what it made, once it does not run; it never will again."""
        with self._one:
            self.done = True
            for path in self.staged.values():
                path.unlink(missing_ok=True)
            self.staged.clear()

    def _run(self) -> None:
        if self._remote:
            present = self._remote.record(self.record.name)
            if present is not None and present != self.record:
                raise conflict(self.record.name)
        for blob in self._elsewhere:
            if not self._remote or not self._remote.has(blob):
                raise StoreError(
                    f"blob {blob.id[:12]} of {blob.bytes} bytes is neither in the store nor given",
                    try_="put the model again",
                )
        for blob, path in self._new.items():
            self.staged[blob] = self._disk.stage(blob, path)
        if self._remote:
            self._send(self._remote)

    def _send(self, remote: Remote) -> None:
        for blob in self.record.blobs:
            if blob.id in self._bad_remotely or not remote.has(blob):
                path = self.staged.get(blob) or self._disk.path(blob.id)
                self._disk.check(blob, path)
                remote.send(blob, path)
                self.sent.add(blob.id)
        remote.send_record(self.record)
