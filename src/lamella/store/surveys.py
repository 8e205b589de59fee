"""Which blobs of the disk remote storage has too, so that they may leave: asked by a thread, believed by the shelves.

What is put or fetched is known to be there. This is for what the disk held when the store was opened.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from lamella.errors import LamellaError

if TYPE_CHECKING:
    from lamella.store.records import SegmentRef
    from lamella.store.remote import Remote


class Survey:
    """Made by `Shelves.plan_survey`."""

    def __init__(self, blobs: Collection[SegmentRef], remote: Remote) -> None:
        """Nothing is asked yet."""
        self.found: set[str] = set()
        """Ids of what is there."""
        self.done = False
        """Whether all were asked for; else remote storage did not answer."""
        self._blobs, self._remote = blobs, remote

    def run(self) -> None:
        """Ask."""
        try:
            self.found.update(blob.id for blob in self._blobs if self._remote.has(blob))
        except LamellaError:
            return
        self.done = True
