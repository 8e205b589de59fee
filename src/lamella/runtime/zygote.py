"""A process that has imported the runtime and forks workers: their start is a fork, not an interpreter and an import.

Started as `python -m lamella.runtime.zygote FD [DIRECTORY]` by `runtime.starts`; `runtime.orders` is what it is asked.
It holds no session, and has exactly one thread, for a fork copies no other: what those hold would be locked for ever.
onnxruntime's import starts one for telemetry, which the environment forbids; `threads()` is asked before the first fork
all the same.

With a DIRECTORY it holds that function, open and warm, and every worker is born with it. That takes a session of one
thread, and workers that leave by `_exit`: what a session's end does to inherited memory is nobody's promise. The price
is isolation: all of a family share the parent's address layout, its hash seed, whatever it holds in memory, and the
state of random operators in the graph.

A worker enters its control group before anything else. What fork itself touches, some eighty pages, and the pages it
shares with the zygote until one of them writes, are charged to the zygote's group. Rejected: `clone3` into the group,
which v1 has not and which would start Python without what it does after a fork; the zygote joining for the fork, since
at the group's limit the kernel might take the zygote.

A worker's death with its driver: its control socket closes, as for any other, and the zygote kills what is left when
its own socket does, stopped workers too. A zygote that is killed harms no worker, except those that may be frozen: they
die with their parent, since they could not see their driver go.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

import msgspec
import numpy as np
import onnxruntime as ort

from lamella.channels import messages as wire
from lamella.errors import ConfigError, LamellaError
from lamella.machine import this_machine
from lamella.runtime import orders, worker

CANNOT_JOIN = 97
"""Exit code, as that of `Group.command`."""
ERROR = 2
"""The descriptor of standard error."""
RELU = (
    b'\x08\x08:3\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)
"""An ONNX model of one operator, x [1] to y [1]."""


class Child(NamedTuple):
    """A worker that lives."""

    pid: int
    report: socket.socket


class Zygote:
    """Its driver's socket, the function it may hold, and its children by pidfd."""

    def __init__(self, sock: socket.socket, held: worker.Worker | None, opener: worker.Opener) -> None:
        """`held` is forked with every worker; `opener` is how the others open their function."""
        self._sock, self._held, self._opener = sock, held, opener
        self._children: dict[int, Child] = {}
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def serve(self) -> NoReturn:
        """Fork and bury until the driver is gone; then end the children and leave."""
        while True:
            for fd, _ in self._poll.poll():
                if fd != self._sock.fileno():
                    self._bury(fd)
                elif not self._next():
                    for pidfd in self._children:
                        with suppress(ProcessLookupError):
                            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    os._exit(0)

    def _next(self) -> bool:
        """Take an order; whether the driver is there. One that is no order, or incomplete, is dropped.

        The driver sees it dropped by its report socket's end.
        """
        try:
            packet, fds, flags, _ = socket.recv_fds(self._sock, wire.PACKET_LIMIT, orders.MOST_DESCRIPTORS)
        except ConnectionError:
            return False
        try:
            if not packet:
                return False
            order = orders.decode_order(packet)
            if not flags & socket.MSG_CTRUNC and len(fds) >= 4 + order.listens:
                self._fork(order, fds)
        except msgspec.MsgspecError:
            pass
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _fork(self, order: orders.Order, fds: list[int]) -> None:
        try:
            pid = os.fork()
        except OSError:
            return
        if pid == 0:
            become(order, fds, self._held, self._opener)
        pidfd = os.pidfd_open(pid)
        report = socket.socket(fileno=os.dup(fds[0]))
        self._children[pidfd] = Child(pid, report)
        self._poll.register(pidfd, select.POLLIN)
        with suppress(OSError):  # a driver that gave up: the worker sees it too
            socket.send_fds(report, [orders.encode(orders.Forked(pid))], [pidfd])

    def _bury(self, pidfd: int) -> None:
        child = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        _, status = os.waitpid(child.pid, 0)
        os.close(pidfd)
        with child.report, suppress(OSError):
            child.report.send(orders.encode(orders.Ended(os.waitstatus_to_exitcode(status))))


def become(order: orders.Order, fds: list[int], held: worker.Worker | None, opener: worker.Opener) -> NoReturn:
    """Be the worker that was ordered; in the child, right after the fork. Never returns into the zygote's frames."""
    code = 1
    try:
        report, control, stream, error = fds[:4]
        listener = fds[4] if order.listens else -1
        os.dup2(error, ERROR)
        _join(fds[4 + order.listens :])
        started = time.monotonic()  # like a fresh worker's clock, which starts in its group
        _settle(order)
        _keep_only({0, 1, ERROR, report, control, stream, listener})
        _await_go(report)
        imported = time.monotonic()
        worker.work(
            socket.socket(fileno=control),
            socket.socket(fileno=stream),
            Path(order.directory),
            order.channel,
            listener,
            started=started,
            imported=imported,
            held=held,
            opener=opener,
        )
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # noqa: BLE001 - as the interpreter ends a program
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _join(gates: list[int]) -> None:
    """Enter the control group."""
    for gate in gates:
        try:
            os.write(gate, b"0")
        except OSError as error:
            os.write(ERROR, f"lamella: cannot join the group: {error.strerror}\n".encode())
            os._exit(CANNOT_JOIN)


def _settle(order: orders.Order) -> None:
    """A session, cores, environment, chance and user of its own; signals as a program finds them.

    Module `random` re-seeds itself after a fork, numpy does not.
    """
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.sched_setaffinity(0, order.cpus)
    os.environ.update(order.environment)
    if numpy_random := sys.modules.get("numpy.random"):
        numpy_random.seed()
    worker.import_channel(order.channel)
    if order.user:
        os.setgroups([])
        os.setgid(order.user[1])
        os.setuid(order.user[0])


def _keep_only(own: set[int]) -> None:
    """Close every descriptor but these."""
    low = 0
    for fd in sorted(own - {-1}):
        if low < fd:  # closerange(0, 0) closes all there are
            os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


def _await_go(report: int) -> None:
    """Leave where the driver has given up."""
    if os.read(report, len(orders.GO)) != orders.GO:
        os._exit(0)
    os.close(report)


def threads() -> int:
    """How many this process has."""
    return len(os.listdir("/proc/self/task"))


def _practise() -> None:
    """Open a session and close it: the first one of a process builds tables of operators and kernels, some 4 ms."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(RELU, options, providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.zeros(1, np.float32)})


def prepare(directory: str, opener: worker.Opener = worker.open_files) -> worker.Worker | None:
    """The function to hold, open and warm, if any; ConfigError where forking it would not be safe."""
    this_machine()  # asked by every worker, the same for all
    _practise()
    held = None
    if directory:
        held = worker.Worker(Path(directory), opener)
        held.warm_up()
    if threads() != 1:
        holding = f" with function {held.function.name} open" if held else ""
        raise ConfigError(f"the zygote has {threads()} threads{holding}, a fork copies one of them")
    gc.collect()
    gc.freeze()  # what is there stays: a collection would copy the pages of every object
    return held


def main(opener: worker.Opener = worker.open_files) -> None:
    """Fork on orders that come over the descriptor given on the command line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sock = socket.socket(fileno=int(sys.argv[1]))
    try:
        held = prepare(sys.argv[2] if sys.argv[2:] else "", opener)
    except LamellaError as error:
        sock.send(orders.encode(orders.Refused(error.code, str(error))))
        sys.exit(1)
    sock.send(orders.encode(orders.Holding()))
    Zygote(sock, held, opener).serve()


if __name__ == "__main__":
    main()
