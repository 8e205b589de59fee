"""The ways to start a model that `benchmarks/store.py` compares: two that people have, and the store's.

A way is something of which `up(count)` starts so many at once, and says how long that took and what memory they take
while all of them live. Programs (`Programs`) are fresh Pythons that open a session and run it; workers (`Workers`) are
instances of a deployment, fresh or forked by a zygote. Of a model in slices every part is a process; times are then of
the last one.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
import numpy as np

from lamella.deploy.local import Deployment
from lamella.limits.unlimited import Unlimited
from lamella.machine import on_cores
from lamella.runtime.instance import Instance
from lamella.runtime.starts import PROGRAM, Forking, Start, starters
from lamella.store import client

Feeds = Mapping[str, np.ndarray]

HEAD = """
import os, sys, time
import numpy as np
import onnxruntime as ort
"""
FILE = """
imported = time.monotonic()
options = ort.SessionOptions()
options.intra_op_num_threads = {threads}
options.log_severity_level = 3
session = ort.InferenceSession({path!r}, options, providers=["CPUExecutionProvider"])
"""
STORE = """
from lamella.store import session as open_session
imported = time.monotonic()
session = open_session({model!r})
"""
SERVE = """
opened = time.monotonic()
feeds = {{name: np.fromfile(path, dtype).reshape(shape) for name, path, dtype, shape in {feeds!r}}}
session.run(None, feeds)
print(imported, opened, time.monotonic(), flush=True)
for line in sys.stdin:
    taken = []
    for _ in range(int(line)):
        begun = time.perf_counter()
        session.run(None, feeds)
        taken.append((time.perf_counter() - begun) * 1000)
    print(*taken, flush=True)
os._exit(0)
"""


class Began(msgspec.Struct, frozen=True):
    """One start, ms from spawn; `session_ms` is of creating the session alone, `warm_ms` of an inference after it."""

    session_ms: float
    ready_ms: float
    first_ms: float
    warm_ms: float


class Together(msgspec.Struct, frozen=True):
    """Several started at once: ms until the last one's first result, and their memory then, MiB."""

    first_ms: float
    private_mb: tuple[float, ...]
    """Of each worker (USS): what one more takes."""
    total_mb: float
    """Of all of them and what serves them: daemon and zygote (sum of PSS), and what the store holds unmapped."""


class Part(NamedTuple):
    """A model, or one slice of it: its files, what it is called in the store, and inputs."""

    model: str
    plain: Path
    external: Path
    feeds: Feeds


class Way(Protocol):
    """How workers are started."""

    def one(self) -> Began:
        """One, from spawn to its end."""

    def many(self, count: int) -> Together:
        """So many at once."""


class Program:
    """A fresh Python with one session; it runs until it is closed."""

    def __init__(self, code: str) -> None:
        self.spawned = time.monotonic()
        argv = [sys.executable, "-c", code]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid

    def began(self) -> tuple[float, float, float]:
        """When it had imported, opened and run first, CLOCK_MONOTONIC seconds."""
        imported, opened, first = self._read()
        return imported, opened, first

    def run(self, times: int) -> list[float]:
        """Steady runs, ms each."""
        assert self._process.stdin
        self._process.stdin.write(f"{times}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> list[float]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a program of the benchmark ended with code {self._process.wait()}")
        return [float(v) for v in line.split()]

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class Programs:
    """Fresh Pythons, one per part."""

    def __init__(self, codes: Sequence[str]) -> None:
        self._codes = codes

    def one(self) -> Began:
        """See `Way`."""
        with on_cores(1), self._up(1) as programs:
            spawned = programs[0].spawned
            marks = np.array([p.began() for p in programs])
            session = float((marks[:, 1] - marks[:, 0]).max() * 1000)
            ready, first = ((marks[:, 1:].max(axis=0) - spawned) * 1000).tolist()
            return Began(session, ready, first, sum(p.run(1)[0] for p in programs))

    def many(self, count: int) -> Together:
        """See `Way`."""
        with self._up(count) as programs:
            first = max(p.began()[2] for p in programs) - programs[0].spawned
            return together(first * 1000, [p.pid for p in programs], len(self._codes))

    @contextlib.contextmanager
    def _up(self, count: int) -> Iterator[list[Program]]:
        programs = [Program(code) for _ in range(count) for code in self._codes]
        try:
            yield programs
        finally:
            for program in programs:
                program.close()


class StorePrograms(Programs):
    """Fresh Pythons on the store: its daemon's memory counts."""

    def __init__(self, codes: Sequence[str], daemon: int) -> None:
        super().__init__(codes)
        self._daemon = daemon

    def many(self, count: int) -> Together:
        """See `Way`."""
        with self._up(count) as programs:
            first = max(p.began()[2] for p in programs) - programs[0].spawned
            pids = [p.pid for p in programs]
            found = together(first * 1000, pids, len(self._codes), [self._daemon])
            return msgspec.structs.replace(found, total_mb=found.total_mb + unmapped_mb(pids))


class Workers:
    """Instances of a package; a context, which ends their zygotes."""

    def __init__(self, package: Path, start: Start, feeds: Feeds, *, shared: bool, daemon: int) -> None:
        self._start, self._feeds, self._shared, self._daemon = start, feeds, shared, daemon
        with on_cores(1) as cpus:
            self._deployment = Deployment(
                package, limiter=Unlimited("benchmark"), cpus=cpus, start=start, shared=shared
            )
        self._directories = {f.name: package / f.name for f in self._deployment.functions}
        self._starters = starters(start, self._directories, "lamella.store" if shared else PROGRAM)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc: object) -> None:
        self._deployment.close()
        for starter in self._starters.values():
            starter.close()

    def one(self) -> Began:
        """See `Way`. The first run of a worker is its warm-up, unless it was forked with a session that was warm."""
        with on_cores(1):
            self._deployment.infer(self._feeds)
            answered = time.monotonic()
            warm = sum(s.run_ms for s in self._deployment.infer(self._feeds).stages)
        instances = list(self._deployment.instances.values())
        self._check(instances)
        spawned = min(i.spawned for i in instances)
        colds = [((i.spawned - spawned) * 1000, i.ready()) for i in instances]
        self._deployment.scale_to_zero()
        ready = max(after + cold.total - cold.first_run for after, cold in colds)
        first = max(after + cold.total for after, cold in colds)
        if self._start == "forked-session":
            first = (answered - spawned) * 1000
        return Began(max(cold.map + cold.session for _, cold in colds), ready, first, warm)

    def many(self, count: int) -> Together:
        """See `Way`."""
        cpus = frozenset(os.sched_getaffinity(0))
        limiter = Unlimited("benchmark")
        with contextlib.ExitStack() as ending:
            instances = []
            for _ in range(count):
                for name, directory in self._directories.items():
                    start = self._starters[name]
                    made = Instance(name, directory, limiter, memory_mb=None, vcpu=1.0, cpus=cpus, start=start)
                    ending.callback(made.kill)
                    instances.append(made)
            spawned = instances[0].spawned
            first = max((i.spawned - spawned) * 1000 + i.ready().total for i in instances)
            self._check(instances)
            zygotes = {s.pid for s in self._starters.values() if isinstance(s, Forking)}
            beside = [*zygotes, *([self._daemon] if self._shared else [])]
            pids = [i.pid for i in instances]
            found = together(first, pids, len(self._directories), beside)
            if self._shared:
                found = msgspec.structs.replace(found, total_mb=found.total_mb + unmapped_mb(pids))
            return found

    def _check(self, instances: Sequence[Instance]) -> None:
        if any(i.shared is not self._shared for i in instances):
            raise RuntimeError(f"a worker {'does not use' if self._shared else 'uses'} the store")


def together(first_ms: float, pids: Sequence[int], parts: int, beside: Sequence[int] = ()) -> Together:
    """What several processes take, `parts` of them one worker, with what runs `beside` them."""
    each = [memory(pid) for pid in pids]
    private = np.array([uss for uss, _ in each]).reshape(-1, parts).sum(axis=1)
    total = sum(pss for _, pss in each) + sum(memory(pid)[1] for pid in beside)
    return Together(first_ms, tuple(private.tolist()), total)


def unmapped_mb(pids: Sequence[int]) -> float:
    """What the store's segments take beside what these have mapped of them, MiB: nobody's PSS, and memory all the same.

    An embedding of which a request reads a few rows. In the page cache the kernel may drop it, and it is not counted.
    """
    tier = next(t for t in client.status().store.tiers if t.name == "memory")
    mapped = sum(_rollup(pid)["Pss_Shmem"] for pid in pids)
    return max(0.0, (tier.used_bytes - tier.cached_bytes) / 2**20 - mapped / 1024)


def memory(pid: int) -> tuple[float, float]:
    """USS and PSS of a process, MiB."""
    kb = _rollup(pid)
    return (kb["Private_Clean"] + kb["Private_Dirty"]) / 1024, kb["Pss"] / 1024


def _rollup(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}


def of_file(path: Path, feeds: str, threads: int = 1) -> str:
    """A program with a plain session on a file."""
    return HEAD + FILE.format(path=str(path), threads=threads) + feeds


def of_store(model: str, feeds: str) -> str:
    """A program with a session of the store."""
    return HEAD + STORE.format(model=model) + feeds


def serving(feeds: Feeds, directory: Path, name: str) -> str:
    """The end of a program that runs on these inputs, which are written into the directory."""
    written = []
    for k, (tensor, array) in enumerate(feeds.items()):
        path = directory / f"{name}-{k}.bin"
        array.tofile(path)
        written.append((tensor, str(path), array.dtype.name, array.shape))
    return SERVE.format(feeds=written)
