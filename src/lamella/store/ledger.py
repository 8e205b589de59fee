"""What each user holds of the store: connections, leases, and the distinct bytes of them. The quota is kept here.

All users together have so many connections. Beyond a few, a user may have as many as are still free for everybody, so
that its share shrinks as others come (dynamic thresholds; Choudhury and Hahne, IEEE/ACM Transactions on Networking
6(2), 1998), and a quarter is free only for users who have fewer than those few. Nobody's connections are closed for
another's sake: with one goes a lease, and what somebody computes with.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from lamella.errors import StoreQuota
from lamella.store.access import Quota
from lamella.store.records import ModelRecord
from lamella.store.report import UserStatus

FEW = 8
"""Connections that a user gets as long as there are any."""
KEPT = 4
"""One in so many connections is kept for users who have fewer."""


class Ledger:
    """Counts by user. Equal segments of a user's leases count once: they are in memory once."""

    def __init__(self, quota: Quota) -> None:
        """Nobody holds anything yet."""
        self._quota = quota
        self.connections: Counter[int] = Counter()
        self._leases: Counter[int] = Counter()
        self._blobs: defaultdict[int, Counter[tuple[str, int]]] = defaultdict(Counter)

    def connect(self, uid: int, most: int) -> None:
        """Count a connection, `most` of all users together.

        Raises:
            StoreQuota: the user has as many as it may, or the rest is for others.
        """
        mine, free = self.connections[uid], most - self.connections.total()
        room = free if mine < FEW else free - most // KEPT - mine
        if mine >= self._quota.connections or room <= 0:
            raise StoreQuota(
                f"user {uid} has {mine} connections to the store of {self._quota.connections}, all users "
                f"{most - free} of {most}, of which others are left some",
                try_="end a process that uses the store, or raise `connections` in the allow-list's quota",
            )
        self.connections[uid] += 1

    def disconnect(self, uid: int) -> None:
        """A connection ended."""
        self.connections[uid] -= 1
        if not self.connections[uid]:
            del self.connections[uid]

    def check(self, uid: int, record: ModelRecord, leases: int) -> None:
        """Refuse a lease beyond the quota; `leases` are those of the connection already.

        Raises:
            StoreQuota: with the numbers.
        """
        if leases >= self._quota.leases:
            raise StoreQuota(
                f"a connection to the store has {leases} leases, the most there may be", try_="another one"
            )
        if self._quota.leased_mb is None:
            return
        new = sum(b.bytes for b in record.blobs if (b.id, b.bytes) not in self._blobs[uid])
        most, now = self._quota.leased_mb << 20, self._leased(uid)
        if now + new > most:
            raise StoreQuota(
                f"user {uid} leases {now / 2**20:.0f} MB of the store, {record.name} would add {new / 2**20:.0f} MB, "
                f"the quota is {self._quota.leased_mb} MB",
                try_="end a process that uses the store, or raise `leased_mb` in the allow-list's quota",
            )

    def lease(self, uid: int, record: ModelRecord) -> None:
        """Count a lease."""
        self._leases[uid] += 1
        self._blobs[uid].update((b.id, b.bytes) for b in record.blobs)

    def release(self, uid: int, record: ModelRecord) -> None:
        """A lease ended."""
        self._leases[uid] -= 1
        self._blobs[uid].subtract((b.id, b.bytes) for b in record.blobs)
        self._blobs[uid] = +self._blobs[uid]
        if not self._leases[uid]:
            del self._leases[uid], self._blobs[uid]

    def _leased(self, uid: int) -> int:
        return sum(size for _, size in self._blobs[uid])

    def users(self) -> list[UserStatus]:
        """Everybody who holds something."""
        uids = sorted(self.connections.keys() | self._leases.keys())
        return [UserStatus(u, self.connections[u], self._leases[u], self._leased(u)) for u in uids]
