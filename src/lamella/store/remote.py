"""The remote tier: blobs and records in an S3-compatible bucket, for the hosts that share it.

What comes from there is believed by its hash only. Reads are in parts, each with the client's timeout, so that a store
that is away is told within seconds and one that is slow is waited for. The library, obstore, is the extra `s3`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamella.errors import ConfigError, RemoteAway, StorageError, StoreDamaged
from lamella.objects import ObjectStore, bucket
from lamella.store.backings import write_all
from lamella.store.disk import Disk, seal, unseal
from lamella.store.records import ModelRecord, SegmentRef

PART = 1 << 24
_ADDRESS = re.compile(r"s3://([^/]+)(/[A-Za-z0-9._/-]*)?")
_LOCAL = re.compile(r"http://(127\.\d+\.\d+\.\d+|localhost|\[::1\])(:\d+)?/?")


class Remote:
    """A folder of a bucket."""

    def __init__(self, address: str) -> None:
        """Nothing is sent yet.

        Raises:
            ConfigError: no such address, the extra or credentials are missing, or the way there is not encrypted.
        """
        match = _ADDRESS.fullmatch(address)
        where = bucket(match[1], None) if match else None
        if not match or where is None:
            raise ConfigError(f"{address!r} is no remote storage", try_="--remote s3://BUCKET/PREFIX")
        if where.endpoint.startswith("http://") and not _LOCAL.fullmatch(where.endpoint):
            raise ConfigError(
                f"{where.endpoint} is not encrypted, and not on this machine", try_="an https:// endpoint"
            )
        self.address = address
        prefix = (match[2] or "").strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._store = ObjectStore(where)

    def has(self, blob: SegmentRef) -> bool:
        """Whether a blob is there, of its size.

        Raises:
            RemoteAway: nobody answers.
        """
        with self._told():
            return self._store.size(self._object(blob.id)) == blob.bytes

    def fetch(self, blob: SegmentRef, disk: Disk) -> Path:
        """A blob's bytes, verified, in a new file under the disk tier's `incoming/`.

        Raises:
            StoreDamaged: it is not there, or what is there is not it.
            RemoteAway: nobody answers.
            OSError: the disk is full.
        """
        key, digest = self._object(blob.id), hashlib.sha256()
        with self._told():
            size = self._store.size(key)
        if size != blob.bytes:
            what = "is missing from" if size is None else f"has {size} bytes instead of {blob.bytes} in"
            raise StoreDamaged(f"blob {blob.id[:12]} {what} {self.address}", where=self.address, try_=_AGAIN)
        with disk.receiving() as (path, descriptor):
            for start in range(0, blob.bytes, PART):
                with self._told():
                    part = self._store.read(key, start, min(start + PART, blob.bytes))
                digest.update(part)
                write_all(descriptor, part, start)
            if digest.hexdigest() != blob.id:
                raise StoreDamaged(f"blob {blob.id[:12]} is damaged in {self.address}", where=self.address, try_=_AGAIN)
        return path

    def send(self, blob: SegmentRef, path: Path) -> None:
        """Put a blob there.

        Raises:
            RemoteAway: nobody answers.
        """
        with self._told():
            self._store.write(self._object(blob.id), path)

    def record(self, name: str) -> ModelRecord | None:
        """A model's record; None where there is none.

        Raises:
            StoreDamaged: it is not as it was put.
            RemoteAway: nobody answers.
        """
        key = self._model(name)
        with self._told():
            size = self._store.size(key)
            data = None if size is None else self._store.read(key, 0, size)
        return None if data is None else unseal(data, name)

    def send_record(self, record: ModelRecord) -> None:
        """Put a model's record there.

        Raises:
            RemoteAway: nobody answers.
        """
        with self._told():
            self._store.write(self._model(record.name), seal(record))

    def _object(self, id: str) -> str:
        return f"{self._prefix}objects/{id}"

    def _model(self, name: str) -> str:
        return f"{self._prefix}models/{name}.json"

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            raise RemoteAway(error.message, where=error.where, try_=error.try_) from error


_AGAIN = "put the model again"
