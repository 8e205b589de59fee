"""Takes over the files of a put: a copy that nobody else can change, before anything is believed of it.

A descriptor from a client may be of a pipe, a device, or a file that changes or never answers while it is read. So only
regular files are read, to the length the record says and no further, in a thread of their own, and hashed on the way: a
blob that the store has already is not taken from here, and a name alone must not do for having the bytes. Several are
on their way at a time; the disk's free bytes are promised to one of them each.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lamella.errors import StoreDamaged, StoreFull, WireError
from lamella.store.protocol import close_all
from lamella.store.records import ModelRecord, faults

RECORD_LIMIT = 96 << 10
"""Bytes of a record; it has to fit an answer of the protocol."""
SPARE = 64 << 20
"""Bytes of the disk that a put leaves free."""
CHUNK = 1 << 20
COPIES = 2
"""Of each blob before it is part of the store: the one that is made here, and the one that is checked and kept."""


class Room:
    """The free bytes of a disk, less what is promised to puts that have not written it yet. Used in any thread."""

    def __init__(self) -> None:
        """Nothing is promised."""
        self._promised = 0
        self._one = threading.Lock()

    def take(self, what: str, bytes: int, directory: Path) -> None:
        """Promise so many.

        Raises:
            StoreFull: the disk of `directory` has not as many.
        """
        with self._one:
            free = shutil.disk_usage(directory).free - self._promised
            if bytes + SPARE > free:
                raise StoreFull(
                    f"{what} takes {bytes / 2**20:.0f} MB in a put, which leaves {SPARE >> 20} MB; the store's disk "
                    f"has {max(free, 0) / 2**20:.0f} MB free that no other put needs",
                    try_="lamella store remove a model, or a store on a larger disk with --root",
                )
            self._promised += bytes

    def give(self, bytes: int) -> None:
        """They were written, or are not needed."""
        with self._one:
            self._promised -= bytes


class Incoming:
    """One put on its way: its files are copied into `directory`, which is removed at the end."""

    def __init__(self, directory: Path, room: Room, model: str, ids: Sequence[str], descriptors: Sequence[int]) -> None:
        """Descriptors: the record, then a file for each of `ids`; `copy` closes them."""
        self._directory, self._room, self._model, self._ids = directory, room, model, ids
        self._descriptors = descriptors
        self._promised = 0
        self.record: ModelRecord | None = None
        self.blobs: dict[str, Path] = {}

    def copy(self) -> None:
        """Copy everything, and close what it was copied from: in this thread, since that may take as long as reading.

        Raises:
            WireError: not what the request says: not a file, no record, another model, a blob that is not the record's.
            StoreDamaged: a file is shorter or longer than the record says.
            StoreFull: the disk has no room for it.
        """
        try:
            self._copy()
        finally:
            close_all(self._descriptors)

    def _copy(self) -> None:
        if len(self._descriptors) != len(self._ids) + 1:
            raise WireError(f"a put of {len(self._ids)} blobs came with {len(self._descriptors)} files")
        self.record = self._read_record(self._descriptors[0])
        sizes = {blob.id: blob.bytes for blob in self.record.blobs}
        unknown = [id for id in self._ids if id not in sizes]
        if unknown or len(set(self._ids)) != len(self._ids):
            raise WireError("a put with blobs that its record does not name, or names once")
        needs = sum(sizes[id] for id in self._ids)
        self._directory.mkdir(mode=0o700, parents=True)
        self._room.take(self._model, COPIES * needs, self._directory)
        self._promised = COPIES * needs
        for id, fd in zip(self._ids, self._descriptors[1:], strict=True):
            self.blobs[id] = self._directory / id
            _copy(fd, self.blobs[id], sizes[id])
            self._give(sizes[id])

    def clear(self) -> None:
        """Remove the copies, and need no more room."""
        shutil.rmtree(self._directory, ignore_errors=True)
        self._give(self._promised)

    def _give(self, bytes: int) -> None:
        self._promised -= bytes
        self._room.give(bytes)

    def _read_record(self, fd: int) -> ModelRecord:
        size = _regular(fd)
        if size > RECORD_LIMIT:
            raise WireError(f"a record of {size} bytes; the limit is {RECORD_LIMIT}")
        try:
            record = msgspec.json.decode(os.pread(fd, RECORD_LIMIT, 0), type=ModelRecord)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise WireError(f"not a record of a model: {error}") from error
        if wrong := next(faults(record), None):
            raise WireError(f"not a record of a model: {wrong}")
        if record.name != self._model:
            raise WireError(f"the record is of {record.name[:200]!r}, what was to be put is {self._model!r}")
        return record


def _regular(fd: int) -> int:
    """The size of a regular file."""
    state = os.fstat(fd)
    if not stat.S_ISREG(state.st_mode):
        raise WireError("a put came with something that is not a regular file")
    return state.st_size


def _copy(fd: int, path: Path, size: int) -> None:
    """Copy a file of exactly `size` bytes whose hash is the copy's name, whatever the descriptor's own position."""
    hash_ = hashlib.sha256()
    if _regular(fd) != size:
        raise StoreDamaged(f"a blob has {_regular(fd)} bytes, its record says {size}", where=path.name)
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        done = 0
        while done < size:
            data = os.pread(fd, min(CHUNK, size - done), done)
            if not data:
                raise StoreDamaged(f"a blob ended after {done} of {size} bytes", where=path.name)
            file.write(data)
            hash_.update(data)
            done += len(data)
    if hash_.hexdigest() != path.name:
        raise StoreDamaged("a blob is not what its name says", where=path.name, try_="put it again")
