"""Shared memory between a driver and its workers, without names.

A segment is an anonymous memory file (memfd) whose descriptor is handed over a Unix socket. Rejected: named segments in
/dev/shm, because a killed driver leaves them behind, and `multiprocessing.shared_memory`, because its resource tracker
is one more process. When the last process that maps a segment ends, the kernel frees it.
"""

from __future__ import annotations

import mmap
import os

import numpy as np

from lamella.errors import StorageError


class Segment:
    """Bytes that several processes see. Created by the driver, attached by workers."""

    def __init__(self, fd: int, size: int) -> None:
        """Map `size` bytes of the descriptor, which is closed: the mapping keeps the memory."""
        self.size = size
        try:
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self.bytes = np.frombuffer(self._map, np.uint8)

    def view(self, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """The segment's start as a tensor, not copied."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        return self.bytes[:size].view(kind).reshape(shape)


def create(size: int) -> tuple[Segment, int]:
    """A new segment of at least one byte, and a descriptor of it to hand over (the caller closes it).

    Raises:
        StorageError: no memory for it.
    """
    size = max(size, 1)
    fd = -1
    try:
        fd = os.memfd_create("lamella", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        return Segment(os.dup(fd), size), fd
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise StorageError(f"no shared memory for a hop of {size >> 20} MB: {error.strerror}") from error
