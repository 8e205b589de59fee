"""Every figure of the main job, in one go: `make bench`.

Compares what people deploy today (`ort`), one function of our own package (`single`), equal slices (`uniform-4`) and
`mopar` on every model, under enforced limits, one request at a time; then the price of a hop and the runtime's import.
Results go to `benchmarks/results/main_job.json` after each model, so an interrupted run goes on where it stopped
(`--fresh` starts over); the tables go to `docs/benchmarks.md`. Let the machine do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper

from lamella.compare.compare import Settings, compare
from lamella.compare.record import Comparison, PlanRecord
from lamella.deploy.local import Deployment
from lamella.graph.cuts import legal_cuts
from lamella.graph.load import import_model
from lamella.limits import detect
from lamella.limits.unlimited import Unlimited
from lamella.machine import on_cores, this_machine
from lamella.package import build
from lamella.plan.manual import plan_by_hand
from lamella.plan.request import Request
from lamella.platforms import platform
from lamella.profile.measure import measure, threads_needed
from lamella.scratch import scratch

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "main_job.json"
PAGE = ROOT / "docs" / "benchmarks.md"
MODELS = (
    "vgg19 bert-base resnet50 alexnet densenet121 inception lstm rapidocr-det rapidocr-rec rapidocr-cls dnsmos "
    "dnsmos-p808 minilm-int8 silero-vad magika"
).split()
PLANNERS = {
    "openfaas": ("ort", "ort-default", "single", "uniform-4", "mopar"),
    "aws-lambda": ("ort", "single", "mopar"),
}


def run_model(name: str, rules: str, requests: int) -> Comparison:
    """One model on one platform's rules."""
    rule = platform(rules)
    graph = import_model(f"zoo:{name}")
    profile = measure(graph, threads=threads_needed(rule.cpu.coupling, 1.0))
    settings = Settings(given=f"zoo:{name}", planners=PLANNERS[rules], requests=requests, request=Request(shards=False))
    return compare(graph, profile, rule, settings)


def hop_overhead() -> dict[str, float]:
    """A chain of matrix products, 1 MB between stages, no limits: what a hop adds to the stages' own work.

    Returns:
        Per channel, ms: overhead per hop, and the summed compute it stands against.
    """
    rows, width, stages = 256, 1024, 4
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for k in range(stages):
        weights.append(
            onnx.numpy_helper.from_array((rng.standard_normal((width, width)) / 32).astype(np.float32), f"w{k}")
        )
        nodes.append(helper.make_node("MatMul", [f"x{k}", f"w{k}"], [f"x{k + 1}"]))
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [rows, width]) for n in ("x0", f"x{stages}")]
    model = helper.make_model(
        helper.make_graph(nodes, "chain", value[:1], value[1:], weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    found = {}
    with tempfile.TemporaryDirectory() as folder, scratch("hops") as space:
        path = Path(folder) / "chain.onnx"
        onnx.save(model, path)
        graph = import_model(str(path))
        cuts = [c.position for c in legal_cuts(graph)[0]]
        plan = plan_by_hand(graph, cuts, platform("openfaas"), given=str(path))
        build(plan, graph, space / "package")
        for channel in ("shared-memory", "socket"):
            with (
                on_cores(1) as cpus,
                Deployment(space / "package", limiter=Unlimited("hop benchmark"), channel=channel, cpus=cpus) as served,
            ):
                samples = []
                for k in range(220):
                    request = {"x0": rng.standard_normal((rows, width), dtype=np.float32)}
                    answer = served.infer(request)
                    if k >= 20:
                        compute = sum(s.compute_ms for s in answer.stages)
                        samples.append((answer.latency_ms - compute, compute))
            over, compute = np.median(np.array(samples), axis=0)
            found[channel] = float(over) / stages
            found[f"{channel} compute"] = float(compute)
    return found


def runtime_import() -> dict[str, object]:
    """A fresh process that imports the worker: time, resident memory, third-party packages."""
    code = (
        "import sys, time; t = time.perf_counter(); import lamella.runtime.worker; "
        "print(time.perf_counter() - t); from lamella.runtime.memory import read_counters; "
        "print(read_counters().resident_mb); "
        "print(' '.join(sorted({m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names))))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
        for _ in range(7)
    ]
    return {
        "ms": float(np.median([float(r[0]) for r in runs[1:]]) * 1000),
        "mb": float(np.median([float(r[1]) for r in runs])),
        "packages": runs[0][2],
    }


def predicted_errors(results: dict[str, Comparison]) -> dict[str, tuple[float, float, float, int]]:
    """Mean absolute error of latency, function memory and cost over the plans lamella predicts; and how many."""
    found = {}
    for rules in PLANNERS:
        latency, memory, cost = [], [], []
        for key, record in results.items():
            if not key.endswith(rules):
                continue
            for p in record.plans:
                if p.planner.startswith("ort"):
                    continue
                latency.append(abs(p.predicted.latency_ms / p.latency_ms.p50 - 1))
                cost.append(abs(p.predicted.cost_usd_per_million / p.cost_usd_per_million - 1))
                memory += [abs(f.predicted_peak_mb / f.peak_mb - 1) for f in p.functions]
        if latency:
            found[rules] = (float(np.mean(latency)), float(np.mean(memory)), float(np.mean(cost)), len(latency))
    return found


def row(name: str, record: Comparison, plan: PlanRecord, base: dict[str, PlanRecord]) -> str:
    """One line of a table."""
    against = [
        f"{base[b].cost_usd_per_million / plan.cost_usd_per_million:.2f}x" if b in base else ""
        for b in ("ort", "single")
    ]
    slower = f"{plan.latency_ms.p50 / base['single'].latency_ms.p50 - 1:+.1%}" if "single" in base else ""
    sizes = "+".join(str(f.memory_mb) for f in plan.functions)
    return (
        f"| {name} | {plan.planner} | {plan.stages} | {plan.cost_usd_per_million:.4f} "
        f"| {plan.cost_low:.4f}-{plan.cost_high:.4f} | {against[0]} | {against[1]} | {plan.latency_ms.p50:.1f} "
        f"| {slower} | {plan.latency_ms.p95:.1f} | {plan.latency_ms.cold:.0f} | {sizes} | {plan.peak_memory_mb:.0f} "
        f"| {plan.vcpu_s:.3f} | {plan.memory_time_mb_s.billed:.2f} | {plan.memory_time_mb_s.resident:.2f} "
        f"| {plan.memory_time_mb_s.used:.2f} | {plan.efficiency.billed:.0%} | {plan.efficiency.resident:.0%} "
        f"| {plan.output_error.max_rel:.0e} | {plan.predicted.latency_ms / plan.latency_ms.p50 - 1:+.1%} "
        f"| {plan.major_faults} | {plan.rounds_rejected + plan.rounds_noisy_kept} |"
    )


HEAD = (
    "| model | plan | stages | $/million | 95 % | cheaper than ort | than single | p50 ms | to single | p95 | cold "
    "| allocated MB | peak MB | vCPU-s | billed MB-s | resident MB-s | used MB-s | efficiency | of resident | error "
    "| predicted | major faults | noisy rounds |"
)


def page(results: dict[str, Comparison], hops: dict[str, float], imported: dict[str, object]) -> str:
    """`docs/benchmarks.md`."""
    machine = this_machine()
    limiter = detect()
    dates = sorted({r.date for r in results.values()}) or [datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")]
    lines = [
        "# Benchmarks",
        "",
        f"Printed by `make bench` (`benchmarks/main_job.py`) on {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}: "
        f"{machine.cpu}, {machine.cores} cores, {machine.isa}, {machine.memory_mb} MB, onnxruntime "
        f"{machine.onnxruntime}, limits {limiter.mode}. Every plan of a model took turns in the same run; a known load "
        "before and after each round rejected noisy rounds, and the table counts them.",
        "",
        "Definitions are the *measures* of [the architecture](architecture.md). One request at a time, warm, batch 1, "
        "1 vCPU per function on `openfaas`; fresh random inputs for every request. Plans are without shards; "
        "those have [a page of their own](benchmarks-twelve.md). Weights of vgg19, resnet50, "
        "alexnet, densenet121, inception, bert-base and lstm are random (time and memory do not depend on them); the "
        "others are pretrained. *Error* is the largest difference to the whole model run unoptimised, over the "
        "output's range.",
        "",
    ]
    for rules in PLANNERS:
        lines += [f"## {platform(rules).title}", ""]
        if platform(rules).hop.emulated:
            lines += [
                f"Hops are **emulated**: {platform(rules).hop.latency_ms.value:g} ms and "
                f"{platform(rules).hop.mb_per_s.value:g} MB/s from the catalogue are added per hop. CPU follows "
                "memory, and the quota is enforced.",
                "",
            ]
        lines += [HEAD, "|" + "---|" * (HEAD.count("|") - 1)]
        for name in MODELS:
            record = results.get(f"{name} {rules}")
            if record is None:
                continue
            base = {p.planner: p for p in record.plans}
            lines += [row(name, record, p, base) for p in record.plans]
            lines += [f"| {name} | {n} | | {why.splitlines()[0]} |" + " |" * 19 for n, why in record.failed.items()]
        lines.append("")
    lines += ["## Prediction", "", "From a model's own per-unit profile; no slice was run for it.", ""]
    lines += ["| platform | plans | latency | memory of a function | cost |", "|---|---|---|---|---|"]
    lines += [
        f"| {rules} | {count} | {latency:.1%} | {memory:.1%} | {cost:.1%} |"
        for rules, (latency, memory, cost, count) in predicted_errors(results).items()
    ]
    if hops:
        allowed = 0.2 * 4 + 0.02 * hops["shared-memory compute"]
        lines += [
            "",
            "## Hops",
            "",
            f"A chain of four functions with 1 MB between them, no limits, warm: a hop adds "
            f"**{hops['shared-memory']:.3f} ms** on shared memory and {hops['socket']:.3f} ms on a Unix socket, beside "
            f"{hops['shared-memory compute']:.1f} ms of summed compute (0.2 ms each + 2 % of compute would allow "
            f"{allowed / 4:.3f} ms).",
        ]
    if imported:
        lines += [
            "",
            "## Runtime import",
            "",
            f"A function imports {imported['packages']} in {imported['ms']:.0f} ms and holds {imported['mb']:.1f} MB "
            "before it opens its model.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--platforms", default=",".join(PLANNERS))
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--page-only", action="store_true", help="only write the page from earlier results")
    options = parser.parse_args()
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() and not options.fresh else {}
    stored = {"comparisons": {}, "hops": {}, "import": {}, **stored}
    for rules in [] if options.page_only else options.platforms.split(","):
        for name in options.models.split(","):
            key = f"{name} {rules}"
            if key in stored["comparisons"]:
                continue
            begun = time.monotonic()
            try:
                record = run_model(name, rules, options.requests)
            except Exception as error:  # noqa: BLE001 - one model's failure must not lose the others' hours
                print(f"{key}: FAILED {type(error).__name__}: {error}", flush=True)
                continue
            stored["comparisons"][key] = json.loads(msgspec.json.encode(record))
            _save(stored)
            costs = ", ".join(
                f"{p.planner} {p.cost_usd_per_million:.4f} $ {p.latency_ms.p50:.1f} ms" for p in record.plans
            )
            print(f"{key}: {costs} ({time.monotonic() - begun:.0f} s)", flush=True)
    if not options.page_only:
        if not stored["hops"]:
            stored["hops"] = hop_overhead()
        if not stored["import"]:
            stored["import"] = runtime_import()
        _save(stored)
    results = {k: msgspec.convert(v, Comparison) for k, v in stored["comparisons"].items()}
    text = page(results, stored["hops"], stored["import"])
    PAGE.write_text(text)
    print(text)


def _save(stored: dict[str, dict[str, object]]) -> None:
    """Write the results, models in the page's order whatever order they were taken in."""
    found = stored["comparisons"]
    places = [f"{name} {rules}" for rules in PLANNERS for name in MODELS]
    stored["comparisons"] = {key: found[key] for key in places if key in found}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(stored, indent=1))


if __name__ == "__main__":
    main()
