"""One running copy of a function: a limited process, its socket, its state, and why it ended.

States go spawning -> importing -> mapping -> ready <-> busy -> draining -> gone; every change is an event with its
time. The worker reports the times of its own start when it is ready, so the phases before are dated afterwards.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import signal
import socket
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from lamella.channels import messages as wire
from lamella.errors import (
    CodecError,
    ConfigError,
    FunctionTimeout,
    InputRefused,
    InstanceCrashed,
    InstanceLost,
    LamellaError,
    ModelError,
    OutOfMemory,
    StorageError,
    WireError,
)
from lamella.limits import Limiter
from lamella.runtime.lines import HttpLine, Line, UnixLine
from lamella.runtime.orders import Order
from lamella.runtime.starts import Descriptors, Fresh, Starter
from lamella.units import DIE_WITH_PARENT, HASTE


class State(enum.StrEnum):
    """Where an instance is in its life."""

    SPAWNING = "spawning"
    IMPORTING = "importing"
    MAPPING = "mapping"
    READY = "ready"
    BUSY = "busy"
    DRAINING = "draining"
    GONE = "gone"


NEXT: dict[State, frozenset[State]] = {
    State.SPAWNING: frozenset({State.IMPORTING, State.GONE}),
    State.IMPORTING: frozenset({State.MAPPING, State.GONE}),
    State.MAPPING: frozenset({State.READY, State.GONE}),
    State.READY: frozenset({State.BUSY, State.DRAINING, State.GONE}),
    State.BUSY: frozenset({State.READY, State.GONE}),
    State.DRAINING: frozenset({State.GONE}),
    State.GONE: frozenset(),
}
"""The legal transitions."""


CAUSES: dict[str, type[LamellaError]] = {kind.code: kind for kind in (CodecError, ConfigError, StorageError, WireError)}
"""Of a request that failed; any other is the input's fault."""


class ColdStart(NamedTuple):
    """A start split into its phases, ms."""

    spawn: float
    imports: float
    map: float
    session: float
    first_run: float

    @property
    def total(self) -> float:
        """From spawn to ready, ms."""
        return sum(self)


class Reply(NamedTuple):
    """An instance's answer to one request."""

    outputs: tuple[wire.TensorRef, ...]
    """Where they did not all go in place."""
    streamed: Sequence[bytearray]
    """Bytes of outputs that came with the answer, in order."""
    run_ms: float
    """What is billed: from sending the request to the arrival of the answer. An instance that is throttled before it
    has read the request, or before its answer is out, is running, as it is on the platforms."""
    compute_ms: float
    """The part of it in which the instance had the request and worked."""
    cpu_ms: float


_numbers = itertools.count()

LOOPBACK = "127.0.0.1"


class Instance:
    """A worker process. Not thread-safe: one request at a time, as on the platforms we rehearse."""

    def __init__(
        self,
        name: str,
        directory: Path,
        limiter: Limiter,
        *,
        memory_mb: int | None,
        vcpu: float,
        period_ms: int = 10,
        cpus: frozenset[int] | None = None,
        freezable: bool = False,
        channel: str = "shared-memory",
        start: Starter | None = None,
        haste: bool = False,
    ) -> None:
        """Spawn the process under its limits, on `cpus` where given; `ready()` waits for it.

        `start` makes the process, by default a fresh one; a zygote forks it.

        In `haste` it is ready before its weights are in memory, and does not warm up: for a request that waits.

        On channel `http` it listens on a port of this machine's loopback, which `url` says.

        A `freezable` instance may be paused: a stopped process cannot see its driver go, so the kernel kills it when
        the thread that spawned it ends.
        """
        self.name = name
        self.number = next(_numbers)
        self.memory_mb = memory_mb
        self.events: deque[tuple[float, State]] = deque(maxlen=256)
        self.segments: set[int] = set()
        self.cold: ColdStart | None = None
        self.shared = False
        """Whether its weights are the store's; known when it is ready."""
        self.url = ""
        self._timeout_s = -1.0
        self._sent = 0.0
        self._group = limiter.create(f"{self.number}-{name}", memory_mb=memory_mb, vcpu=vcpu, period_ms=period_ms)
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as handed_over:
            undo.callback(self._group.remove)
            undo.callback(self._group.kill)
            self._sock, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.enter_context(self._sock)
            handed_over.enter_context(control)
            self._stream, stream = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            undo.enter_context(self._stream)
            handed_over.enter_context(stream)
            self._line: Line = UnixLine(self._sock, self._stream)
            self._stderr = undo.enter_context(tempfile.TemporaryFile())
            self.spawned = time.monotonic()
            self._enter(State.SPAWNING, self.spawned)
            listener = None
            if channel == "http":
                listener = handed_over.enter_context(socket.create_server((LOOPBACK, 0)))
                self._line = HttpLine(listener.getsockname())
                self.url = f"http://{LOOPBACK}:{listener.getsockname()[1]}/v2/models/{name}/infer"
            order = Order(
                str(directory),
                channel,
                environment={name: "1" for name, on in ((DIE_WITH_PARENT, freezable), (HASTE, haste)) if on},
                cpus=tuple(sorted(cpus or self._group.affinity or ())),
            )
            handed = Descriptors(control.fileno(), stream.fileno(), self._stderr.fileno(), listener)
            self._process = (start or Fresh()).spawn(order, handed, self._group)
            undo.pop_all()

    @property
    def state(self) -> State:
        """The present state."""
        return self.events[-1][1]

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def _enter(self, state: State, at: float | None = None) -> None:
        if self.events:
            assert state in NEXT[self.state], (self.state, state)
        self.events.append((time.monotonic() if at is None else at, state))

    def ready(self, timeout_s: float = 120.0) -> ColdStart:
        """Wait until the worker can serve; how long each phase of its start took.

        Raises:
            OutOfMemory, InstanceCrashed, FunctionTimeout: it did not get there.
            ModelError: the runtime refused its files.
        """
        if self.cold:
            return self.cold
        message = self._receive(timeout_s, "start")
        if isinstance(message, wire.Failed):
            self.kill()
            raise ModelError(message.message, where=f"function {self.name}")
        if not isinstance(message, wire.Ready):
            raise WireError(f"function {self.name} began with {type(message).__name__}")
        self._enter(State.IMPORTING, message.started)
        self._enter(State.MAPPING, message.imported)
        self._enter(State.READY, message.warmed)
        self.shared = message.shared
        marks = [self.spawned, message.started, message.imported, message.mapped, message.opened, message.warmed]
        self.cold = ColdStart(*((b - a) * 1000 for a, b in pairwise(marks)))
        return self.cold

    def attach(self, segment: int, size: int, fd: int) -> None:
        """Hand a shared segment to the worker."""
        if segment in self.segments:
            return
        try:
            wire.send(self._sock, wire.Attach(segment, size))
            wire.send_descriptor(self._sock, fd)
        except OSError:
            raise self._lost("attach a segment") from None
        self.segments.add(segment)

    def detach(self, segment: int) -> None:
        """Let the worker forget a segment."""
        if segment in self.segments:
            self.segments.discard(segment)
            self._tell(wire.Detach(segment))

    def bring(self) -> None:
        """Have it begin to bring its weights into memory; the request follows."""
        self._tell(wire.Bring())

    def let_go(self, keep: int = 0) -> None:
        """Have it drop its weights from memory, but for `keep` bytes; the next request brings them back."""
        self._tell(wire.LetGo(keep))

    def _tell(self, message: wire.Message) -> None:
        with contextlib.suppress(OSError):  # a worker that is gone has let go; the next run says why it is
            wire.send(self._sock, message)

    def run(self, request: bytes, timeout_s: float = 60.0, parts: Sequence[memoryview] = ()) -> Reply:
        """One request and its answer: `begin`, then `finish`."""
        self.begin(request, timeout_s, parts)
        return self.finish()

    def fileno(self) -> int:
        """Readable when an answer to what was begun is there: instances that run at the same time are polled."""
        return self._line.fileno()

    def begin(self, request: bytes, timeout_s: float = 60.0, parts: Sequence[memoryview] = ()) -> None:
        """Send one request: an encoded `Run`, or on channel `http` a head with its JSON, and the tensors behind it.

        Raises:
            FunctionTimeout, OutOfMemory, InstanceCrashed: it is gone.
        """
        self._enter(State.BUSY)
        try:
            if self._timeout_s != timeout_s:
                self._timeout_s = timeout_s
                self._line.settimeout(timeout_s)
            self._sent = time.monotonic()
            self._line.send(request, parts)
        except TimeoutError:
            raise self._too_slow() from None
        except OSError:
            raise self._lost("run") from None

    def finish(self) -> Reply:
        """Wait for the answer to what was begun.

        Raises:
            InputRefused: the function cannot take these tensors; it stays ready.
            CodecError, ConfigError: it cannot decode them; it stays ready.
            ConfigError, StorageError, WireError: it cannot put or get them in the object store; it stays ready.
            FunctionTimeout, OutOfMemory, InstanceCrashed: it is gone.
        """
        try:
            message, data = self._line.receive()
            run_ms = (time.monotonic() - self._sent) * 1000
        except TimeoutError:
            raise self._too_slow() from None
        except (EOFError, OSError):
            raise self._lost("run") from None
        self._enter(State.READY)
        if isinstance(message, wire.Failed):
            kind = CAUSES.get(message.code, InputRefused)
            raise kind(message.message, where=f"function {self.name}", try_=message.try_)
        if not isinstance(message, wire.Done):
            raise WireError(f"function {self.name} answered with {type(message).__name__}")
        return Reply(message.outputs, data, run_ms, message.compute_s * 1000, message.cpu_s * 1000)

    def _too_slow(self) -> FunctionTimeout:
        self.kill()
        return FunctionTimeout(
            f"function {self.name} did not answer within {self._timeout_s:g} s and was killed",
            where=f"function {self.name}",
            try_="plan with more vCPU, or raise the timeout",
        )

    def report(self) -> wire.Memory:
        """Its memory and fault counters."""
        try:
            wire.send(self._sock, wire.Report())
        except OSError:
            raise self._lost("report") from None
        message = self._receive(10.0, "report")
        if not isinstance(message, wire.Memory):
            raise WireError(f"function {self.name} reported {type(message).__name__}")
        return message

    def pause(self) -> None:
        """Stop its process where it stands; a platform freezes idle instances too."""
        if self.state is not State.GONE:
            self._process.send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        if self.state is not State.GONE:
            self._process.send(signal.SIGCONT)

    def limit_cpu(self, vcpu: float) -> None:
        """Change its CPU share."""
        self._group.resize(memory_mb=self.memory_mb, vcpu=vcpu)

    def stop(self, timeout_s: float = 2.0) -> None:
        """Let it finish and leave; kill it when it does not."""
        if self.state is State.READY:
            self.resume()
            self._enter(State.DRAINING)
            try:
                wire.send(self._sock, wire.Stop())
                self._process.wait(timeout_s)
            except OSError:  # TimeoutError too
                pass
        self.kill()

    def kill(self) -> None:
        """End it now; idempotent. Its group is removed and its memory freed when this returns."""
        if self.state is State.GONE:
            return
        self._process.send(signal.SIGKILL)
        self._process.wait()
        self._group.kill()
        self._group.remove()
        self._line.close()
        self._sock.close()
        self._stream.close()
        self._stderr.close()
        self._process.close()
        self._enter(State.GONE)

    def _receive(self, timeout_s: float, doing: str) -> wire.Message:
        self._timeout_s = -1.0  # the stream's is not set here: `run` has to
        self._sock.settimeout(timeout_s)
        try:
            return wire.receive(self._sock)
        except TimeoutError:
            self.kill()
            raise FunctionTimeout(
                f"function {self.name} did not {doing} within {timeout_s:g} s and was killed",
                where=f"function {self.name}",
                try_="give it more vCPU or memory",
            ) from None
        except (EOFError, OSError):
            raise self._lost(doing) from None

    def _lost(self, doing: str) -> InstanceLost:
        """Why the process ended; it is buried first."""
        ended = True
        code = None
        try:
            code = self._process.wait(2.0)
        except TimeoutError:
            ended = False
        kills = self._group.oom_kills()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip().splitlines()[-1:]
        self.kill()
        where = f"function {self.name}"
        if kills:
            return OutOfMemory(
                f"function {self.name} was killed by the kernel at its memory limit of {self.memory_mb} MB ({doing})",
                where=where,
                try_="send batches as large as planned for, or plan with a larger --batch; else lamella plan here",
            )
        if not ended:
            how = "closed its socket and went on"
        elif code is None:
            how = "ended, and nobody saw how: the zygote that forked it had ended before"
        elif code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        else:
            how = f"left with exit code {code}"
        tail = f": {said[0]}" if said else ""
        return InstanceCrashed(f"function {self.name} {how} ({doing}){tail}", where=where)
