"""A chain of functions as limited processes: the driver's side.

The driver calls stage after stage, as an orchestrator on a real platform does, so a function is billed for its own run
and never for waiting. How tensors travel is the business of `runtime.tensors`, whatever the channel; where a hop has a
codec the producer encodes and the readers decode, and the driver passes on what it was given.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from lamella.codecs import Codecs, codec, is_fitted
from lamella.errors import ConfigError, InputRefused, InstanceCrashed, LamellaError, OutOfMemory
from lamella.limits import Limiter
from lamella.machine import this_machine
from lamella.runtime.function import Function, TensorSpec
from lamella.runtime.instance import ColdStart, Instance, State
from lamella.runtime.lanes import makespan
from lamella.runtime.starts import PROGRAM, STARTS, Start, Starter, starters
from lamella.runtime.tensors import Call, Channel, Store, Tensors, carrier, coded_tensors

START_S = 120.0
"""A start may take this long, or as long as a request where that is longer."""


class StageTime(NamedTuple):
    """One function of one request, ms: billed, worked at by the instance, and CPU time."""

    run_ms: float
    compute_ms: float
    cpu_ms: float


class Answer(NamedTuple):
    """Outputs of a request and where its time went."""

    outputs: dict[str, np.ndarray]
    latency_ms: float
    stages: tuple[StageTime, ...]
    cold_ms: float
    """Time spent on starting instances for this request; 0 when all were warm."""
    emulated_ms: float = 0.0
    """What was taken off `latency_ms` for shards that run side by side on more cores than there are here."""


class Size(NamedTuple):
    """What one function is given."""

    memory_mb: int | None
    vcpu: float


class Chain:
    """Functions in order and their instances; leaving it as a context ends every process, group and segment."""

    def __init__(
        self,
        functions: Sequence[tuple[Function, Path]],
        outputs: Sequence[str],
        sizes: Mapping[str, Size],
        *,
        limiter: Limiter,
        channel: Channel = "shared-memory",
        keep_alive_s: float = 600.0,
        timeout_s: float = 300.0,
        period_ms: int = 10,
        cpus: frozenset[int] | None = None,
        freezable: bool = False,
        stages: Sequence[Sequence[str]] | None = None,
        at_once: Sequence[int] | None = None,
        codecs: Sequence[str] = (),
        store: Store | None = None,
        start: Start = "fresh",
        program: str = PROGRAM,
        starter: Starter | None = None,
        haste: bool = False,
    ) -> None:
        """Prepare; instances start with the first request, or `start()`.

        Args:
            functions: in the order they run, each with the directory of its files.
            outputs: which tensors are the answer.
            sizes: what each function is given, by name.
            limiter: how limits are enforced.
            channel: how tensors travel.
            keep_alive_s: an instance idle for longer is stopped at the next `reap()` or request.
            timeout_s: per function and request.
            period_ms: of the CPU quota.
            cpus: cores to keep the functions on; those of `machine.on_cores` make hops cheapest.
            freezable: `pause()` may be called; instances then have to be started from one lasting thread.
            stages: names of the functions of each stage; those of one stage are shards, which run at the same time.
                By default each function is a stage.
            at_once: for each stage how many shards may be busy at a time, one by default; those get cores of their own.
                More than there are cores is emulated: they run one after the other, and the answer's latency counts
                when the last would have ended side by side, and all of the forking and joining.
            codecs: for each stage but the last that of the hop behind it, `none` by default. What the stage gives
                travels by it to every reader, also to those beyond the next stage.
            store: where channel `s3` keeps what travels.
            start: how processes come to be: each a fresh interpreter, as on platforms; forked from a `zygote`, which
                has only imported the runtime; or forked from one that holds the function's session
                (`forked-session`), whose instances share its memory, address layout and secrets. Zygotes are
                started here, and waited for.
            program: the package whose `worker` and `zygote` they run.
            starter: makes the processes of several chains, in place of `start` and `program`; its owner closes it.
            haste: instances are ready before their weights are in memory, and do not warm up: each starts for a
                request that waits, and does for it what it would have done before.

        Raises:
            ConfigError: there is no such codec, or it does not run here; or channel `s3` without a store; or a zygote
                cannot be had, or a function's session has more threads than a fork copies.
            ModelError: the runtime refuses a function that a zygote should hold.
        """
        self.functions = [function for function, _ in functions]
        self.limiter, self.channel = limiter, channel
        self.instances: dict[str, Instance] = {}
        self._directories = {function.name: directory for function, directory in functions}
        self._outputs, self._sizes = tuple(outputs), dict(sizes)
        self._keep_alive_s, self._timeout_s, self._period_ms, self._cpus = keep_alive_s, timeout_s, period_ms, cpus
        self._freezable, self._haste = freezable, haste
        by_name = {f.name: f for f in self.functions}
        self._stages = [[by_name[n] for n in names] for names in stages or [[f.name] for f in self.functions]]
        self._meant = list(at_once or [1] * len(self._stages))
        cores = len(cpus) if cpus else this_machine().cores
        self._at_once = [many if many <= cores else 1 for many in self._meant]
        self._place = {
            f.name: (many - 1 - k) % many
            for stage, many in zip(self._stages, self._at_once, strict=True)
            for k, f in enumerate(stage)
            if len(stage) > 1
        }
        for name in {*codecs}:
            if not is_fitted(name):
                codec(name).encode(np.zeros(1, np.float32))  # says what to install, if anything
        self._used: dict[str, float] = {}
        self._carrier = carrier(
            channel,
            coded_tensors(self._stages, codecs),
            Codecs({t: c for f, at in functions if f.fitted for t, c in f.codecs(at).fitted.items()}),
            timeout_s=timeout_s,
            functions=self.functions,
            instances=self.instances,
            store=store,
        )
        if start not in STARTS:
            raise ConfigError(f"start {start!r} is none of {', '.join(STARTS)}")
        self._own = {} if starter else starters(start, self._directories, program)
        self._starters = dict.fromkeys(self._directories, starter) if starter else self._own

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def inputs(self) -> dict[str, TensorSpec]:
        """What a request must hold."""
        made = {o.name for f in self.functions for o in f.outputs}
        return {s.name: s for f in self.functions for s in f.inputs if s.name not in made}

    @property
    def throttled(self) -> bool:
        """Whether a CPU quota may hold a function back: it has less CPU than threads that may use it."""
        return self.limiter.enforced and any(size.vcpu % 1 for size in self._sizes.values())

    @property
    def period_ms(self) -> int:
        """Of the CPU quota."""
        return self._period_ms

    def pin(self, cpus: frozenset[int]) -> None:
        """Keep instances started from now on to these cores."""
        self._cpus = cpus

    def resize(self, name: str, memory_mb: int) -> None:
        """Give a function another memory limit; its next instance has it."""
        self._sizes[name] = self._sizes[name]._replace(memory_mb=memory_mb)

    def start(self) -> dict[str, ColdStart]:
        """Start what is not running, all at once; the cold start of each function that was started.

        When one of them fails, those started with it are stopped.
        """
        for name in [n for n, i in self.instances.items() if i.state is not State.READY]:
            self.instances.pop(name).kill()  # lost by an earlier request, or interrupted in one
        new = [f.name for f in self.functions if f.name not in self.instances]
        try:
            for name in new:
                self._spawn(name)
            return {name: self.instances[name].ready(max(START_S, self._timeout_s)) for name in new}
        except BaseException:
            for name in self.instances.keys() & new:
                self.instances.pop(name).kill()
            raise

    def _spawn(self, name: str) -> Instance:
        size = self._sizes[name]
        instance = Instance(
            name,
            self._directories[name],
            self.limiter,
            memory_mb=size.memory_mb,
            vcpu=size.vcpu,
            period_ms=self._period_ms,
            cpus=self._cores_of(name),
            freezable=self._freezable,
            channel=self.channel,
            start=self._starters[name],
            haste=self._haste,
        )
        self.instances[name] = instance
        self._used[name] = time.monotonic()
        return instance

    def _cores_of(self, name: str) -> frozenset[int] | None:
        """Where a function may run: shards of a stage on different cores, beside them everything on the last one.

        Left to itself the scheduler wakes shards on the core of the driver that wakes them, one after the other. The
        shard on the driver's own core, the last one, is asked last: it may hold the driver off for some ms.
        """
        if not self._cpus or not self._place:
            return self._cpus
        cores = sorted(self._cpus, reverse=True)
        if name in self._place:
            return frozenset({cores[self._place[name] % len(cores)]})
        return self._cpus if self._sizes[name].vcpu > 1 else frozenset(cores[:1])

    def pause(self) -> None:
        """Freeze every instance, so that none of its threads runs until it is `awake()`."""
        for instance in self.instances.values():
            instance.pause()

    @contextmanager
    def awake(self) -> Iterator[Self]:
        """Thaw what `pause()` froze, and freeze it again afterwards."""
        for instance in self.instances.values():
            instance.resume()
        try:
            yield self
        finally:
            self.pause()

    def reap(self) -> list[str]:
        """Stop instances that have been idle for longer than the keep-alive; their names."""
        old = [n for n, at in self._used.items() if n in self.instances and time.monotonic() - at > self._keep_alive_s]
        for name in old:
            self.instances.pop(name).stop()
        return old

    def bring(self) -> None:
        """Have instances that are ready begin to bring their weights into memory."""
        for instance in self.instances.values():
            if instance.state is State.READY:
                instance.bring()

    def let_go(self, keep: Mapping[str, int]) -> None:
        """Have instances that are ready drop their weights from memory; requests bring them back.

        Args:
            keep: for each function how many bytes of its weights stay, those that are used first.
        """
        for name, instance in self.instances.items():
            if instance.state is State.READY:
                instance.let_go(keep.get(name, 0))

    def scale_to_zero(self) -> None:
        """Stop every instance; the next request starts them again."""
        while self.instances:
            self.instances.popitem()[1].stop()

    def close(self) -> None:
        """Stop everything and free the segments."""
        self.scale_to_zero()
        for starter in self._own.values():
            starter.close()
        self._carrier.close()

    def infer(self, inputs: Mapping[str, np.ndarray], *, sent: float | None = None) -> Answer:
        """The model's outputs for one request.

        Args:
            inputs: by name; where the batch axis is free, any batch.
            sent: when the request was meant to be sent (time.monotonic()); latency counts from there.

        Raises:
            InputRefused: wrong names, dtypes or shapes.
            InstanceLost: a function was lost twice in a row (once is retried: inference is idempotent).
            ConfigError, StorageError, WireError: the object store refuses, fails, or gives something else.
        """
        sent = time.monotonic() if sent is None else sent
        batch = check_inputs(self.inputs, inputs)
        self.reap()
        begun = time.monotonic()
        started = self.start()
        cold_ms = (time.monotonic() - begun) * 1000 if started else 0.0
        tensors = self._carrier.request(batch, inputs)
        try:
            times, restarts_ms, emulated_ms = self._run(tensors)
            outputs = self._carrier.answer(tensors, self._outputs)
            latency_ms = (time.monotonic() - sent) * 1000 - emulated_ms
            return Answer(outputs, latency_ms, times, cold_ms + restarts_ms, emulated_ms)
        finally:
            self._carrier.release(tensors)

    def _run(self, tensors: Tensors) -> tuple[tuple[StageTime, ...], float, float]:
        """Stage after stage, a lost function once more.

        The functions' times, what starts took, and what is taken off for emulated cores, ms.
        """
        times: list[StageTime] = []
        cold_ms = emulated_ms = 0.0
        for stage, at_once, meant in zip(self._stages, self._at_once, self._meant, strict=True):
            done, lost = self._stage(stage, at_once, tensors)
            for function in lost:
                begun = time.monotonic()
                self.instances.pop(function.name).kill()
                self._spawn(function.name).ready(max(START_S, self._timeout_s))
                cold_ms += (time.monotonic() - begun) * 1000
                done[function.name] = self._finish(function, self._begin(function, tensors), tensors)
            times += [done[function.name] for function in stage]
            if meant > at_once:
                runs = [done[function.name].run_ms for function in stage]
                emulated_ms += sum(runs) - makespan(runs, meant)
        return tuple(times), cold_ms, emulated_ms

    def _stage(
        self, stage: Sequence[Function], at_once: int, tensors: Tensors
    ) -> tuple[dict[str, StageTime], list[Function]]:
        """Run the functions of a stage, `at_once` of them at a time; their times, and those that were lost.

        Whatever happens to one, the others are waited for: an answer that nobody reads would be taken for that of the
        next request.
        """
        waiting, done, lost = list(stage), dict[str, StageTime](), list[Function]()
        failed: LamellaError | None = None
        busy: dict[int, tuple[Function, Call]] = {}
        while busy or (waiting and not failed):
            while waiting and len(busy) < at_once and not failed:
                function = self._next(waiting, [f for f, _ in busy.values()])
                waiting.remove(function)
                try:
                    busy[self.instances[function.name].fileno()] = function, self._begin(function, tensors)
                except (InstanceCrashed, OutOfMemory):
                    lost.append(function)
            for number in self._answering(list(busy)):
                function, call = busy.pop(number)
                try:
                    done[function.name] = self._finish(function, call, tensors)
                except (InstanceCrashed, OutOfMemory):
                    lost.append(function)
                except LamellaError as error:
                    failed = error
        if failed:
            raise failed
        return done, lost

    def _next(self, waiting: Sequence[Function], busy: Sequence[Function]) -> Function:
        """The first of those that wait whose core is free, if any is."""
        taken = {self._place.get(f.name) for f in busy}
        return next((f for f in waiting if self._place.get(f.name) not in taken), waiting[0])

    def _answering(self, busy: list[int]) -> list[int]:
        """Sockets with something to read; all of them when none answers in time, so that reading each says so."""
        if len(busy) < 2:
            return busy
        poll = select.poll()
        for number in busy:
            poll.register(number, select.POLLIN)
        return [number for number, _ in poll.poll(self._timeout_s * 1000)] or busy

    def _begin(self, function: Function, tensors: Tensors) -> Call:
        instance = self.instances[function.name]
        call = self._carrier.call(function, instance, tensors)
        instance.begin(call.packet, self._timeout_s, self._carrier.parts(call, tensors))
        return call

    def _finish(self, function: Function, call: Call, tensors: Tensors) -> StageTime:
        reply = self.instances[function.name].finish()
        self._used[function.name] = time.monotonic()
        self._carrier.took(call, reply, tensors)
        return StageTime(reply.run_ms, reply.compute_ms, reply.cpu_ms)


def check_inputs(specs: Mapping[str, TensorSpec], inputs: Mapping[str, np.ndarray]) -> int:
    """The batch of a request whose tensors fit.

    Raises:
        InputRefused: says which tensor, what it is and what it should be.
    """
    missing, extra = sorted(set(specs) - set(inputs)), sorted(set(inputs) - set(specs))
    if missing or extra:
        said = [f"missing {', '.join(map(repr, missing))}"] if missing else []
        said += [f"unknown {', '.join(map(repr, extra))}"] if extra else []
        raise InputRefused(
            f"{' and '.join(said)}: the model takes {', '.join(map(repr, specs))}",
            try_="save the request with np.savez('x.npz', NAME=array, ...)",
        )
    batch: int | None = None
    for name, spec in specs.items():
        array = inputs[name]
        if array.dtype.name != spec.dtype:
            raise InputRefused(
                f"input {name!r} has dtype {array.dtype}, the model takes {spec.dtype}",
                where=f"input {name!r}",
                try_=f"array.astype({spec.dtype!r})",
            )
        if len(array.shape) == len(spec.shape) and isinstance(spec.shape[:1], tuple) and spec.shape[:1] == ("N",):
            batch = batch or array.shape[0]
        want = spec.shape_at(batch or 1)
        if array.shape != want or 0 in array.shape:
            raise InputRefused(
                f"input {name!r} has shape {list(array.shape)}, the model takes {list(spec.shape)}",
                where=f"input {name!r}",
                try_="reshape the input, or import the model with another --shape",
            )
    return batch or 1
