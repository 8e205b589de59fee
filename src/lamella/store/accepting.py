"""Puts on their way into the store: copied, checked against what their sender may name, kept, and then there.

The daemon's thread decides between the steps; the steps are done in others. Those that read a sender's files may hang,
and are taken in turns (`turns`); those that follow touch the store's own disk and remote storage only.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lamella.errors import LamellaError, StoreError
from lamella.store import protocol
from lamella.store.access import Access
from lamella.store.incoming import Incoming, Room
from lamella.store.peer import Peer
from lamella.store.puts import Put
from lamella.store.records import ModelRecord
from lamella.store.shelves import Shelves
from lamella.store.sources import Source, Sources
from lamella.store.turns import Turns
from lamella.store.workers import Then, Workers

ARRIVING = "arriving"
"""Where in the root the files of a put are copied to."""
COPY_THREADS = 8
"""For files of puts, which may hang."""
COPIES_AT_ONCE = 2
"""Of them, for one user."""
PUTS = 16
"""Of one user on their way; the files of each are open meanwhile."""
KEEP_THREADS = 4
"""For puts whose files were copied."""


class _Asked(NamedTuple):
    """A put, who asked for it, and who is told."""

    peer: Peer
    request: protocol.Put
    incoming: Incoming
    then: Then


class Accepting:
    """Puts on their way."""

    def __init__(self, shelves: Shelves, access: Access, sources: Sources, root: Path) -> None:
        """None yet; what a killed daemon left of some is removed."""
        self._shelves, self._access, self._sources = shelves, access, sources
        self._arriving = root / ARRIVING
        shutil.rmtree(self._arriving, ignore_errors=True)
        self._copiers, self._keepers = Workers(COPY_THREADS, "copy"), Workers(KEEP_THREADS, "keep")
        self._copying, self._room = Turns(self._copiers, COPIES_AT_ONCE, PUTS), Room()
        self._puts = 0

    @property
    def workers(self) -> tuple[Workers, ...]:
        """Whose `finish` the daemon's loop has to call."""
        return self._copiers, self._keepers

    def check(self, uid: int) -> None:
        """Refuse a user's put before its files are taken.

        Raises:
            StoreQuota: the user has as many on their way as may be.
        """
        self._copying.check(uid)

    def accept(self, peer: Peer, request: protocol.Put, descriptors: tuple[int, ...], then: Then) -> None:
        """Take over the files of a put that was checked, and call `then` when the model is there, or why it is not."""
        self._puts += 1
        place = self._arriving / str(self._puts)
        incoming = Incoming(place, self._room, request.model, request.ids, descriptors)
        asked = _Asked(peer, request, incoming, then)
        self._copying.start(peer.uid, incoming.copy, partial(self._copied, asked))

    def close(self, peer: Peer, descriptors: tuple[int, ...]) -> None:
        """Close a user's files where it holds up nobody else."""
        self._copying.start(peer.uid, partial(protocol.close_all, descriptors), lambda error: None)

    def _copied(self, asked: _Asked, error: LamellaError | None) -> None:
        try:
            if error:
                raise error
            assert asked.incoming.record
            self._check_shared(asked.peer, asked.incoming.record, asked.incoming.blobs)
            put = self._shelves.plan_put(asked.incoming.record, asked.incoming.blobs)
        except LamellaError as failed:
            asked.incoming.clear()
            asked.then(failed)
            return
        self._keepers.start(put.run, partial(self._kept, asked, put))

    def _check_shared(self, peer: Peer, record: ModelRecord, given: Collection[str]) -> None:
        """Refuse blobs that are not given and only in models that the peer may not open, as if they were not there."""
        for blob in record.blobs:
            shared = any(self._access.may_open(peer, name) for name in self._shelves.holders(blob.id))
            if blob.id not in given and not shared and not self._access.may_administer(peer):
                raise StoreError(f"blob {blob.id[:12]} is neither given nor in a model that you may open")

    def _kept(self, asked: _Asked, put: Put, error: LamellaError | None) -> None:
        """Make a put that ran part of the store."""
        asked.incoming.clear()
        try:
            if error:
                self._shelves.abandon_put(put)
                raise error
            self._shelves.commit_put(put)
            if asked.request.source:
                uid, trusted = asked.peer.uid, self._access.may_administer(asked.peer)
                self._sources.add(
                    Source(
                        sha256=asked.request.source,
                        model=put.record.name,
                        graph=put.record.graph.id,
                        uid=uid,
                        trusted=trusted,
                    )
                )
        except LamellaError as failed:
            asked.then(failed)
        else:
            asked.then(None)
