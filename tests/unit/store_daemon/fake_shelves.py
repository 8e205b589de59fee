"""Shelves in memory alone, and a daemon round them whose loads take a while: `python fake_shelves.py ROOT SOCKET [ALLOW]`."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec

from lamella.errors import ModelLeased, StoreDamaged, UnknownModel
from lamella.store.access import Access, read_allow_list
from lamella.store.records import Held, ModelRecord, ModelStatus, Status, TierStatus
from lamella.store.serving import serve
from lamella.store.shelves import Load, Shelves

LOAD_S = 0.3


class FakeLoad(Load):
    def __init__(self, id: str, path: Path) -> None:
        self.id, self.path, self.fd = id, path, -1
        self.bytes = path.stat().st_size

    def run(self) -> None:
        assert self.fd < 0, "run twice"
        time.sleep(LOAD_S)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)


class FakeShelves(Shelves):
    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(exist_ok=True)
        self._records = {
            r.name: r for r in (msgspec.json.decode(p.read_bytes(), type=ModelRecord) for p in root.glob("*.model"))
        }
        self._fds: dict[str, int] = {}
        self._loading: dict[str, FakeLoad] = {}
        self._leases: Counter[str] = Counter()
        self._loads: Counter[str] = Counter()

    def put(self, record: ModelRecord, blobs: Mapping[str, Path]) -> None:
        for id, path in blobs.items():
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != id:
                raise StoreDamaged("not what its name says", where=id)
            (self._root / id).write_bytes(data)
        (self._root / (record.name.replace("/", "_") + ".model")).write_bytes(msgspec.json.encode(record))
        self._records[record.name] = record

    def names(self) -> list[str]:
        return sorted(self._records)

    def record(self, name: str) -> ModelRecord:
        if name not in self._records:
            raise UnknownModel(f"no model {name}")
        return self._records[name]

    def plan_load(self, name: str) -> list[Load]:
        missing = [b.id for b in self.record(name).blobs if b.id not in self._fds]
        for id in missing:
            if id not in self._loading:
                self._loading[id] = FakeLoad(id, self._root / id)
        return [self._loading[id] for id in missing]

    def commit(self, load: Load) -> None:
        assert isinstance(load, FakeLoad)
        del self._loading[load.id]
        self._fds[load.id] = load.fd
        self._loads[load.id] += 1

    def abandon(self, load: Load) -> None:
        self._loading.pop(load.id)

    def acquire(self, name: str) -> Held:
        record = self.record(name)
        self._leases[name] += 1
        return Held(name, record, tuple(self._fds[b.id] for b in record.blobs))

    def release(self, held: Held) -> None:
        self._leases[held.name] -= 1

    def pin(self, name: str) -> None:
        self.record(name)

    def unpin(self, name: str) -> None:
        self.record(name)

    def evict(self, name: str) -> None:
        if self._leases[name]:
            raise ModelLeased(f"{name} is leased")
        for blob in self.record(name).blobs:
            fd = self._fds.pop(blob.id, -1)
            if fd >= 0:
                os.close(fd)

    def status(self) -> Status:
        models = tuple(
            ModelStatus(n, r.bytes, 0, 0, self._leases[n], False, 0, self._loads[r.graph.id])
            for n, r in sorted(self._records.items())
        )
        used = sum(os.fstat(fd).st_size for fd in self._fds.values())
        return Status(
            policy="none",
            tiers=(TierStatus("memory", None, used, len(self._fds), "page-cache", "a fake"),),
            models=models,
            evictions=0,
            damaged=0,
        )

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)


if __name__ == "__main__":
    root, path = map(Path, sys.argv[1:3])
    rules = read_allow_list(Path(sys.argv[3])) if sys.argv[3:] else None
    os.umask(0o077)
    serve(FakeShelves(root), root, path, Access(rules), lambda: print("serving", flush=True))
