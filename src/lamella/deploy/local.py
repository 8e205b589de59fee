"""The local deployment, the reference for every other: a package's functions as limited processes on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict, Unpack

import msgspec

from lamella.errors import ConfigError
from lamella.limits import Limiter, detect
from lamella.objects import Bucket, ObjectStore, bucket
from lamella.package import verify
from lamella.plan.document import Plan
from lamella.platforms import Platform, platform
from lamella.runtime.chain import Answer, Chain, Size, StageTime, check_inputs
from lamella.runtime.function import Function
from lamella.runtime.starts import Start, Starter
from lamella.runtime.tensors import CHANNELS, Channel, Store
from lamella.store.client import has_daemon


class Serving(TypedDict, total=False):
    """How a chain serves: the options of `Chain`, which explains them and has their defaults."""

    channel: Channel
    keep_alive_s: float
    timeout_s: float
    period_ms: int
    cpus: frozenset[int] | None
    freezable: bool
    store: Store | None
    start: Start
    program: str
    starter: Starter | None
    haste: bool


class Deployment(Chain):
    """Runs one package. Use as a context manager: on exit every process, group and segment is gone."""

    def __init__(
        self,
        package: Path,
        *,
        limiter: Limiter | None = None,
        sizes: Mapping[str, Size] | None = None,
        objects: Bucket | None = None,
        shared: bool | None = None,
        check_weights: bool = True,
        **serving: Unpack[Serving],
    ) -> None:
        """Check the package and prepare; instances start with the first request.

        Args:
            package: a directory written by `lamella package`.
            limiter: how limits are enforced; the best this machine has by default.
            sizes: per function, in place of the plan's.
            objects: for channel `s3`; the one that the environment names by default.
            shared: whether functions that a store's daemon has take their weights from it; by default where one
                listens. The others, and all of them when it is away, open their own files.
            check_weights: every byte is read and hashed; without it only the documents are, which is enough where the
                store gives the weights, for it has hashed them.
            serving: as of `Chain`; the channel is the plan's by default, shared memory where that is emulated.

        Raises:
            PackageError: damaged or incomplete.
            ConfigError: the channel is `s3`, and no bucket is named or obstore missing.
        """
        self.manifest, self.plan = verify(package, weights=check_weights)
        functions = [
            (msgspec.json.decode((package / name / "function.json").read_bytes(), type=Function), package / name)
            for name in self.manifest.functions
        ]
        if "channel" not in serving:
            serving["channel"] = planned_channel(self.plan)
        if serving["channel"] == "s3" and not serving.get("store"):
            where = objects or bucket(None, None)
            serving["store"] = ObjectStore(where) if where else None
        if shared if shared is not None else has_daemon():
            serving["program"] = "lamella.store"
        super().__init__(
            functions,
            self.plan.model.outputs,
            {f.name: Size(f.memory_mb, f.vcpu) for f in self.plan.functions} | dict(sizes or {}),
            limiter=limiter or detect(),
            stages=[[f.name for f in stage] for stage in self.plan.by_stage()],
            at_once=self.plan.at_once,
            codecs=[hop.codec for hop in self.plan.hops],
            **serving,
        )


def planned_channel(plan: Plan, rules: Platform | None = None) -> Channel:
    """The plan's channel; shared memory where the platform's is emulated, by figures that are added.

    Args:
        plan: to be deployed.
        rules: of its platform, by default as the catalogue has them.

    Raises:
        ConfigError: there is no such channel.
    """
    if (rules or platform(plan.platform)).hop.emulated:
        return "shared-memory"
    for channel in CHANNELS:
        if channel == plan.channel:
            return channel
    raise ConfigError(f"the plan's channel {plan.channel!r} is none of {', '.join(CHANNELS)}")


__all__ = ["Answer", "Channel", "Deployment", "Serving", "Size", "StageTime", "Start", "check_inputs"]
