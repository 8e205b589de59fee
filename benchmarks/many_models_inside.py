"""One window of `many_models.py`, inside the control group: a system is started, warmed, and asked; then it ends.

`python benchmarks/many_models_inside.py WINDOW.json` writes what it saw where the window says. All systems run in this
one program, so that they pay for the same imports, and all they start is in its group. The systems:

- `cold`: a fresh Python for every request, a plain `InferenceSession` on the self-contained file (TrIMS's baseline). To
  warm it the files are read in the order in which the others are asked: all that it keeps are their pages;
- `reload`: one Python that lives, and loads a model for every request: `cold` without the interpreter's start;
- `keep-alive`: the workers of `cold`, kept alive as many as fit and evicted by `deploy.keeping`, those first that
  were used longest ago;
- `lamella-lru`, `-lfu`, `-cost-aware`: `deploy.host` over a store's daemon with that policy;
- `lamella-kernel`: the same without a budget of the store's. Segments are pages of files: the kernel drops
  those used longest ago, whoever maps them, so instances outlive their weights, and read back what was dropped;
- `lamella-resident`: the same with a budget of the host's for weights: it says which instances let go of them.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
import numpy as np

from lamella.deploy.host import Host
from lamella.deploy.keeping import Keeping
from lamella.limits.memory import private_mb
from lamella.limits.unlimited import Unlimited
from lamella.runtime.starts import environment
from lamella.store.client import SOCKET, Connection

COLD, RELOAD, KEEP_ALIVE, OURS = "cold", "reload", "keep-alive", "lamella-"
KERNEL, RESIDENT = "kernel", "resident"
SLACK_MB = 40
"""Left free by our budgets: pages of the kernel, and of files that are being read."""
LOAD_SLACK_MB = 120
"""The same for plain sessions, whose loads read whole files: with 40 the kernel killed idle workers meanwhile."""
HEADROOM = 1.25
"""Of instances over what one was seen to hold."""
DAEMON_MB, ZYGOTE_MB = 40, 25
"""What they hold beside weights, at most."""
UNBUDGETED = 0.3
"""Of the memory, at most, for what instances hold themselves where weights have no budget."""
MOSTLY = 0.8
"""The same where the host says whose weights leave: a start costs more than weights that are read meanwhile."""
TOLERANCE = 1e-4
"""Law 3's, over the range of the output."""
PLAIN = """
import io, sys
import numpy as np
import onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 3
kept = sys.argv[1] == "keep"
session = None
for line in sys.stdin:
    file, given = line.rstrip("\\n").split("\\t")
    if not session:
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        inputs = dict(np.load(given))
    answer = io.BytesIO()
    np.save(answer, session.run(None, inputs)[0])
    sys.stdout.buffer.write(len(answer.getvalue()).to_bytes(8, "little") + answer.getvalue())
    sys.stdout.buffer.flush()
    session = session if kept else None
"""
"""A worker: a line for each request, the model's file and the inputs'; an answer with its length before it."""


class Model(msgspec.Struct, frozen=True):
    """One of the mix, as files."""

    name: str
    file: str
    """The self-contained ONNX file."""
    package: str
    """Without its weights: the store has them."""
    inputs: str
    expected: str
    """What a plain session answers."""
    bytes: int
    load_mb: float
    """What a plain worker holds at its peak, beside pages of files."""
    weights: tuple[tuple[str, int], ...]
    """Ids and bytes of the store's blobs that every request needs."""


class Window(msgspec.Struct, frozen=True):
    """What to do."""

    system: str
    models: tuple[Model, ...]
    warm: tuple[int, ...]
    """Indices of models that are asked before the measurement."""
    asked: tuple[int, ...]
    limit_mb: int
    instance_mb: float
    """What one of our workers holds beside weights, about."""
    root: str
    """The store's."""
    backing: str
    seen: str
    """Where the result is written."""


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """One request."""

    model: int
    ms: float
    """To the answer."""
    busy_ms: float
    """Until the next could be taken."""
    cold: bool


class Seen(msgspec.Struct, frozen=True):
    """What a window saw; every answer was right."""

    asked: tuple[Asked, ...]
    error: float
    """The largest difference of an answer to the plain session's, over its range."""
    evictions: int
    """Of workers, while measured."""
    store_evictions: int
    alive: int
    """Workers at the end."""


class Given(NamedTuple):
    """An answer."""

    output: np.ndarray
    at: float
    """When it was there, time.monotonic()."""
    cold: bool


class System(Protocol):
    """Serves models one request at a time."""

    def ask(self, k: int) -> Given:
        """The answer of model `k` to its inputs."""

    def warm(self, k: int) -> None:
        """Before the measurement, what a request for model `k` leaves behind."""

    def evictions(self) -> tuple[int, int, int]:
        """So far: of workers and of the store's segments; and how many workers are alive."""

    def close(self) -> None:
        """End it."""


class Plain:
    """A Python process with a plain session, of one model or, not kept, of another one for every request."""

    def __init__(self, *, keep: bool = True) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PLAIN, "keep" if keep else "drop"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
        )
        self.pid = self._process.pid

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def ask(self, model: Model) -> np.ndarray:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{model.file}\t{model.inputs}\n".encode())
        self._process.stdin.flush()
        size = int.from_bytes(self._process.stdout.read(8), "little")
        if not size:
            raise SystemExit("a plain worker ended: its words above, or the kernel killed it at the limit")
        answer: np.ndarray = np.load(io.BytesIO(self._process.stdout.read(size)))
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.close()


class Cold:
    """A process per request."""

    def __init__(self, window: Window) -> None:
        self._models = window.models

    def ask(self, k: int) -> Given:
        worker = Plain()
        try:
            return Given(worker.ask(self._models[k]), time.monotonic(), cold=True)
        finally:
            worker.end()

    def warm(self, k: int) -> None:
        with open(self._models[k].file, "rb") as file:
            while file.read(1 << 20):
                pass

    def evictions(self) -> tuple[int, int, int]:
        return 0, 0, 0

    def close(self) -> None:
        """Nothing is left."""


class Reloaded(Cold):
    """A process for all, that keeps nothing."""

    def __init__(self, window: Window) -> None:
        super().__init__(window)
        self._worker = Plain(keep=False)

    def ask(self, k: int) -> Given:
        return Given(self._worker.ask(self._models[k]), time.monotonic(), cold=True)

    def close(self) -> None:
        self._worker.end()


class KeptAlive:
    """Plain workers, as many as fit."""

    def __init__(self, window: Window) -> None:
        self._models = window.models
        self._keeping = Keeping(window.limit_mb - private_mb(os.getpid()) - LOAD_SLACK_MB)
        self._workers: dict[str, Plain] = {}
        self._evicted = 0

    def ask(self, k: int) -> Given:
        model = self._models[k]
        worker = self._workers.get(model.name)
        if worker and not worker.lives:  # the kernel killed it at the limit
            self._leave(model.name)
            worker = None
        if worker:
            self._keeping.use(model.name)
            return Given(worker.ask(model), time.monotonic(), cold=False)
        for victim in self._keeping.leaving(model.load_mb):
            self._leave(victim)
        worker = self._workers[model.name] = Plain()
        given = Given(worker.ask(model), time.monotonic(), cold=True)
        self._keeping.use(model.name, private_mb(worker.pid))
        return given

    def warm(self, k: int) -> None:
        self.ask(k)

    def _leave(self, name: str) -> None:
        self._workers.pop(name).end()
        self._keeping.drop(name)
        self._evicted += 1

    def evictions(self) -> tuple[int, int, int]:
        return self._evicted, 0, len(self._workers)

    def close(self) -> None:
        for worker in self._workers.values():
            worker.end()


class Ours:
    """A host over a store."""

    def __init__(self, window: Window) -> None:
        self._names = [model.name for model in window.models]
        self._inputs = {name: dict(np.load(m.inputs)) for name, m in zip(self._names, window.models, strict=True)}
        free = window.limit_mb - private_mb(os.getpid()) - DAEMON_MB - ZYGOTE_MB - SLACK_MB
        model_mb = sum(m.bytes for m in window.models) / len(window.models) / (1 << 20)
        self._policy = window.system.removeprefix(OURS)
        instance_mb = HEADROOM * window.instance_mb
        own = {KERNEL: UNBUDGETED, RESIDENT: MOSTLY}
        part = own.get(self._policy, instance_mb / (instance_mb + model_mb))
        instances_mb = free * part
        total_mb = free if self._policy == RESIDENT else None
        self._sockets = tempfile.TemporaryDirectory()  # a short path: those of sockets are limited
        with ExitStack() as undo:
            undo.callback(self._sockets.cleanup)
            daemon = self._serve(window, int(free - instances_mb))
            undo.callback(daemon.wait)
            undo.callback(daemon.terminate)
            packages = {m.name: Path(m.package) for m in window.models}
            limiter = Unlimited("one group holds everything")
            self._host = Host(packages, memory_mb=instances_mb, limiter=limiter, total_mb=total_mb)
            undo.enter_context(self._host)
            self._closing = undo.pop_all()

    def _serve(self, window: Window, memory_mb: int) -> subprocess.Popen[bytes]:
        """The daemon, when it listens."""
        socket = f"{self._sockets.name}/store.socket"
        os.environ[SOCKET] = socket
        command = ["store", "serve", "--root", window.root, "--socket", socket, "--backing", window.backing]
        if self._policy not in (KERNEL, RESIDENT):
            command += ["--memory-mb", str(memory_mb), "--policy", self._policy]
        daemon = subprocess.Popen(
            [sys.executable, "-c", "from lamella.cli import main; main()", *command], stdout=subprocess.PIPE
        )
        assert daemon.stdout
        if not daemon.stdout.readline().startswith(b"serving"):
            raise SystemExit("the store's daemon did not start")
        return daemon

    def ask(self, k: int) -> Given:
        name = self._names[k]
        answer = self._host.infer(name, self._inputs[name])
        given = Given(next(iter(answer.outputs.values())), time.monotonic(), cold=answer.cold_ms > 0)
        if not self._host.is_shared(name):
            raise SystemExit(f"{name} did not take its weights from the store")
        return given

    def warm(self, k: int) -> None:
        self.ask(k)

    def evictions(self) -> tuple[int, int, int]:
        with Connection() as connection:
            return self._host.evictions, connection.status().store.evictions, len(self._host.alive)

    def close(self) -> None:
        self._closing.close()


def system(window: Window) -> System:
    """The window's system, started."""
    kinds: dict[str, type[Cold] | type[KeptAlive]] = {COLD: Cold, RELOAD: Reloaded, KEEP_ALIVE: KeptAlive}
    kind = kinds.get(window.system)
    return kind(window) if kind else Ours(window)


def difference(output: np.ndarray, expected: np.ndarray) -> float:
    """The largest one, over the range of what is expected; infinite where the shapes differ."""
    if output.shape != expected.shape:
        return float("inf")
    return float(np.abs(output - expected).max() / (expected.max() - expected.min()))


def run(window: Window) -> Seen:
    """Start, warm, ask, check, end."""
    expected = [np.load(model.expected) for model in window.models]
    served = system(window)
    worst, asked = 0.0, []
    try:
        for k in window.warm:
            served.warm(k)
        before = served.evictions()
        for k in window.asked:
            sent = time.monotonic()
            given = served.ask(k)
            done = time.monotonic()
            asked.append(Asked(k, (given.at - sent) * 1000, (done - sent) * 1000, given.cold))
            error = difference(given.output, expected[k])
            if error > TOLERANCE:
                raise SystemExit(f"{window.system}: a wrong answer of {window.models[k].name}, off by {error:g}")
            worst = max(worst, error)
        after = served.evictions()
    finally:
        served.close()
    return Seen(tuple(asked), worst, after[0] - before[0], after[1] - before[1], after[2])


if __name__ == "__main__":
    todo = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Window)
    Path(todo.seen).write_bytes(msgspec.json.encode(run(todo)))
