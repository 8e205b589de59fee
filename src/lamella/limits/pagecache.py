"""The kernel's cache of file pages. Evict before measuring: a page cached earlier is charged to somebody else."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lamella.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

BLOCK = 8 << 20


def evict(paths: Iterable[Path]) -> None:
    """Write each file to disk, then drop it from the page cache.

    Dirty pages cannot be dropped, hence the fsync. Pages that a live process has mapped stay; so does all of a tmpfs.

    Raises:
        StorageError: a file cannot be opened or written.
    """
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
        except OSError as error:
            raise StorageError(f"cannot evict a file from the page cache: {error.strerror}", where=str(path)) from error


def load(path: Path) -> None:
    """Read a file once, so that it is in the page cache, as far as there is room.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            block = bytearray(BLOCK)
            while file.readinto(block):
                pass
    except OSError as error:
        raise StorageError(f"cannot read a file into the page cache: {error.strerror}", where=str(path)) from error
