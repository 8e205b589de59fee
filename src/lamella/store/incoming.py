"""Takes over the files of a put: a copy that nobody else can change, before anything is believed of it.

A descriptor from a client may be of a pipe, a device, or a file that changes or never answers while it is read. So only
regular files are read, to the length the record says and no further, in a thread of their own, and hashed on the way: a
blob that the store has already is not taken from here, and a name alone must not do for having the bytes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lamella.errors import StoreDamaged, StoreFull, WireError
from lamella.store.records import ModelRecord, faults

RECORD_LIMIT = 96 << 10
"""Bytes of a record; it has to fit an answer of the protocol."""
SPARE = 64 << 20
"""Bytes of the disk that a put leaves free."""
CHUNK = 1 << 20


class Incoming:
    """One put on its way: its files are copied into `directory`, which is removed at the end."""

    def __init__(self, directory: Path, model: str, ids: Sequence[str], descriptors: Sequence[int]) -> None:
        """Descriptors: the record, then a file for each of `ids`; they stay the caller's."""
        self._directory, self._model, self._ids, self._descriptors = directory, model, ids, descriptors
        self.record: ModelRecord | None = None
        self.blobs: dict[str, Path] = {}

    def copy(self) -> None:
        """Copy everything.

        Raises:
            WireError: not what the request says: not a file, no record, another model, a blob that is not the record's.
            StoreDamaged: a file is shorter or longer than the record says.
            StoreFull: the disk has no room for it.
        """
        if len(self._descriptors) != len(self._ids) + 1:
            raise WireError(f"a put of {len(self._ids)} blobs came with {len(self._descriptors)} files")
        self.record = self._read_record(self._descriptors[0])
        sizes = {blob.id: blob.bytes for blob in self.record.blobs}
        unknown = [id for id in self._ids if id not in sizes]
        if unknown or len(set(self._ids)) != len(self._ids):
            raise WireError("a put with blobs that its record does not name, or names once")
        needs = sum(sizes[id] for id in self._ids)
        self._directory.mkdir(mode=0o700, parents=True)
        free = shutil.disk_usage(self._directory).free
        if needs + SPARE > free:
            raise StoreFull(
                f"{self._model} takes {needs / 2**20:.0f} MB and a put leaves {SPARE >> 20} MB, the store's disk has "
                f"{free / 2**20:.0f} MB free",
                try_="lamella store remove a model, or a store on a larger disk with --root",
            )
        for id, fd in zip(self._ids, self._descriptors[1:], strict=True):
            self.blobs[id] = self._directory / id
            _copy(fd, self.blobs[id], sizes[id])

    def clear(self) -> None:
        """Remove the copies."""
        shutil.rmtree(self._directory, ignore_errors=True)

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
