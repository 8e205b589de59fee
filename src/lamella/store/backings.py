"""What memory a segment lies in: three ways to give several processes the same bytes, read-only in fact.

- `huge-tmpfs`: a tmpfs of its own for every blob, mounted nowhere (fsopen(2), fsmount(2)), written, then made
  read-only as a whole. Huge pages, so that touching 434 MB takes no 100,000 faults; and since the file system itself is
  read-only, no descriptor can be opened again for writing, not by the daemon's own user either. Needs CAP_SYS_ADMIN.
- `page-cache`: the artifact on disk itself, mode 0400. No copy; the kernel may drop its pages and read them again.
  Other users cannot write it; the daemon's own user could, so that a daemon that serves its own user guards against
  accidents only.
- `memfd`: a sealed memory file. Nobody can write it, not even root; 4 KiB pages, whose faults cost most.

Rejected: one tmpfs mount at a path, whose files have an owner that may change their mode; a budget by `size=`, since
the store's own counts pins and leases. A tier on a GPU would be a backing whose handle is the device's; there is none.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
from pathlib import Path
from typing import Protocol

from lamella.errors import ConfigError
from lamella.store.records import SegmentRef

BLOCK = 1 << 20
"""Read at a time. Threads keep what they allocated for it: with 4 MiB, and 16 for a put, 40 MiB of a daemon."""
ROOM = 1 << 22
"""A tmpfs has whole ones of these: room for whole huge pages."""


class Mismatch(Exception):
    """A file's bytes are not those of the blob it is named after."""


class Backing(Protocol):
    """Where segments lie while they are in memory."""

    @property
    def name(self) -> str:
        """What the settings call it."""

    def hold(self, blob: SegmentRef, path: Path) -> int:
        """A descriptor for reading of the blob's bytes, which lie at `path` and are verified. Called in any thread.

        Raises:
            Mismatch: they are not the blob's.
            OSError: the file cannot be read, or there is no memory.
        """

    def unchanged(self, blob: SegmentRef, descriptor: int) -> bool:
        """Whether what was verified when it was held cannot have changed since."""


class HugeTmpfs:
    """A read-only tmpfs per blob."""

    name = "huge-tmpfs"

    def hold(self, blob: SegmentRef, path: Path) -> int:
        """See `Backing`. The size is known before the first byte: `within_size` then takes whole huge pages only."""
        options = {
            "huge": "within_size",
            "size": str(-(-blob.bytes // ROOM) * ROOM),
            "nr_inodes": "2",
            "mode": "0700",
        }
        with open(path, "rb", buffering=0) as source, _Tmpfs(options) as made:
            writer = os.open("blob", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o400, dir_fd=made.root)
            try:
                os.ftruncate(writer, blob.bytes)
                copy(source.fileno(), writer, blob)
                reader = os.open("blob", os.O_RDONLY | os.O_CLOEXEC, dir_fd=made.root)
            finally:
                os.close(writer)
            try:
                made.freeze()
            except OSError:
                os.close(reader)
                raise
        return reader

    def unchanged(self, blob: SegmentRef, descriptor: int) -> bool:
        """Always: nobody can write it."""
        return True


class PageCache:
    """The artifact itself."""

    name = "page-cache"

    def __init__(self) -> None:
        """Nothing is verified yet."""
        self._verified: dict[str, tuple[int, ...]] = {}

    def hold(self, blob: SegmentRef, path: Path) -> int:
        """See `Backing`. Hashed once, and again only when the file is another or has changed."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if not self.unchanged(blob, descriptor):
                before = _signature(descriptor)
                copy(descriptor, None, blob)
                self._verified[blob.id] = before
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def unchanged(self, blob: SegmentRef, descriptor: int) -> bool:
        """By inode, time of the last change and size."""
        return self._verified.get(blob.id) == _signature(descriptor)


class Memfd:
    """A sealed memory file."""

    name = "memfd"

    def hold(self, blob: SegmentRef, path: Path) -> int:
        """See `Backing`."""
        with open(path, "rb", buffering=0) as source:
            writer = os.memfd_create("lamella-store", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                copy(source.fileno(), writer, blob)
                seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
                fcntl.fcntl(writer, fcntl.F_ADD_SEALS, seals)
                return os.open(f"/proc/self/fd/{writer}", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                os.close(writer)

    def unchanged(self, blob: SegmentRef, descriptor: int) -> bool:
        """Always: nobody can write it."""
        return True


BACKINGS: dict[str, type[HugeTmpfs] | type[PageCache] | type[Memfd]] = {
    kind.name: kind for kind in (HugeTmpfs, PageCache, Memfd)
}
"""By name, the best first."""


def probe(directory: Path, wanted: str | None = None) -> tuple[Backing, str]:
    """The first backing that works here, or the one that is wanted, and why it is this one.

    Args:
        directory: where a file may be made to try it with.
        wanted: its name.

    Raises:
        ConfigError: there is no such backing, or it does not work here.
    """
    if wanted is not None and wanted not in BACKINGS:
        raise ConfigError(f"there is no backing {wanted!r}", try_=f"one of {', '.join(BACKINGS)}")
    failed = []
    for name in [wanted] if wanted else BACKINGS:
        backing: Backing = BACKINGS[name]()
        try:
            _try(backing, directory)
        except OSError as error:
            failed.append(f"{name} does not work here: {error.strerror}")
            continue
        return backing, "; ".join(["as asked" if wanted else "the first that works here", *failed])
    raise ConfigError("; ".join(failed), where=str(directory), try_="leave the backing to the probe")


def _try(backing: Backing, directory: Path) -> None:
    """OSError unless a byte that was held reads back."""
    data = b"lamella"
    path = directory / f"probe-{os.urandom(4).hex()}"
    try:
        path.write_bytes(data)
        descriptor = backing.hold(SegmentRef(hashlib.sha256(data).hexdigest(), len(data)), path)
    finally:
        path.unlink(missing_ok=True)
    try:
        if os.pread(descriptor, len(data) + 1, 0) != data:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
    finally:
        os.close(descriptor)


def copy(source: int, target: int | None, blob: SegmentRef) -> None:
    """Copy a blob between descriptors, or only read it, and see that it is the blob.

    Raises:
        Mismatch: it is not.
        OSError: one of them refuses.
    """
    digest, left = hashlib.sha256(), blob.bytes
    buffer = memoryview(bytearray(min(BLOCK, blob.bytes + 1)))
    at = 0
    while count := os.preadv(source, [buffer], at):
        left -= count
        if left < 0:
            break
        digest.update(buffer[:count])
        if target is not None:
            write_all(target, buffer[:count], at)
        at += count
    if left:
        raise Mismatch(f"blob {blob.id[:12]} should have {blob.bytes} bytes, its file has {blob.bytes - left} or more")
    if digest.hexdigest() != blob.id:
        raise Mismatch(f"blob {blob.id[:12]} has the hash {digest.hexdigest()[:12]}")


def write_all(target: int, data: bytes | memoryview, at: int = 0) -> None:
    """Write bytes to a descriptor at a place.

    Raises:
        OSError: not all of them fit.
    """
    view = memoryview(data)
    while view:
        count = os.pwrite(target, view, at)
        view, at = view[count:], at + count


def _signature(descriptor: int) -> tuple[int, ...]:
    stat = os.fstat(descriptor)
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size


_LIBC = ctypes.CDLL(None, use_errno=True)
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # the same numbers on every architecture
_SET_FLAG, _SET_STRING, _CREATE, _RECONFIGURE = 0, 1, 6, 7
_CLOEXEC = 1
_NOSUID_NODEV_NOEXEC = 0x2 | 0x4 | 0x8


class _Tmpfs:
    """A tmpfs mounted nowhere: it lives as long as a descriptor of it or of its file."""

    def __init__(self, options: dict[str, str]) -> None:
        self._options = options

    def __enter__(self) -> _Tmpfs:
        self._context = _call(_FSOPEN, b"tmpfs", ctypes.c_uint(_CLOEXEC))
        try:
            for key, value in self._options.items():
                self._configure(_SET_STRING, key.encode(), value.encode())
            self._configure(_CREATE)
            self.root = _call(_FSMOUNT, self._context, ctypes.c_uint(_CLOEXEC), ctypes.c_uint(_NOSUID_NODEV_NOEXEC))
        except OSError:
            os.close(self._context)
            raise
        return self

    def freeze(self) -> None:
        """Make it read-only, for good: who could change that holds no descriptor of its context."""
        self._configure(_SET_FLAG, b"ro")
        self._configure(_RECONFIGURE)

    def __exit__(self, *exc: object) -> None:
        os.close(self.root)
        os.close(self._context)

    def _configure(self, command: int, key: bytes | None = None, value: bytes | None = None) -> None:
        _call(_FSCONFIG, self._context, ctypes.c_uint(command), key, value, 0)


def _call(number: int, *arguments: object) -> int:
    result = int(_LIBC.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
