"""`lamella run`: serve requests from a file with a plan's functions on this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from lamella.cli.options import Json, S3Bucket, S3Endpoint, StartName, positive, progress
from lamella.cli.show import print_json
from lamella.deploy.local import Channel, Deployment, Start, planned_channel
from lamella.graph.load import import_model
from lamella.graph.requests import read_arrays, write_arrays
from lamella.machine import on_cores, this_machine
from lamella.objects import Bucket, bucket
from lamella.package import build, read_sealed
from lamella.plan.document import read_plan
from lamella.platforms import platform
from lamella.scratch import scratch


class RunRecord(msgspec.Struct, frozen=True):
    """`lamella run --json`; ms."""

    plan: str
    limits: str
    limits_reason: str
    latency_ms: float
    cold_ms: float
    start: Start
    cold_split_ms: dict[str, dict[str, float]]
    """Of each function's start: spawn, imports, map, session, first_run."""
    shared: tuple[str, ...]
    """Functions whose weights are the store's."""
    stage_ms: dict[str, float]
    outputs: dict[str, tuple[int, ...]]


def run(
    plan: Path,
    *,
    input_: Annotated[Path, Parameter(name="--input", help="An .npz file with one array per input.")],
    output: Annotated[Path | None, Parameter(name="--output", help="Where to write the outputs, .npz.")] = None,
    channel: Annotated[Channel | None, Parameter(help="How tensors travel; the plan's way by default.")] = None,
    start: StartName = "fresh",
    store: Annotated[
        bool, Parameter(name="--store", negative="--no-store", help="Weights from the store, where a daemon has them.")
    ] = True,
    s3_endpoint: S3Endpoint = None,
    s3_bucket: S3Bucket = None,
    timeout_s: Annotated[float | None, Parameter(help="Per function, s; the platform's by default.")] = None,
    json: Json = False,
) -> None:
    """Answer one request with PLAN, a plan.json or a package directory, under its limits on this machine."""
    positive(timeout_s=timeout_s)
    feeds = read_arrays(input_)
    with (
        _package(plan) as directory,
        on_cores(1) as cpus,
        _deployed(directory, channel, bucket(s3_bucket, s3_endpoint), timeout_s, start, store) as deployment,
    ):
        if all(f.threads == 1 for f in deployment.functions):
            deployment.pin(cpus)
        answer = deployment.infer(feeds)
        limiter = deployment.limiter
        names = [f.name for f in deployment.functions]
        shared = tuple(n for n in names if deployment.instances[n].shared)
        splits = {n: i.cold._asdict() for n, i in deployment.instances.items() if i.cold}
    if output:
        write_arrays(output, answer.outputs)
    record = RunRecord(
        plan=str(plan),
        limits="enforced" if limiter.enforced else "unlimited",
        limits_reason=limiter.reason,
        latency_ms=answer.latency_ms,
        cold_ms=answer.cold_ms,
        start=start,
        cold_split_ms=splits,
        shared=shared,
        stage_ms={n: s.run_ms for n, s in zip(names, answer.stages, strict=True)},
        outputs={n: a.shape for n, a in answer.outputs.items()},
    )
    if json:
        print_json(record)
        return
    if not limiter.enforced:
        print(f"limits NOT enforced: {limiter.reason}", file=sys.stderr)
    print(
        f"{len(names)} function(s), {answer.latency_ms:.0f} ms of which {answer.cold_ms:.0f} ms starting them; "
        + ", ".join(f"{n} {t:.1f} ms" for n, t in record.stage_ms.items())
    )
    for name, split in splits.items():
        parts = ", ".join(f"{phase.replace('_', ' ')} {ms:.1f}" for phase, ms in split.items())
        print(f"start of {name} ({start}{', weights from the store' * (name in shared)}), ms: {parts}")
    for name, array in answer.outputs.items():
        print(f"output {name}: {array.dtype} {list(array.shape)}" + (f" -> {output}" if output else ""))


def _deployed(
    directory: Path,
    channel: Channel | None,
    objects: Bucket | None,
    timeout_s: float | None,
    start: Start,
    store: bool,
) -> Deployment:
    """The package under its platform's rules; says so where its figures come from another machine."""
    _, read = read_sealed(directory)
    rules = platform(read.platform)
    if read.machine != this_machine():
        print(
            f"note: the plan was made on another machine ({read.machine.cpu}); its predictions may not hold here",
            file=sys.stderr,
        )
    return Deployment(
        directory,
        objects=objects,
        channel=channel or planned_channel(read),
        timeout_s=timeout_s or rules.limits.timeout_s.value,
        period_ms=int(rules.cpu.period_ms.value),
        start=start,
        shared=None if store else False,
    )


@contextmanager
def _package(plan: Path) -> Iterator[Path]:
    """The package itself, or one built from a plan and removed afterwards."""
    if plan.is_dir():
        yield plan
        return
    read = read_plan(plan)
    graph = import_model(read.model.given, read.model.shapes)
    with scratch("run") as space:
        with progress("package") as move:
            made = build(read, graph, space / "package", move)
        for name, why in made.refused.items():
            print(f"note: {name} is planned blocked and runs plain: {why}", file=sys.stderr)
        yield space / "package"
