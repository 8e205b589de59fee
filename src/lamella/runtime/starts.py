"""How an instance's process comes to be, as its driver sees it: a fresh interpreter, or forked by a zygote.

A `Starter` spawns, a `Process` is what it spawned. A fresh one is our child; a forked one is the zygote's, and is
held by a pidfd, which names this process and no later one of the same number, so that a signal never meets another.
Its exit code comes from the zygote; where that has ended first, nobody knows it.

Measurements start fresh processes, as platforms do. What a zygote saves is for hosts that keep one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, get_args

import msgspec

import lamella
from lamella.channels.messages import PACKET_LIMIT
from lamella.errors import ConfigError, InstanceCrashed, ModelError
from lamella.limits import Group
from lamella.runtime import orders

Start = Literal["fresh", "zygote", "forked-session"]
STARTS: tuple[Start, ...] = get_args(Start)

PROGRAM = "lamella.runtime"
"""Whose `worker` and `zygote` functions run in, unless a deployment has others."""
HOLDING_S = 300.0
"""For a zygote to import, and to open what it holds."""
FORKED_S = 10.0
"""For a zygote to answer an order: one that is stopped, or whose machine is, is given up after it."""
CODE_S = 2.0
"""For the zygote to say how a process ended that has ended."""


class Descriptors(NamedTuple):
    """What a worker is given."""

    control: int
    stream: int
    stderr: int
    listener: socket.socket | None = None


class Process(Protocol):
    """A worker's process."""

    @property
    def pid(self) -> int:
        """Its number."""

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Its exit code, or minus the signal that ended it; None where nobody knows. TimeoutError while it runs."""

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing where it has ended."""

    def close(self) -> None:
        """Let go of it, once it has ended."""


class Starter(Protocol):
    """Makes processes of workers."""

    def spawn(self, order: orders.Order, handed: Descriptors, group: Group) -> Process:
        """A process in its group, on its way to `worker.work`. The descriptors stay the caller's.

        Raises:
            OSError: there are no descriptors, no processes or no memory for it.
            InstanceCrashed: the zygote cannot be had.
        """

    def close(self) -> None:
        """End what it keeps running."""


class Spawned:
    """A child of ours."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """`process` was just started."""
        self._process = process
        self.pid = process.pid

    def wait(self, timeout_s: float | None = None) -> int | None:
        """See `Process.wait`."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None

    def send(self, number: signal.Signals) -> None:
        """See `Process.send`."""
        self._process.send_signal(number)

    def close(self) -> None:
        """See `Process.close`."""


class Fresh:
    """Starts an interpreter for every worker, as platforms do."""

    def __init__(self, program: str = PROGRAM) -> None:
        """`program` is the package whose `worker` runs."""
        self._program = program

    def spawn(self, order: orders.Order, handed: Descriptors, group: Group) -> Spawned:
        """See `Starter.spawn`."""
        passed = [handed.control, handed.stream]
        argv = [sys.executable, "-m", f"{self._program}.worker", *map(str, passed), order.directory, order.channel]
        if handed.listener:
            passed.append(handed.listener.fileno())
            argv.append(str(handed.listener.fileno()))
        process = subprocess.Popen(
            group.command(argv),
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            stderr=handed.stderr,
            env=environment() | order.environment,
            start_new_session=True,
        )
        if order.cpus:
            os.sched_setaffinity(process.pid, order.cpus)
        return Spawned(process)

    def close(self) -> None:
        """See `Starter.close`."""


class Forked:
    """A child of the zygote's."""

    def __init__(self, pid: int, pidfd: int, report: socket.socket) -> None:
        """The pidfd and the report socket are closed with this."""
        self.pid = pid
        self._pidfd, self._report = pidfd, report
        self._ended = False
        self._code: int | None = None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """See `Process.wait`."""
        if not self._ended:
            if not _readable(self._pidfd, timeout_s):
                raise TimeoutError
            self._code, self._ended = self._read_code(), True
        return self._code

    def _read_code(self) -> int | None:
        """What the zygote says, which buries it before; None where it says nothing."""
        if not _readable(self._report.fileno(), CODE_S):
            return None
        try:
            packet = self._report.recv(PACKET_LIMIT)
        except ConnectionResetError:  # it ended before it read `go`; said once, before what was sent
            packet = self._report.recv(PACKET_LIMIT)
        news = orders.decode_news(packet) if packet else None
        return news.code if isinstance(news, orders.Ended) else None

    def send(self, number: signal.Signals) -> None:
        """See `Process.send`."""
        if not self._ended:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """See `Process.close`."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self._report.close()


class Forking:
    """Has a zygote fork workers, and starts it again when it has ended. Threads may share one.

    Closing it ends the zygote and every worker that it has forked and that is left.
    """

    def __init__(self, held: Path | None = None, user: tuple[int, int] | None = None, program: str = PROGRAM) -> None:
        """Start the zygote and wait for it.

        Args:
            held: directory of a function that the zygote opens, and that every worker is then forked with. It takes a
                session of one thread.
            user: numbers of the user and group that workers become, where this process may change its own.
            program: the package whose `zygote` runs.

        Raises:
            ConfigError: this system has no pidfds (Linux 5.3), or the zygote more threads than one.
            ModelError: the runtime refuses the function's files.
            InstanceCrashed: the zygote did not start.
        """
        try:
            os.close(os.pidfd_open(os.getpid()))
        except (AttributeError, OSError) as error:
            raise ConfigError(f"a zygote needs pidfds, Linux 5.3 or newer: {error}", try_="--start fresh") from error
        self._held, self._user, self._program = held and held.absolute(), user, program
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._begin()

    @property
    def pid(self) -> int:
        """The zygote's process."""
        assert self._process
        return self._process.pid

    def _begin(self) -> None:
        """Start the zygote."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", f"{self._program}.zygote", str(theirs.fileno()), str(self._held or "")],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env=environment(),
                    start_new_session=True,
                )
            self._sock = ours
            ours.settimeout(HOLDING_S)
            packet = ours.recv(PACKET_LIMIT)
            news = orders.decode_news(packet) if packet else None
            ours.settimeout(FORKED_S)
        except OSError as error:
            ours.close()
            self.close()
            raise InstanceCrashed(f"the zygote did not start: {error}", try_="--start fresh") from error
        except BaseException:
            ours.close()
            self.close()
            raise
        if isinstance(news, orders.Holding):
            return
        self.close()
        if isinstance(news, orders.Refused):
            kind = ConfigError if news.code == ConfigError.code else ModelError
            raise kind(news.message, try_="--start fresh")
        raise InstanceCrashed("the zygote ended before it was ready", try_="--start fresh, or its words above")

    def spawn(self, order: orders.Order, handed: Descriptors, group: Group) -> Forked:
        """See `Starter.spawn`."""
        order = msgspec.structs.replace(
            order,
            directory=os.path.abspath(order.directory),  # the zygote may have been started elsewhere
            cpus=order.cpus or tuple(sorted(os.sched_getaffinity(0))),
            listens=handed.listener is not None,
            user=self._user,
        )
        with self._lock:
            return self._fork(order, handed, group) or self._again(order, handed, group)

    def _again(self, order: orders.Order, handed: Descriptors, group: Group) -> Forked:
        """By another zygote. The one there was is killed if it still is: it ends its workers when it is told to."""
        if self._process:
            self._process.kill()
        self.close()
        self._begin()
        if forked := self._fork(order, handed, group):
            return forked
        raise InstanceCrashed("two zygotes in a row forked no worker", try_="--start fresh")

    def _fork(self, order: orders.Order, handed: Descriptors, group: Group) -> Forked | None:
        """A worker that was told to go; None where the zygote has ended, or gives no answer."""
        if not self._sock:
            return None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs, _opened(group) as gates:
                listener = [handed.listener.fileno()] if handed.listener else []
                fds = [theirs.fileno(), handed.control, handed.stream, handed.stderr, *listener, *gates]
                socket.send_fds(self._sock, [orders.encode(order)], fds)
            ours.settimeout(FORKED_S)
            packet, pidfds, _, _ = socket.recv_fds(ours, PACKET_LIMIT, 1)
            news = orders.decode_news(packet) if packet else None
            if not isinstance(news, orders.Forked):
                ours.close()
                return None
            if not pidfds:  # the kernel drops what does not fit; the worker leaves when `ours` is closed
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            forked = Forked(news.pid, pidfds[0], ours)
            with contextlib.suppress(OSError):  # it has ended already: its wait will say how
                ours.send(orders.GO)
            return forked
        except (ConnectionError, TimeoutError):
            ours.close()
            return None
        except BaseException:
            ours.close()
            raise

    def close(self) -> None:
        """See `Starter.close`."""
        if self._sock:
            self._sock.close()
            self._sock = None
        if self._process:
            try:
                self._process.wait(CODE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def starters(start: Start, functions: Mapping[str, Path], program: str = PROGRAM) -> dict[str, Starter]:
    """Who starts each function's instances, by its name; with one zygote for all, or one for each that it holds.

    Raises:
        ConfigError, ModelError, InstanceCrashed: as `Forking` does; none is left running.
    """
    if start == "fresh":
        return dict.fromkeys(functions, Fresh(program))
    if start == "zygote":
        return dict.fromkeys(functions, Forking(program=program))
    with contextlib.ExitStack() as undo:
        made: dict[str, Starter] = {}
        for name, directory in functions.items():
            made[name] = forking = Forking(directory, program=program)
            undo.callback(forking.close)
        undo.pop_all()
        return made


def environment() -> dict[str, str]:
    """A worker's environment: ours but for what a store is opened with, one BLAS thread, this lamella, no telemetry.

    onnxruntime 1.31 starts a thread for it at import: 2.3 MB in every function, and a fork would lose it.
    """
    held = {name: value for name, value in os.environ.items() if not name.startswith("AWS_") or name == "AWS_CA_BUNDLE"}
    env = dict(held, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    env["ORT_DISABLE_TELEMETRY"] = "1"
    home = str(Path(lamella.__file__).parent.parent)
    env["PYTHONPATH"] = os.pathsep.join([home, *filter(None, [env.get("PYTHONPATH")])])
    return env


@contextlib.contextmanager
def _opened(group: Group) -> Iterator[list[int]]:
    """Descriptors of a group's gates, to write to."""
    with contextlib.ExitStack() as closing:
        fds = []
        for gate in group.gates:
            fds.append(os.open(gate, os.O_WRONLY | os.O_CLOEXEC))
            closing.callback(os.close, fds[-1])
        yield fds


def _readable(fd: int, timeout_s: float | None) -> bool:
    """Whether there is something to read in time."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))
