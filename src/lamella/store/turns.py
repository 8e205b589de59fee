"""Whose work is next where work may hang: a few threads, of which one user has no more than a few.

A put reads files that its sender chose; one on a disk that is gone, or in a file system of the sender's own, may never
answer, and a thread that waits for it is lost. So those who send such files wait for themselves.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from functools import partial

from lamella.errors import LamellaError, StoreQuota
from lamella.store.workers import Then, Work, Workers


class Turns:
    """Work in threads, so much of each user's at a time."""

    def __init__(self, workers: Workers, at_once: int, most: int) -> None:
        """Of one user `at_once` are done, and `most` are done or wait."""
        self._workers, self._at_once, self._most = workers, at_once, most
        self._running: Counter[int] = Counter()
        self._waiting: defaultdict[int, deque[tuple[Work, Then]]] = defaultdict(deque)

    def check(self, uid: int) -> None:
        """Refuse what would be one too many.

        Raises:
            StoreQuota: the user has as many on their way as may be.
        """
        if self._running[uid] + len(self._waiting[uid]) >= self._most:
            raise StoreQuota(f"user {uid} has {self._most} puts on their way, the most there may be", try_="again")

    def start(self, uid: int, work: Work, then: Then) -> None:
        """Have `work` done when it is its turn; see `Workers.start`. What it may not be is found by `check`, before."""
        if self._running[uid] < self._at_once:
            self._run(uid, work, then)
        else:
            self._waiting[uid].append((work, then))

    def _run(self, uid: int, work: Work, then: Then) -> None:
        self._running[uid] += 1
        self._workers.start(work, partial(self._ended, uid, then))

    def _ended(self, uid: int, then: Then, error: LamellaError | None) -> None:
        self._running[uid] -= 1
        if self._waiting[uid]:
            self._run(uid, *self._waiting[uid].popleft())
        if not self._running[uid]:
            del self._running[uid], self._waiting[uid]
        then(error)
