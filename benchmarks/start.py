"""How long a worker takes to be ready and to its first result: `python benchmarks/start.py`.

Every start of `lamella run --start` against what people do today: a fresh Python that opens the self-contained file in
a plain `InferenceSession`, pages cached. All of them take turns, round after round, one thread each, no limits; medians
and 95 % intervals of rounds, and ratios of medians. No session sends telemetry, which is a thread and a file. `ready`
is when the session is open, from spawn; `first result` when its first run has ended: the warm-up, but of a worker that
is forked with its session, whose first request it is. Zygotes are up before. Results go to
`benchmarks/results/start.json` after each model. Let the machine do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lamella.compare.rounds import interval
from lamella.deploy.local import Deployment
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.limits.unlimited import Unlimited
from lamella.machine import on_cores, this_machine
from lamella.package import build
from lamella.plan.manual import plan_by_hand
from lamella.platforms import platform
from lamella.runtime.starts import STARTS, Start
from lamella.scratch import scratch

RESULTS = Path(__file__).parent / "results" / "start.json"
MODELS = "resnet50 bert-base gpt2-medium"
PLAIN = "plain session"
BASELINE = """
import sys, time
import numpy as np
import onnxruntime as ort
imported = time.monotonic()
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 3
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
opened = time.monotonic()
session.run(None, dict(np.load(sys.argv[2])))
print(imported, opened, time.monotonic())
"""


class Timed(NamedTuple):
    """One start; ms from spawn, `session_ms` of creating it alone."""

    session_ms: float
    ready_ms: float
    first_ms: float


Starting = Callable[[], Timed]


def plain(model: Path, inputs: Path) -> Timed:
    """A fresh Python with one plain session."""
    spawned = time.monotonic()
    argv = [sys.executable, "-c", BASELINE, str(model), str(inputs)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    imported, opened, first = map(float, done.stdout.split())
    return Timed(*((b - a) * 1000 for a, b in ((imported, opened), (spawned, opened), (spawned, first))))


def ours(deployment: Deployment, start: Start, inputs: Mapping[str, np.ndarray]) -> Timed:
    """One instance from spawn to its first answer, and its end."""
    deployment.infer(inputs)
    answered = time.monotonic()
    (instance,) = deployment.instances.values()
    cold = instance.ready()
    deployment.scale_to_zero()
    first = (answered - instance.spawned) * 1000 if start == "forked-session" else cold.total
    return Timed(cold.session, cold.total - cold.first_run, first)


def measure(name: str, rounds: int) -> dict[str, list[Timed]]:
    """Every start of a model, in turns; the first round warms caches and is dropped."""
    graph: Graph = import_model(f"zoo:{name}")
    inputs = request(graph, np.random.default_rng(0))
    plan = plan_by_hand(graph, [], platform("openfaas"), given=f"zoo:{name}")
    with scratch("start") as space, on_cores(1) as cpus, contextlib.ExitStack() as open_:
        np.savez(space / "inputs.npz", **inputs)
        build(plan, graph, space / "package")
        starting: dict[str, Starting] = {PLAIN: lambda: plain(graph.source, space / "inputs.npz")}
        for start in STARTS:
            served = Deployment(space / "package", limiter=Unlimited("benchmark"), cpus=cpus, start=start)
            open_.enter_context(served)
            starting[start] = lambda served=served, start=start: ours(served, start, inputs)
        taken = [{kind: begin() for kind, begin in starting.items()} for _ in range(rounds + 1)][1:]
    return {kind: [one[kind] for one in taken] for kind in starting}


def table(name: str, found: Mapping[str, list[Timed]]) -> str:
    """Medians with their intervals, and how many times sooner than the plain session."""
    lines = [f"| {name} | session, ms | ready, ms | first result, ms |", "|---|---|---|---|"]
    base = np.median(np.array(found[PLAIN]), axis=0)
    for kind, starts in found.items():
        cells = []
        for column, value in enumerate(np.array(starts).T):
            low, high = interval([[v] for v in value], lambda v: float(np.median(v)))
            median = float(np.median(value))
            cells.append(f"{median:.1f} ({low:.1f}–{high:.1f}), {base[column] / median:.1f}x")
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure each model, keep the results, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=MODELS.replace(" ", ","))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    stored = json.loads(options.results.read_text()) if options.results.exists() else {}
    for name in options.models.split(","):
        found = measure(name, options.rounds)
        date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
        stored[name] = {"date": date, "cpu": this_machine().cpu, "rounds": options.rounds, "starts": found}
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(stored, indent=1) + "\n")
        print(table(name, found), flush=True)


if __name__ == "__main__":
    main()
