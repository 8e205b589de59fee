"""Whether the store changes answers (law 3): `python -m benchmarks.store_outputs`. Nothing is timed.

Each of the twelve models is packaged whole to favour a start, put into a store, and asked two ways: by a session of the
store in this process, and by a worker that a zygote forks. Both are held against a plain `InferenceSession` on the
user's file, on requests that the packaging did not see. Every product that can be is blocked, whatever its time: what
times would choose is less of the same. Beside it stands what the package takes: what a plan counts, the graph optimised
for this CPU, and with the one for any CPU. Results go to `benchmarks/results/store_outputs.json` after each model, the
table to `docs/benchmarks-store-outputs.md`; it ends with 1 where a difference is beyond the law's. A model takes up to
four times its weights on disk, and leaves nothing there.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort

from benchmarks.models import KINDS
from benchmarks.store import daemon
from lamella import documents
from lamella.deploy.local import Deployment
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.limits.unlimited import Unlimited
from lamella.machine import Machine, this_machine
from lamella.package import build
from lamella.package.build import held_bytes
from lamella.package.favour import TOLERANCE
from lamella.plan.document import Plan
from lamella.plan.manual import plan_by_hand
from lamella.plan.validation.metrics import METRICS
from lamella.platforms import platform
from lamella.profile.products import ProductShape, ProductTimes
from lamella.runtime.function import Function, Layouts
from lamella.scratch import scratch
from lamella.store import client
from lamella.store.handing import hand_over
from lamella.units import MB

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "store_outputs.json"
PAGE = ROOT / "docs" / "benchmarks-store-outputs.md"
MODELS = tuple(name for names in KINDS.values() for name in names)
SEEDS = (1, 2)
"""Of requests; packaging checks itself on those of seed 0."""
NAME = "whole"

Tensors = dict[str, np.ndarray]
Asked = Callable[[Tensors], Tensors]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A model: how far answers are from the plain session's, over the output's range, and what its package takes."""

    session: float
    """Of a session of the store."""
    worker: float
    """Of a worker that was forked by a zygote."""
    layouts: Layouts
    """What counted for each product."""
    counted_mb: float
    """What a plan says the package takes, MB."""
    here_mb: float
    """What it takes without the graph for any CPU,"""
    any_mb: float
    """and with it."""


class Results(msgspec.Struct, frozen=True):
    """`store_outputs.json`."""

    date: str
    machine: Machine
    backing: str = ""
    rows: dict[str, Row] = {}


def one_function(graph: Graph) -> Plan:
    """The model whole, by hand."""
    return plan_by_hand(graph, [], platform("openfaas"), given=str(graph.source), vcpu=1.0)


def blocked_wins(shape: ProductShape) -> ProductTimes:
    """A table of times in which blocks are quickest."""
    return ProductTimes(shape, plain_ms=2.0, prepacked_ms=2.0, blocked_ms=1.0)


def compared(name: str, place: Path) -> Row:
    """Package a model, put it and ask it; a daemon has to run."""
    graph, package = import_model(f"zoo:{name}"), place / name
    plan, model = one_function(graph), f"{name}/{NAME}@1"
    build(plan, graph, package, favour="start", timer=blocked_wins)
    any_bytes = held_bytes(package / NAME)
    build(plan, graph, package, favour="start", timer=blocked_wins, portable=False)
    hand_over(package, f"{name}@1")
    requests = [request(graph, np.random.default_rng(seed)) for seed in SEEDS]
    wanted = plain_answers(graph, requests)
    session = client.session(model)
    by_session = worst(wanted, requests, lambda feeds: dict(zip(graph.outputs, session.run(None, feeds), strict=True)))
    session.close()
    limiter = Unlimited("nothing is timed")
    with Deployment(package, limiter=limiter, start="zygote", shared=True) as deployment:
        by_worker = worst(wanted, requests, lambda feeds: dict(deployment.infer(feeds).outputs))
        if not all(instance.shared for instance in deployment.instances.values()):
            raise RuntimeError(f"the worker of {name} did not take its weights from the store")
    function = documents.read(package / NAME / "function.json", Function, made_by="lamella package")
    assert function.layouts
    return Row(
        session=by_session,
        worker=by_worker,
        layouts=function.layouts,
        counted_mb=plan.functions[0].package_mb,
        here_mb=held_bytes(package / NAME) / MB,
        any_mb=any_bytes / MB,
    )


def plain_answers(graph: Graph, requests: Sequence[Tensors]) -> list[Tensors]:
    """What people get without lamella."""
    session = ort.InferenceSession(graph.source, providers=["CPUExecutionProvider"])
    return [dict(zip(graph.outputs, session.run(list(graph.outputs), feeds), strict=True)) for feeds in requests]


def worst(wanted: Sequence[Tensors], requests: Sequence[Tensors], asked: Asked) -> float:
    """The largest difference over the range of the output."""
    return max(METRICS["max_rel"].of(want, asked(feeds)) for want, feeds in zip(wanted, requests, strict=True))


def page(results: Results) -> str:
    """`docs/benchmarks-store-outputs.md`."""
    machine = results.machine
    far = [name for name, row in results.rows.items() if max(row.session, row.worker) > TOLERANCE]
    lines = [
        "# The store's answers",
        "",
        f"Printed by `benchmarks/store_outputs.py` on {results.date}: {machine.cpu}, {machine.isa}, onnxruntime "
        f"{machine.onnxruntime}; segments in `{results.backing}`. Each model whole, packaged with `--favour start` "
        "and every product that can be in blocks, against a plain `InferenceSession` with its defaults on the user's "
        f"file; the largest difference of {len(SEEDS)} random requests, over the range of the output. Law 3 allows "
        f"{TOLERANCE:g}: {'**beyond it: ' + ', '.join(far) + '**' if far else 'all models keep it'}.",
        "",
        "| model | session of the store | worker of a zygote | products blocked | plain | left "
        "| package: a plan counts, MB | for this CPU | and for any |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in results.rows.items():
        kinds = row.layouts
        blocked = f"refused: {kinds.refused}" if kinds.refused else str(kinds.blocked)
        left = "; ".join(f"{count} {why}" for why, count in kinds.left.items())
        lines.append(
            f"| {name} | {row.session:.1e} | {row.worker:.1e} | {blocked} | {kinds.plain} | {left} "
            f"| {row.counted_mb:.0f} | {row.here_mb:.0f} | {row.any_mb:.0f} |"
        )
    return "\n".join([*lines, ""])


def add(results: Results, name: str) -> Results:
    """One model more, in a store of its own."""
    with scratch("outputs") as place, daemon(place) as store:
        rows = {**results.rows, name: compared(name, place)}
        ordered = {known: rows[known] for known in MODELS if known in rows}
        return msgspec.structs.replace(results, rows=ordered, backing=store.backing)


def main() -> None:
    """Ask, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", help="only these, with commas; the others' results stay")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    asked = parser.parse_args()
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    results = Results(datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"), this_machine())
    if asked.models and asked.output.exists():
        before = documents.read(asked.output, Results, made_by="python -m benchmarks.store_outputs")
        results = msgspec.structs.replace(before, date=results.date, machine=results.machine)
    for name in asked.models.split(",") if asked.models else MODELS:
        print(f"{datetime.datetime.now():%H:%M:%S} {name}", file=sys.stderr, flush=True)
        results = add(results, name)
        documents.write(asked.output, results)
    if asked.output == RESULTS:
        PAGE.write_text(page(results))
    print(page(results))
    sys.exit(any(max(row.session, row.worker) > TOLERANCE for row in results.rows.values()))


if __name__ == "__main__":
    main()
