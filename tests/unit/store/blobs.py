"""Records of models whose graphs and segments are just bytes: what the shelves know of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lamella.machine import this_machine
from lamella.runtime.function import Function
from lamella.store.records import Held, ModelRecord, SegmentRef


def ref(data: bytes) -> SegmentRef:
    return SegmentRef(hashlib.sha256(data).hexdigest(), len(data))


def record_of(name: str, graph: bytes, segments: Sequence[bytes]) -> ModelRecord:
    id = ref(graph).id
    function = Function(
        name="whole",
        kind="packaged",
        graph=id,
        weights="",
        portable="",
        inputs=(),
        outputs=(),
        threads=1,
        prepack=False,
        machine=this_machine(),
        sha256={id: id},
    )
    return ModelRecord(name=name, graph=ref(graph), segments=tuple(ref(s) for s in segments), function=function)


def written(directory: Path, blobs: Sequence[bytes]) -> dict[str, Path]:
    """The blobs as files of `directory`, by id."""
    directory.mkdir(exist_ok=True)
    paths = {ref(data).id: directory / ref(data).id for data in blobs}
    for data in blobs:
        paths[ref(data).id].write_bytes(data)
    return paths


def read(held: Held) -> list[bytes]:
    """What a lease's holder reads."""
    return [os.pread(fd, blob.bytes + 1, 0) for fd, blob in zip(held.descriptors, held.record.blobs, strict=True)]


def open_files() -> int:
    """Descriptors of this process but those that onnxruntime opens when it likes: a database of its own, sockets."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that listed them
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sum("onnxruntime" not in link and not link.startswith(("socket:", "anon_inode:[event")) for link in links)


def flip(path: Path, at: int = 0) -> None:
    """Change a byte, and with it the time of the last change, however coarse the clock."""
    before = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
