"""How much of a file the kernel's page cache holds: what `evict` is judged by."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path


def resident_bytes(path: Path) -> int:
    """Whole pages up to the file's size (mincore(2)); for a file not ours nor writable the kernel claims all of it."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return 0
        # A private writable mapping, because ctypes takes the address of writable buffers only. Nothing is touched.
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapping:
            return min(size, _resident_pages(mapping, size) * mmap.PAGESIZE)


def _resident_pages(mapping: mmap.mmap, size: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    start = ctypes.c_ubyte.from_buffer(mapping)  # dropped on return: the mapping cannot close under it
    if libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), pages) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return sum(page & 1 for page in pages)  # only the lowest bit is defined
