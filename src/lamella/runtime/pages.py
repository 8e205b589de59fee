"""A function's weights as pages of mapped files: brought into memory while it works, let go while it waits.

A process that waits costs some 10 MB, its weights hundreds, and those a read brings back. So a host keeps the process
and says which weights stay. Bringing takes no CPU to speak of, the device does it: several threads ask for it in the
order of first use, so that the device has more than one question at a time, and the runtime runs behind them. A page
that it meets first it waits for, as for any page of a file.

Letting go drops the process's own map of a page and, where nobody else maps it, the page. What others map stays, and so
does what the file's owner has not allowed this user to drop: then the kernel chooses, as it does without being told.

Rejected: `POSIX_FADV_WILLNEED`, which reads no further than the device's read-ahead; `POSIX_FADV_DONTNEED`, which
keeps mapped pages, and drops those of others that are not. Kernels before 5.14 do not know what brings, and those
before 5.4 not what lets go; then nothing happens here.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Iterable

MADV_DONTNEED = 4
MADV_PAGEOUT = 21
MADV_POPULATE_READ = 22
HUGE = 2 << 20
CHUNK = 8 << 20
"""Brought at a time: a multiple of huge pages, few enough that the threads keep to the order of use."""
THREADS = 4
"""That ask: 3.0 to 3.3 GB/s with 3 to 6 of them, 2.5 with one (virtio disk)."""

_madvise = ctypes.CDLL(None).madvise  # unlike mmap.madvise it lets other threads of Python run


class Pages:
    """Address ranges of weights in the order of first use. Not for several threads."""

    def __init__(self, ranges: Iterable[tuple[int, int]], owner: object = None) -> None:
        """Ranges are (start, end), page-aligned starts; `owner` keeps them mapped while this lives."""
        self._ranges, self._owner = tuple(ranges), owner
        self._todo: deque[tuple[int, int]] = deque()
        self._threads: list[threading.Thread] = []

    def bring(self) -> None:
        """Begin to bring all that is not in memory; returns at once. Nothing where that is under way."""
        if any(thread.is_alive() for thread in self._threads):
            return
        self._todo.extend((at, min(at + CHUNK, end)) for start, end in self._ranges for at in range(start, end, CHUNK))
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while True:
            try:
                start, end = self._todo.popleft()
            except IndexError:
                return
            _advise(start, end, MADV_POPULATE_READ)

    def populate(self) -> None:
        """Bring all of them, by this thread alone, and return when they are there."""
        for start, end in self._ranges:
            _advise(start, end, MADV_POPULATE_READ)

    def wait(self) -> None:
        """Until what `bring` began is there."""
        for thread in self._threads:
            thread.join()
        self._threads = []

    def let_go(self, keep: int = 0) -> None:
        """Drop them from memory, as far as nobody else maps them, but for about the first `keep` bytes."""
        self._todo.clear()
        self.wait()
        for start, end in self._ranges:
            kept = min(-(-keep // HUGE) * HUGE, end - start)
            keep = max(0, keep - (end - start))
            if start + kept < end:
                _advise(start + kept, end, MADV_PAGEOUT)
                _advise(start + kept, end, MADV_DONTNEED)  # what others map: the last of them to let go drops it


def _advise(start: int, end: int, advice: int) -> None:
    """A failure is no error: pages then come and go as the kernel chooses."""
    _madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_int(advice))
