"""The disk tier: blobs under `objects/`, records under `models/`, nothing readable for others.

A file appears whole: it is written under `incoming/`, synced, then renamed. So whatever a killed daemon leaves is
complete, or in `incoming/`, which the next one empties. What is found damaged is moved to `damaged/`, where somebody
can look at it; it counts as used and is the first to go when room is needed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from lamella.errors import StorageError, StoreConflict, StoreDamaged
from lamella.store.backings import Mismatch, copy, write_all
from lamella.store.records import ID, NAME, ModelRecord, SegmentRef


class Sealed(msgspec.Struct, frozen=True):
    """A record as it is kept: a flipped bit in it is found as one in a blob is."""

    sha256: str
    """Of the record's bytes."""
    record: msgspec.Raw


def seal(record: ModelRecord) -> bytes:
    """A record as it is kept, on disk and in remote storage."""
    data = msgspec.json.encode(record)
    return msgspec.json.encode(Sealed(hashlib.sha256(data).hexdigest(), msgspec.Raw(data)))


def unseal(data: bytes, name: str) -> ModelRecord:
    """The record of a model.

    Raises:
        StoreDamaged: these bytes are not its record as it was kept.
    """
    try:
        sealed = msgspec.json.decode(data, type=Sealed)
        if hashlib.sha256(sealed.record).hexdigest() == sealed.sha256:
            record = msgspec.json.decode(sealed.record, type=ModelRecord)
            if record.name == name:
                return record
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    raise StoreDamaged(f"the record of {name} is damaged", where=name, try_="put the model again")


class Disk:
    """What is on disk. One process at a time."""

    def __init__(self, root: Path, budget: int | None) -> None:
        """Make or open `root`, and see what is there: sizes and records, not yet the bytes of blobs.

        Raises:
            StorageError: the directory cannot be made or read.
            StoreConflict: another process has it open.
        """
        self.root, self.budget = root.absolute(), budget
        self.objects, self.models = self.root / "objects", self.root / "models"
        self.incoming, self.damaged = self.root / "incoming", self.root / "damaged"
        self.sizes: dict[str, int] = {}
        self.promised = 0
        """Bytes of what is being put."""
        self.records: dict[str, ModelRecord] = {}
        self._set_aside: dict[Path, int] = {}
        with self._told():
            for directory in (self.root, self.objects, self.models, self.incoming, self.damaged):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.root.chmod(0o700)
            self._lock = os.open(self.root / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            self._take_lock()
            with self._told():
                self._recover()
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreConflict(
                f"another store is open on {self.root}",
                where=str(self.root),
                try_="lamella store stop, or another root",
            ) from error

    def _recover(self) -> None:
        for left in _files(self.incoming, "*"):
            left.unlink()
        for path in _files(self.damaged, "*"):
            self._set_aside[path] = path.stat().st_size
        for path in _files(self.models, "**/*.json"):
            name = path.relative_to(self.models).as_posix().removesuffix(".json")
            try:
                self.records[name] = unseal(path.read_bytes(), name)
            except StoreDamaged:
                self._move_aside(path, f"record-{hashlib.sha256(name.encode()).hexdigest()[:16]}")
        needed = {blob.id: blob for record in self.records.values() for blob in record.blobs}
        for path in _files(self.objects, "*/*"):
            blob = needed.get(path.name)
            if blob is None:
                path.unlink()  # a put that did not come to its end
            elif path.stat().st_size != blob.bytes:
                self._move_aside(path, path.name)
            else:
                self.sizes[path.name] = blob.bytes

    def close(self) -> None:
        """Let another process open it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def used(self) -> int:
        """Bytes of blobs, those set aside too."""
        return sum(self.sizes.values()) + sum(self._set_aside.values())

    def path(self, id: str) -> Path:
        """Where a blob is, or would be."""
        assert ID.fullmatch(id), id
        return self.objects / id[:2] / id

    def room_for(self, bytes: int) -> int:
        """Bytes that have to go before so many fit; what is damaged goes at once."""
        if self.budget is None:
            return 0
        bytes += self.promised
        while self._set_aside and self.used + bytes > self.budget:
            path, _ = self._set_aside.popitem()
            path.unlink(missing_ok=True)
        return max(self.used + bytes - self.budget, 0)

    @contextmanager
    def receiving(self) -> Iterator[tuple[Path, int]]:
        """A new file under `incoming/` and a descriptor to write it with; synced at the end, removed on an error.

        Called in any thread.
        """
        path = self.incoming / os.urandom(16).hex()
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o400)
        try:
            yield path, descriptor
            os.fsync(descriptor)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def stage(self, blob: SegmentRef, source: Path) -> Path:
        """A verified copy of a file that somebody gave and may change meanwhile, not yet part of the tier.

        Raises:
            StoreDamaged: it is not the blob.
            StorageError: it cannot be read, or the disk is full.
        """
        try:
            with self._told(), open(source, "rb", buffering=0) as given, self.receiving() as (path, descriptor):
                copy(given.fileno(), descriptor, blob)
        except Mismatch as error:
            raise StoreDamaged(f"what was given is not what the record says: {error}", where=str(source)) from error
        return path

    def check(self, blob: SegmentRef, path: Path) -> None:
        """See that a file is the blob.

        Raises:
            StoreDamaged: it is not.
            StorageError: it cannot be read.
        """
        try:
            with self._told(), open(path, "rb", buffering=0) as file:
                copy(file.fileno(), None, blob)
        except Mismatch as error:
            raise StoreDamaged(f"the disk tier is damaged: {error}", where=str(path)) from error

    def adopt(self, blob: SegmentRef, staged: Path) -> None:
        """Make a staged file part of the tier.

        Raises:
            StorageError: the disk refuses.
        """
        path = self.path(blob.id)
        with self._told():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            os.replace(staged, path)
            _sync(path.parent)
        self.sizes[blob.id] = blob.bytes

    def keep(self, record: ModelRecord) -> None:
        """Write a model's record.

        Raises:
            StorageError: the disk refuses.
        """
        path = self._record(record.name)
        with self._told():
            path.parent.mkdir(mode=0o700, exist_ok=True)
        self.write(path, seal(record))
        self.records[record.name] = record

    def write(self, path: Path, data: bytes) -> None:
        """Write a small file whole or not at all, for its owner to read.

        Raises:
            StorageError: the disk refuses; what was there stays.
        """
        with self._told():
            with self.receiving() as (made, descriptor):
                write_all(descriptor, data)
            os.replace(made, path)
            _sync(path.parent)

    def forget(self, name: str) -> None:
        """Remove a model's record.

        Raises:
            StorageError: the disk refuses; it stays.
        """
        with self._told():
            self._record(name).unlink(missing_ok=True)
        self.records.pop(name, None)

    def drop(self, id: str) -> None:
        """Remove a blob.

        Raises:
            StorageError: the disk refuses; it stays, and counts.
        """
        with self._told():
            self.path(id).unlink(missing_ok=True)
        self.sizes.pop(id, None)

    def set_aside(self, id: str) -> None:
        """Take a damaged blob out of the tier; on a disk that refuses to move it, it is merely not counted there."""
        if self.sizes.pop(id, None) is not None:
            with suppress(OSError):
                self._move_aside(self.path(id), id)

    def _move_aside(self, path: Path, name: str) -> None:
        to = self.damaged / name
        os.replace(path, to)
        self._set_aside[to] = to.stat().st_size

    def _record(self, name: str) -> Path:
        assert NAME.fullmatch(name), name
        return self.models / f"{name}.json"

    @contextmanager
    def _told(self) -> Iterator[None]:
        """The system's errors as ours."""
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"the store's disk refuses: {error.strerror} ({error.filename or self.root})",
                where=str(self.root),
                try_="free some space, or start the store on a larger disk with --root",
            ) from error


def _files(directory: Path, pattern: str) -> list[Path]:
    """The regular files; what else somebody put there is not ours, and a pipe would be waited for."""
    return [path for path in directory.glob(pattern) if stat.S_ISREG(path.lstat().st_mode)]


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
