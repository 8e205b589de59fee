"""Who is at the other end of a socket. Apart from `access`, so that a client does not load what reads allow-lists."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

SO_PEERGROUPS = 59  # not in the socket module; Linux 4.13
GROUP_BYTES = 1024  # as much as getsockopt gives in Python: 256 groups


class Peer(NamedTuple):
    """Who is at the other end of a socket, by the kernel's word."""

    pid: int
    uid: int
    groups: frozenset[int]


def peer_of(sock: socket.socket) -> Peer:
    """Who connected, as the kernel saw it then.

    Raises:
        OSError: the connection is lost.
    """
    ucred = struct.Struct("3i")
    pid, uid, gid = ucred.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, ucred.size))
    try:
        data = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUP_BYTES)
    except OSError:  # an older kernel, or more groups: the first one alone
        data = b""
    return Peer(pid, uid & 0xFFFFFFFF, frozenset({gid, *struct.unpack(f"{len(data) // 4}I", data)}))
