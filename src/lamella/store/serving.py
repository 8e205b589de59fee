"""Runs a daemon of the store in this process: its socket, its signals, and what it leaves behind when it ends."""

from __future__ import annotations

import os
import resource
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lamella.errors import StorageError, StoreConflict
from lamella.store.access import Access
from lamella.store.daemon import CONNECTIONS, Daemon
from lamella.store.shelves import Shelves

BACKLOG = 1024
OTHERS = 256
"""Descriptors that are kept for everything but connections and segments."""


def serve(shelves: Shelves, root: Path, path: Path, access: Access, ready: Callable[[], None] = lambda: None) -> None:
    """Serve `shelves`, which lie in `root`, at the socket `path` until SIGTERM, SIGINT or `Stop`; call `ready` first.

    The socket is open to others only where the allow-list names some; whom it serves what is decided by request.

    Raises:
        StoreConflict: another daemon listens there, or uses the same directory.
        StorageError: the socket cannot be made.
    """
    os.umask(0o077)
    most = min(CONNECTIONS, (_raise_limit() - OTHERS) // 2)
    with _signals() as came, listening(path, shared=access.shared) as listener:
        daemon = Daemon(shelves, listener, access, root, most=most)
        signal.set_wakeup_fd(daemon.wakeup, warn_on_full_buffer=False)
        try:
            if not came:  # else it was told to end before it could hear
                ready()
                daemon.serve()
        finally:
            signal.set_wakeup_fd(-1)
            daemon.close()


@contextmanager
def listening(path: Path, *, shared: bool) -> Iterator[socket.socket]:
    """A listening socket, 0600 or, where it is `shared` with other users, 0666; removed at the end if it is still ours.

    Raises:
        StoreConflict: a daemon listens there.
        StorageError: it cannot be made, or what is there is no socket.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        try:
            _prepare(path, shared)
            sock.bind(os.fspath(path))
            path.chmod(0o666 if shared else 0o600)
            sock.listen(BACKLOG)
            sock.setblocking(False)
            mine = path.stat().st_ino
        except OSError as error:
            raise StorageError(f"cannot listen at {path}: {error.strerror or error}", try_="--socket PATH") from error
        yield sock
        with suppress(OSError):
            if path.stat().st_ino == mine:
                path.unlink()
    finally:
        sock.close()


def _prepare(path: Path, shared: bool) -> None:
    """Make the directory, and remove a socket that nobody listens at any more."""
    folder = path.parent
    made = not folder.exists()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.stat()
    if made or (folder.name == "lamella" and state.st_uid == os.getuid()):
        folder.chmod(0o711 if shared else 0o700)
    elif state.st_mode & stat.S_IWOTH and not state.st_mode & stat.S_ISVTX:
        raise StorageError(f"{folder} can be written by everybody", where=str(path), try_="--socket PATH elsewhere")
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_socket():
        raise StorageError(f"{path} is there and is no socket", try_="--socket PATH")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as trial:
        trial.setblocking(False)
        try:
            trial.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()  # of a daemon that was killed
            return
        except BlockingIOError:
            pass  # one with a long queue
    raise StoreConflict(f"a daemon of the store listens at {path}", try_="lamella store status, or --socket PATH")


def _raise_limit() -> int:
    """Allow this process as many descriptors as it may have; how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGTERM and SIGINT that came, held until all is put away; the loop hears of them by a byte that it reads."""
    came: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda number, frame: came.append(number)) for number in numbers]
    try:
        yield came
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
