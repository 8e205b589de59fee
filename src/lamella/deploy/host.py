"""Many packages on one host: instances are kept alive while they fit, and the weights are the store's.

Two things take memory, and leave it apart. An instance's own part, some 20 to 40 MB, is the host's to give back: the
instance used longest ago is stopped. The weights are the store's: what no instance holds is evicted by its policy. A
function that is asked for again costs a fork where its weights are still in memory, and a load where they are not.

Before an instance starts, the host leases its weights itself. Where the store has no room for them beside what is held,
the host stops idle instances until it has; else the worker would find no room and open files of its own, unshared.
Content addressing is so accounted for by whom it concerns: variants that share most tensors need room for the rest.

With `total_mb` the host has a budget for both, and weights leave before instances do: `deploy.residency` says whose,
and how much of them. It takes segments that are pages of files, which an instance can let go of and get back.

Rejected: one budget in which instances and weights leave together, which needs to know what a weight shared by five
instances costs each of them; limits by the cgroup's charge, which counts a cached page to whoever touched it first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, Self

import numpy as np

from lamella.deploy.keeping import Keeping
from lamella.deploy.local import Deployment
from lamella.deploy.residency import Residency
from lamella.errors import ConfigError, StoreError, StoreFull, WireError
from lamella.limits import Limiter, detect
from lamella.limits.memory import anonymous_mb, private_mb
from lamella.package import verify
from lamella.runtime.chain import Answer
from lamella.runtime.instance import Instance, State
from lamella.runtime.starts import Forking, Fresh, Starter
from lamella.store import protocol
from lamella.store.client import Connection
from lamella.store.opening import function_of
from lamella.store.policies import policy as eviction
from lamella.store.records import ModelRecord
from lamella.units import MB

PROGRAM = "lamella.store"


class Host:
    """Serves packages by name under a memory budget. Not thread-safe: one request at a time, like `Chain`.

    Use as a context manager: on exit every process, group and segment is gone, but not the store's daemon.
    """

    def __init__(
        self,
        packages: Mapping[str, Path],
        *,
        memory_mb: float,
        limiter: Limiter | None = None,
        start: Literal["fresh", "zygote"] = "zygote",
        cpus: frozenset[int] | None = None,
        total_mb: float | None = None,
        policy: str = "cost-aware",
    ) -> None:
        """Read the packages' documents and start the zygote; instances start when they are asked for.

        Weights that the store has are not read here. Those it has not are verified before their package's first start.

        Args:
            packages: directories written by `lamella package`, by the name they are asked for by.
            memory_mb: budget of what instances hold beside the store's weights. One is always let in, so an instance
                that needs more than all of it is alone; and how much a function holds is known after its first start.
            limiter: how limits of single instances are enforced; the best this machine has by default.
            start: how instances come to be.
            cpus: cores to keep them on.
            total_mb: budget of instances and weights together, for a store without one whose segments are pages of
                files: instances stay, up to `memory_mb` of it, and let go of their weights when others need the room.
                None leaves weights to the store, or the kernel.
            policy: which package's weights are worth least, by name (`store.policies`).

        Raises:
            ConfigError: a budget is not positive; there is no such policy; or a zygote cannot be had.
            PackageError: a package is damaged or incomplete.
        """
        if not memory_mb > 0:
            raise ConfigError(f"a host needs memory for instances, not {memory_mb} MB")
        if total_mb is not None and not total_mb >= memory_mb:
            raise ConfigError(f"instances may take {memory_mb} MB of {total_mb} MB for them and their weights")
        self._total_mb = total_mb or 0.0
        self._residency = Residency(eviction(policy)) if total_mb is not None else None
        self.evictions = 0
        """Packages whose instances were stopped for want of memory."""
        self._packages = dict(packages)
        self._keeping = Keeping(memory_mb)
        self._known_mb: dict[str, float] = {}
        self._verified: set[str] = set()
        limiter = limiter or detect()
        with ExitStack() as undo:
            self._starter: Starter = Forking(program=PROGRAM) if start == "zygote" else Fresh(PROGRAM)
            undo.callback(self._starter.close)
            self._deployments: dict[str, Deployment] = {}
            for name, package in self._packages.items():
                deployment = Deployment(
                    package,
                    limiter=limiter,
                    shared=True,
                    check_weights=False,
                    starter=self._starter,
                    keep_alive_s=math.inf,
                    haste=True,
                    cpus=cpus,
                )
                self._deployments[name] = undo.enter_context(deployment)
            self._closing = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop everything."""
        self._closing.close()

    @property
    def alive(self) -> tuple[str, ...]:
        """Packages with instances, the one used longest ago first."""
        return tuple(self._keeping)

    @property
    def held_mb(self) -> float:
        """What the instances hold beside the store's weights, as it was when each had given its first answer."""
        return self._keeping.used_mb

    def pids(self, name: str) -> tuple[int, ...]:
        """The processes of a package's instances."""
        return tuple(instance.pid for instance in self.instances(name))

    def instances(self, name: str) -> tuple[Instance, ...]:
        """Those of a package that are alive."""
        return tuple(self._deployment(name).instances.values())

    def is_shared(self, name: str) -> bool:
        """Whether all of a package's instances have their weights from the store; it has to be alive."""
        return all(instance.shared for instance in self._deployment(name).instances.values())

    def infer(self, name: str, inputs: Mapping[str, np.ndarray], *, sent: float | None = None) -> Answer:
        """A package's outputs for one request; its instances are started where none are alive.

        Args:
            name: of the package.
            inputs: by name, as of `Chain.infer`.
            sent: when the request was meant to be sent (time.monotonic()); latency counts from there.

        Raises:
            ConfigError: there is no such package.
            PackageError: the store does not have it, and its files are damaged.
            LamellaError: what `Chain.infer` raises; the package is then stopped, unless it can still answer others.
        """
        begun = time.monotonic()
        deployment, cold_ms = self._deployment(name), 0.0
        missing = 0
        if name not in self._keeping:
            self._admit(name, deployment)
            cold_ms = (time.monotonic() - begun) * 1000
        else:
            missing = self._bring(name, deployment)
        self._keeping.use(name)
        try:
            answer = deployment.infer(inputs, sent=begun if sent is None else sent)
        except BaseException:
            if any(i.state is not State.READY for i in deployment.instances.values()):
                self.evict(name)
            raise
        if self._residency and self._residency.knows(name) and not cold_ms + answer.cold_ms:
            self._residency.learn(name, missing, sum(stage.run_ms for stage in answer.stages) / 1000)
        answer = answer._replace(cold_ms=answer.cold_ms + cold_ms)
        if answer.cold_ms:
            self._weigh(name, deployment)
        return answer

    def evict(self, name: str) -> None:
        """Stop a package's instances; the next request starts them again.

        Raises:
            ConfigError: there is no such package.
        """
        deployment = self._deployment(name)
        if self._residency and name in self._residency:
            deployment.let_go({})  # afterwards nobody could
            self._residency.drop(name)
        deployment.scale_to_zero()
        self._keeping.drop(name)

    def _deployment(self, name: str) -> Deployment:
        if name not in self._deployments:
            few = ", ".join(sorted(self._deployments)[:5])
            raise ConfigError(f"this host has no package {name!r}", where="Host.infer", try_=f"one of {few}")
        return self._deployments[name]

    def _admit(self, name: str, deployment: Deployment) -> None:
        """Start a package once there is room, for its instances and for its weights."""
        self._make_room(name, self._known_mb.get(name, max(self._known_mb.values(), default=0.0)))
        with ExitStack() as leases:
            if not self._lease(name, leases):
                self._disown(name)
                self._verify(name)
            self._bring(name, deployment)
            try:
                deployment.start()
            except BaseException:
                self._disown(name)
                raise

    def _bring(self, name: str, deployment: Deployment) -> int:
        """Have a package's weights come, and those of others go where they have to; how many bytes are missing."""
        if not self._residency or not self._residency.knows(name):
            return 0
        missing = self._residency.missing(name)
        room = int((self._total_mb - self._keeping.used_mb) * MB)
        for other, keep in self._residency.use(name, room, time.monotonic()):
            self._deployments[other].let_go(keep)
        if missing:
            deployment.bring()
        return missing

    def _disown(self, name: str) -> None:
        """Its weights are not the store's, or not in memory: they take no room."""
        if self._residency:
            self._residency.forget(name)

    def _make_room(self, name: str, need_mb: float) -> None:
        here = {n for n in self.alive if self._residency and n in self._residency}
        for victim in self._keeping.leaving(need_mb, keep=name, last=here):
            self._make_leave(victim)

    def _make_leave(self, name: str) -> None:
        self.evict(name)
        self.evictions += 1

    def _lease(self, name: str, leases: ExitStack) -> bool:
        """Hold a package's weights in the store's memory until its instances do; whether the store has all of them."""
        try:
            connection = leases.enter_context(Connection())
            parts = {}
            for function in self.functions_of(name):
                model = connection.find(function_of(self._packages[name] / function))
                record = self._hold(model, connection) if model else None
                if not record:
                    return False
                parts[function] = [(blob.id, blob.bytes) for blob in record.segments if not blob.sparse]
        except (StoreError, WireError):  # whatever it is, the package's own files answer
            return False
        if self._residency and not self._residency.knows(name):
            self._residency.know(name, parts)
        return True

    def _hold(self, model: str, connection: Connection) -> ModelRecord | None:
        """Lease a model, idle instances stopped as far as it takes; None where even that is too little."""
        while True:
            try:
                record, descriptors = connection.hold(model)
            except StoreFull:
                if not self.alive:
                    return None
                self._make_leave(self.alive[0])
            else:
                protocol.close_all(descriptors)
                return record

    def functions_of(self, name: str) -> tuple[str, ...]:
        """Names of a package's functions, in the order they run."""
        return tuple(function.name for function in self._deployment(name).functions)

    def _verify(self, name: str) -> None:
        """Read every byte of a package that will open its own files, once."""
        if name not in self._verified:
            verify(self._packages[name])
            self._verified.add(name)

    def _weigh(self, name: str, deployment: Deployment) -> None:
        """Take down what a package's instances hold after an answer, and let others leave where that is too much."""
        held = sum((anonymous_mb if i.shared else private_mb)(i.pid) for i in deployment.instances.values())
        self._known_mb[name] = held
        self._keeping.use(name, held)
        self._make_room(name, 0.0)
