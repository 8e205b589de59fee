"""Threads for what blocks (disks, networks, hashing), so that the daemon's loop never waits for it.

Work runs in a thread and touches no state of the daemon; what follows runs in the loop, which alone decides. The
threads die with the process: one that hangs on a lost disk does not keep a daemon from ending.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from lamella.errors import LamellaError, StoreError

Work = Callable[[], None]
Then = Callable[[LamellaError | None], None]


class Workers:
    """So many threads, and a descriptor that becomes readable when one has finished something."""

    def __init__(self, threads: int, name: str) -> None:
        """Start them."""
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._queue: SimpleQueue[tuple[Work, Then]] = SimpleQueue()
        self._ended: SimpleQueue[tuple[Then, LamellaError | None]] = SimpleQueue()
        for k in range(threads):
            threading.Thread(target=self._run, name=f"{name}-{k}", daemon=True).start()

    def start(self, work: Work, then: Then) -> None:
        """Have `work` done by a thread; `finish` then calls `then` with the error it ended with, if any."""
        self._queue.put((work, then))

    def finish(self) -> None:
        """Call what follows the work that has ended."""
        try:
            os.eventfd_read(self.wake)
        except BlockingIOError:
            return
        while True:
            try:
                then, error = self._ended.get_nowait()
            except Empty:
                return
            try:
                then(error)
            except BaseException:  # a bug: the rest is called next time
                os.eventfd_write(self.wake, 1)
                raise

    def _run(self) -> None:
        while True:
            work, then = self._queue.get()
            error: LamellaError | None = None
            try:
                work()
            except LamellaError as raised:
                error = raised
            except Exception as raised:  # noqa: BLE001 - whatever it is, somebody waits for an answer
                error = StoreError(f"the store failed: {type(raised).__name__}: {raised}"[:500])
            self._ended.put((then, error))
            os.eventfd_write(self.wake, 1)
