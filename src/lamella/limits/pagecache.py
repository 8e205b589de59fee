"""The kernel's cache of file pages. Evict before measuring: a page cached earlier is charged to somebody else."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import TYPE_CHECKING

from lamella.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


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


def resident_bytes(path: Path) -> int:
    """How many bytes of a file are in the page cache, in whole pages up to the file's size (mincore(2)).

    For a file that is neither ours nor writable the kernel claims that all of it is.

    Raises:
        StorageError: the file cannot be opened, or the kernel does not answer.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                return 0
            # A private writable mapping, because ctypes takes the address of writable buffers only. Nothing is touched.
            with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapping:
                return min(size, _resident_pages(mapping, size) * mmap.PAGESIZE)
    except OSError as error:
        raise StorageError(f"cannot see a file's page cache: {error.strerror}", where=str(path)) from error


def _resident_pages(mapping: mmap.mmap, size: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    start = ctypes.c_ubyte.from_buffer(mapping)  # dropped on return: the mapping cannot close under it
    if libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), pages) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return sum(page & 1 for page in pages)  # only the lowest bit is defined
