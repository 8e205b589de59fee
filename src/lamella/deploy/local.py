"""The local deployment, the reference for every other: a package's functions as limited processes on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict, Unpack

import msgspec

from lamella.limits import Limiter, detect
from lamella.package import verify
from lamella.runtime.chain import Answer, Chain, Channel, Size, StageTime, check_inputs
from lamella.runtime.function import Function


class Serving(TypedDict, total=False):
    """How a chain serves: the options of `Chain`, which explains them and has their defaults."""

    channel: Channel
    keep_alive_s: float
    timeout_s: float
    period_ms: int
    cpus: frozenset[int] | None
    freezable: bool


class Deployment(Chain):
    """Runs one package. Use as a context manager: on exit every process, group and segment is gone."""

    def __init__(
        self,
        package: Path,
        *,
        limiter: Limiter | None = None,
        sizes: Mapping[str, Size] | None = None,
        **serving: Unpack[Serving],
    ) -> None:
        """Check the package, every byte of it, and prepare; instances start with the first request.

        Args:
            package: a directory written by `lamella package`.
            limiter: how limits are enforced; the best this machine has by default.
            sizes: per function, in place of the plan's.
            serving: as of `Chain`.

        Raises:
            PackageError: damaged or incomplete.
        """
        self.manifest, self.plan = verify(package)
        functions = [
            (msgspec.json.decode((package / name / "function.json").read_bytes(), type=Function), package / name)
            for name in self.manifest.functions
        ]
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


__all__ = ["Answer", "Channel", "Deployment", "Serving", "Size", "StageTime", "check_inputs"]
