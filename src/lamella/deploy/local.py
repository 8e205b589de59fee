"""The local deployment, the reference for every other: a package's functions as limited processes on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from lamella.limits import Limiter, detect
from lamella.package import verify
from lamella.runtime.chain import Answer, Chain, Channel, Size, StageTime, check_inputs
from lamella.runtime.function import Function


class Deployment(Chain):
    """Runs one package. Use as a context manager: on exit every process, group and segment is gone."""

    def __init__(
        self,
        package: Path,
        *,
        limiter: Limiter | None = None,
        sizes: Mapping[str, Size] | None = None,
        channel: Channel = "shared-memory",
        keep_alive_s: float = 600.0,
        timeout_s: float = 300.0,
        period_ms: int = 10,
        cpus: frozenset[int] | None = None,
        freezable: bool = False,
    ) -> None:
        """Check the package, every byte of it, and prepare; instances start with the first request.

        Args:
            package: a directory written by `lamella package`.
            limiter: how limits are enforced; the best this machine has by default.
            sizes: per function, in place of the plan's.
            channel: see `Chain`, as are the others.
            keep_alive_s: see `Chain`.
            timeout_s: see `Chain`.
            period_ms: see `Chain`.
            cpus: see `Chain`.
            freezable: see `Chain`.

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
            channel=channel,
            keep_alive_s=keep_alive_s,
            timeout_s=timeout_s,
            period_ms=period_ms,
            cpus=cpus,
            freezable=freezable,
        )


__all__ = ["Answer", "Channel", "Deployment", "Size", "StageTime", "check_inputs"]
