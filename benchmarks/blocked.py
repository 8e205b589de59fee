"""Products in the blocked layout against the others: `python benchmarks/blocked.py`.

First single products, rows by sizes: time relative to prepacked. Then a transformer (bert-base, 128 tokens), opened by
a fresh process in every way: session, ready (interpreter, imports, map, session), first answer, steady time, private
memory. The baseline (a) is a plain `InferenceSession` on the user's own file with every default but the threads. All of
one table is from one run, its turns interleaved. Results go to `benchmarks/results/blocked.json`. Let the machine do
nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from lamella import documents
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.machine import Machine, this_machine
from lamella.package import build
from lamella.package.favour import FAVOURS
from lamella.plan.document import FunctionPlan, ModelRef, Plan, Predicted
from lamella.profile.products import ProductShape, ProductTimes, measure_product
from lamella.scratch import scratch

RESULTS = Path(__file__).parent / "results" / "blocked.json"
ROWS = (1, 8, 32, 128, 512)
SIZES = ((768, 768), (768, 3072), (3072, 768), (1280, 5120))

WORKER = """
import time
start = time.monotonic()
import json, sys
import numpy as np
import onnxruntime as ort
from pathlib import Path
path, kind, prepack, threads, runs, feeds = sys.argv[1:]
feeds = dict(np.load(feeds))
opening = time.monotonic()
if kind == "self-contained":
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(threads)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
else:
    from lamella.runtime.function import open_session
    session = open_session(Path(path), kind, threads=int(threads), prepack=prepack == "True")
ready = time.monotonic()
session.run(None, feeds)
first = time.monotonic()
taken = []
for _ in range(int(runs)):
    before = time.monotonic()
    session.run(None, feeds)
    taken.append(time.monotonic() - before)
fields = dict(line.split(":")[:2] for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
print(json.dumps([opening, ready, first, float(np.median(taken)), int(fields["Private_Dirty"].split()[0]) / 1024]))
"""


class Opened(msgspec.Struct, frozen=True):
    """One way to open the model: medians of fresh processes; ms and MiB."""

    way: str
    session_ms: float
    ready_ms: float
    first_ms: float
    steady_ms: float
    private_dirty_mb: float


class Result(msgspec.Struct, frozen=True):
    """What one call of the benchmark found."""

    date: str
    machine: Machine
    load: float
    """Of the machine in the minute before: a busy one measures nothing."""
    products: tuple[ProductTimes, ...]
    model: str
    threads: int
    opened: tuple[Opened, ...]


def product_table(threads: int, rows: tuple[int, ...]) -> list[ProductTimes]:
    """Every size at every number of rows, printed as it comes."""
    print("rows  " + "  ".join(f"{f'{k}x{n}':>14}" for k, n in SIZES) + "   plain / blocked, over prepacked")
    found = []
    for row in rows:
        line = [measure_product(ProductShape(row, k, n, threads)) for k, n in SIZES]
        ratios = [f"{t.plain_ms / t.prepacked_ms:.2f} / {t.blocked_ms / t.prepacked_ms:.2f}" for t in line]
        print(f"{row:4}  " + "  ".join(f"{r:>14}" for r in ratios), flush=True)
        found += line
    return found


def one_function(graph: Graph, threads: int) -> Plan:
    """The whole model as one function."""
    shapes = {n: graph.tensors[n].shape for n in graph.inputs}
    whole = FunctionPlan(
        name="whole",
        stage=0,
        first=0,
        last=len(graph.operators),
        kind="packaged",
        memory_mb=4096,
        vcpu=float(threads),
        threads=threads,
        layout="prepacked",
        peak_mb=0.0,
        floor_mb=0.0,
        run_ms=0.0,
        cost_usd=0.0,
        package_mb=0.0,
        why="a benchmark",
    )
    return Plan(
        model=ModelRef(str(graph.source), graph.name, graph.hash, shapes, graph.outputs),
        machine=this_machine(),
        platform="openfaas",
        planner="by hand",
        slo_ms=None,
        batch=1,
        shards=(),
        at_once=(1,),
        functions=(whole,),
        hops=(),
        predicted=Predicted(0.0, 4096.0, 0.0),
        slack=(),
        losers=(),
        why="a benchmark",
    )


def opened(graph: Graph, threads: int, turns: int, runs: int) -> list[Opened]:
    """Every way to open a model, in turns."""
    with scratch("benchmark") as space:
        np.savez(space / "x.npz", **request(graph, np.random.default_rng(0)))
        ways: dict[str, list[str]] = {"(a) self-contained": [str(graph.source), "self-contained", "True"]}
        build(one_function(graph, threads), graph, space / "plain")
        for prepack in (True, False):
            name = f"packaged, {'prepacked' if prepack else 'plain'}"
            ways[name] = [str(space / "plain/whole/graph.onnx"), "packaged", str(prepack)]
        for favour in FAVOURS:
            build(one_function(graph, threads), graph, space / favour, favour=favour)
            function = json.loads((space / favour / "whole/function.json").read_text())
            print(f"favouring {favour}: {function['layouts']}")
            ways[f"favour {favour}"] = [str(space / favour / "whole/graph.onnx"), "packaged", str(function["prepack"])]
        seen: dict[str, list[list[float]]] = {way: [] for way in ways}
        for turn in range(turns + 1):
            for way, arguments in ways.items():
                found = _process([*arguments, str(threads), str(runs), str(space / "x.npz")])
                if turn:  # the first one reads the files into the page cache
                    seen[way].append(found)
    return [Opened(way, *(float(m) for m in np.median(found, axis=0))) for way, found in seen.items()]


def _process(arguments: list[str]) -> list[float]:
    """Session, ready, first and steady ms and private MiB of one fresh process."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", WORKER, *arguments], capture_output=True, text=True, check=True)
    opening, ready, first, steady, private = json.loads(done.stdout)
    return [*(1000 * t for t in (ready - opening, ready - started, first - started, steady)), private]


def main() -> None:
    """Measure, print, keep."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--model", default="zoo:bert-base")
    parse.add_argument("--threads", type=int, default=1)
    parse.add_argument("--turns", type=int, default=5)
    parse.add_argument("--runs", type=int, default=10, help="steady runs per process")
    parse.add_argument("--rows", default=",".join(map(str, ROWS)), help="of the table of products; empty skips it")
    parse.add_argument("-o", "--output", type=Path, default=RESULTS)
    asked = parse.parse_args()
    load = os.getloadavg()[0]
    products = product_table(asked.threads, tuple(int(r) for r in asked.rows.split(",") if r))
    found = opened(import_model(asked.model), asked.threads, asked.turns, asked.runs)
    print(f"\n{'ms and MiB':22}{'session':>9}{'ready':>9}{'first':>9}{'steady':>9}{'private':>9}")
    for way in found:
        values = msgspec.structs.astuple(way)[1:]
        print(f"{way.way:22}" + "".join(f"{v:9.1f}" for v in values))
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    result = Result(now, this_machine(), load, tuple(products), asked.model, asked.threads, tuple(found))
    documents.write(asked.output, result)


if __name__ == "__main__":
    main()
