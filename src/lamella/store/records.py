"""What the store holds and says: the records of models, the store's settings, leases, and its status document.

A model is a small record: the graph, a blob of its own, and the segments that hold the weights. Blobs are called by
the sha256 of their bytes. In the graph every external weight names its segment's id as its file, so that a process
hands maps of the segments to the runtime under these names and nothing is copied.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from lamella.documents import Document
from lamella.errors import ConfigError
from lamella.runtime.manifest import Function

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}"
NAME = re.compile(rf"{_PART}(?:/{_PART})?@{_PART}")
"""`model@version`, or `model/function@version`."""
ID = re.compile(r"[0-9a-f]{64}")

PORTABLE = ".portable"
"""Ends the name, before the version, of the variant that runs on any CPU: `bert.portable@1` beside `bert@1`."""


def portable_name(name: str) -> str:
    """What a model's variant for any CPU is called."""
    model, at, version = name.partition("@")
    plan, *function = model.split("/")
    return "/".join([plan + PORTABLE, *function]) + at + version


class SegmentRef(msgspec.Struct, frozen=True):
    """A blob by its content: a segment, or a graph."""

    id: str
    """sha256 of its bytes, hex."""
    bytes: int
    sparse: bool = False
    """Whether the model reads it by rows only: a table of which a request touches a few."""


class ModelRecord(Document, frozen=True, kw_only=True):
    """One model of the store."""

    name: str
    graph: SegmentRef
    """The ONNX file, whose external weights name the segments by their ids."""
    segments: tuple[SegmentRef, ...]
    function: Function
    """How it is opened. Its `graph` is the graph's id, `weights` and `portable` are empty; whoever opens it sees to it
    that `function.machine` fits (`Machine.runs`), and else takes the portable variant."""

    @property
    def blobs(self) -> tuple[SegmentRef, ...]:
        """The graph, then the segments: the order of a lease's descriptors."""
        return (self.graph, *self.segments)

    @property
    def bytes(self) -> int:
        """What it takes in memory if nothing of it is there yet."""
        return sum(blob.bytes for blob in dict.fromkeys(self.blobs))


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a store is run. A budget of None is no limit."""

    root: Path
    """The disk tier; made where it is missing, readable for its owner only."""
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    policy: str = "lru"
    """Which segment leaves memory first; see `store.policies`."""
    remote: str | None = None
    """`s3://BUCKET[/PREFIX]`; endpoint and credentials are in the standard AWS variables."""
    backing: str | None = None
    """`huge-tmpfs`, `page-cache` or `memfd`; None takes the first that works here."""


class Held(NamedTuple):
    """A lease: descriptors of a model's blobs, open for reading, that stay the store's and good until released."""

    name: str
    record: ModelRecord
    descriptors: tuple[int, ...]
    """The graph's, then the segments' in the record's order."""


class TierStatus(msgspec.Struct, frozen=True):
    """One tier: memory, disk or remote."""

    name: str
    budget_bytes: int | None
    used_bytes: int
    blobs: int
    backing: str
    why: str
    """How the backing was chosen, or what stands in the tier's way."""
    cached_bytes: int = 0
    """Of memory: the part of `used_bytes` that is pages of files, there when touched, and the kernel's to drop."""


class ModelStatus(msgspec.Struct, frozen=True):
    """One model."""

    name: str
    bytes: int
    shared_bytes: int
    """The part of them that other models of the store use too."""
    memory_bytes: int
    """The part of them that is in memory now."""
    leases: int
    pinned: bool
    hits: int
    """Leases for which nothing had to be loaded since the one before."""
    loads: int
    """How often something of it was brought into memory."""


class Status(Document, frozen=True, kw_only=True):
    """What a store holds."""

    policy: str
    tiers: tuple[TierStatus, ...]
    models: tuple[ModelStatus, ...]
    evictions: int
    damaged: int
    """Blobs that were found damaged since the store was opened, on disk or in remote storage; none was served."""
    notes: tuple[str, ...] = ()
    """What the store found when it was opened and did not rely on, and why."""


def check_name(name: str) -> str:
    """The name.

    Raises:
        ConfigError: it is none a model can have.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name[:200]!r} is no name of a stored model",
            try_="model@version or model/function@version, of letters, digits, '.', '_', '-'",
        )
    return name


def faults(record: ModelRecord) -> Iterator[str]:
    """What is wrong with a record that somebody gave; nothing where it can be believed to be one."""
    if not NAME.fullmatch(record.name):
        yield f"{record.name[:200]!r} is no name of a model"
    for blob in record.blobs:
        if not ID.fullmatch(blob.id):
            yield f"{blob.id[:80]!r} is no sha256"
        if blob.bytes < 1:
            yield f"a blob of {blob.bytes} bytes"
    if len({blob.id for blob in record.blobs}) != len(record.blobs):
        yield "a blob is named twice"
