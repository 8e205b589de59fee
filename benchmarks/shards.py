"""What shards add to slices: `python benchmarks/shards.py`.

Compares `ort`, `single`, `mopar-no-shards` (slices alone) and `mopar` (slices and shards) on `openfaas` rules,
enforced, 1 vCPU per function and at most as many busy at once as there are cores. Results go to
`benchmarks/results/shards.json` after each model, the table to `docs/benchmarks-shards.md`. Let the machine do
nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import msgspec

from benchmarks.main_job import HEAD, row
from lamella.compare.compare import Settings, compare
from lamella.compare.record import Comparison
from lamella.graph.load import import_model
from lamella.platforms import platform
from lamella.profile.measure import measure

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "shards.json"
PAGE = ROOT / "docs" / "benchmarks-shards.md"
MODELS = "vgg19 inception alexnet bert-base resnet50".split()
PLANNERS = ("ort", "single", "mopar-no-shards", "mopar")


def run_model(name: str, requests: int) -> Comparison:
    """One model, all planners in turns."""
    graph = import_model(f"zoo:{name}")
    profile = measure(graph, shards=True)
    settings = Settings(given=f"zoo:{name}", planners=PLANNERS, requests=requests)
    return compare(graph, profile, platform("openfaas"), settings)


def page(results: dict[str, Comparison]) -> str:
    """`docs/benchmarks-shards.md`."""
    first = next(iter(results.values()))
    machine = first.machine
    lines = [
        "# Shards",
        "",
        f"Printed by `benchmarks/shards.py` on {max(r.date for r in results.values())}: {machine.cpu}, {machine.cores} "
        f"cores, {machine.isa}, onnxruntime {machine.onnxruntime}. `openfaas` rules, limits enforced, 1 vCPU per "
        f"function and at most {machine.cores} busy at once, one request at a time, warm, batch 1. "
        "`mopar-no-shards` is slices alone. Definitions and columns are those of [the benchmarks](benchmarks.md).",
        "",
        HEAD,
        "|" + "---|" * (HEAD.count("|") - 1),
    ]
    gains: dict[str, list[float]] = {"ort": [], "single": [], "mopar-no-shards": []}
    errors, faster = [], []
    for name, record in results.items():
        plans = {p.planner: p for p in record.plans}
        lines += [row(name, record, p, plans) for p in record.plans]
        best = plans["mopar"]
        for planner, found in gains.items():
            found.append(plans[planner].cost_usd_per_million / best.cost_usd_per_million)
        faster.append(best.latency_ms.p50 / plans["ort"].latency_ms.p50)
        errors.append(abs(best.predicted.latency_ms / best.latency_ms.p50 - 1))

    def mean(values: list[float]) -> float:
        return math.exp(sum(math.log(v) for v in values) / len(values))

    said = ", ".join(f"{mean(found):.2f}x less than `{planner}`" for planner, found in gains.items())
    count = len(results)
    slower = sum(f > 1 for f in faster)
    lines += [
        "",
        f"Geometric means over these {count} models: `mopar` costs {said}; its p50 is {mean(faster):.3f} of that "
        f"of `ort` ({slower} of {count} got slower). Its latency was predicted within "
        f"{sum(errors) / len(errors):.1%} on average.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    options = parser.parse_args()
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() and not options.fresh else {}
    for name in options.models.split(","):
        if name not in stored:
            stored[name] = json.loads(msgspec.json.encode(run_model(name, options.requests)))
            RESULTS.write_text(json.dumps(stored, indent=1))
            print(name, *(f"{p['planner']} {p['cost_usd_per_million']:.4f}" for p in stored[name]["plans"]), flush=True)
    PAGE.write_text(page({n: msgspec.convert(r, Comparison) for n, r in stored.items()}))
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
