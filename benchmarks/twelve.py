"""MOPAR's claim on twelve models of four kinds: `python -m benchmarks.twelve`.

Compares, on every platform's rules and under enforced limits, what people deploy today (`ort`), one function of our own
package (`single`), the same with 2 vCPU (`single@2`, where CPU is chosen apart from memory), `mopar` and `exact`; and
`mopar` without one of its parts, unless that is the same plan. 1 vCPU per function and at most as many busy at once as
this machine has cores, one request at a time, warm, batch 1. Results go to `benchmarks/results/twelve.json` after each
model, so an interrupted run goes on where it stopped; the tables go to `docs/benchmarks-twelve.md`. Let the machine do
nothing else meanwhile. First every plan is made, in minutes where the profiles are there: what is not measured yet is
shown as planned.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.models import (
    MODELS,
    Subject,
    between,
    decided,
    geometric,
    mean_errors,
    prediction_error,
    subject,
)
from lamella.compare.compare import Settings, compare
from lamella.compare.record import Comparison, PlanRecord
from lamella.errors import LamellaError
from lamella.plan.document import Plan
from lamella.plan.make import make_plan
from lamella.platforms import platform

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "twelve.json"
PAGE = ROOT / "docs" / "benchmarks-twelve.md"
ABLATIONS = ("mopar-no-shards", "mopar-no-similarity", "mopar-no-shared-memory", "mopar-no-codec")
PLANNERS = {
    "openfaas": ("ort", "single", "single@2", "mopar", "exact", *ABLATIONS[:3]),
    "cloud-run": ("ort", "single", "single@2", "mopar", "exact", "mopar-no-codec"),
    "azure-consumption": ("ort", "single", "mopar", "exact", "mopar-no-codec"),
    "aws-lambda": ("ort", "single", "mopar", "exact", "mopar-no-codec"),
}
BASES = ("ort", "single")
"""What they are held against."""
BEST = ("mopar", "exact")
HEAD = (
    "| model | plan | stages | functions | $/million | 95 % | cheaper than ort | than single | p50 ms | to ort | p95 "
    "| vCPU-s | billed MB-s | resident MB-s | efficiency | of resident | error | predicted ms | MB | noisy rounds |"
)


def run_model(name: str, rules: str, requests: int) -> Comparison:
    """One model on one platform's rules, all planners in turns; ablations that plan the same are left out."""
    it = subject(name, rules)
    whole = _decided(it, "mopar")
    planners = [p for p in PLANNERS[rules] if p not in ABLATIONS or _decided(it, p) != whole]
    settings = Settings(given=it.given, planners=tuple(planners), requests=requests)
    return compare(it.graph, it.profile, it.platform, settings)


def _decided(it: Subject, planner: str) -> object:
    """What a plan decides; None where there is none."""
    try:
        return decided(make_plan(it.graph, it.profile, it.platform, planner, given=it.given))
    except LamellaError:
        return None


class Planned(msgspec.Struct, frozen=True):
    """What is planned for a model on a platform; `why` there is no plan where there is none."""

    stages: int = 0
    functions: int = 0
    cost_usd_per_million: float = 0.0
    single_usd_per_million: float | None = None
    why: str = ""


class Results(msgspec.Struct):
    """`twelve.json`, by `MODEL PLATFORM`."""

    planned: dict[str, Planned] = msgspec.field(default_factory=dict)
    measured: dict[str, Comparison] = msgspec.field(default_factory=dict)

    def save(self) -> None:
        """Write the file."""
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1))


def load(path: Path = RESULTS) -> Results:
    """Earlier results; none where there is no file."""
    return msgspec.json.decode(path.read_bytes(), type=Results) if path.exists() else Results()


def plan_model(name: str, rules: str) -> Planned:
    """What `mopar` plans, and what `single` would cost."""
    it = subject(name, rules)

    def made(planner: str) -> Plan:
        return make_plan(it.graph, it.profile, it.platform, planner, given=it.given)

    try:
        plan = made("mopar")
    except LamellaError as error:
        return Planned(why=error.message)
    try:
        alone = made("single").predicted.cost_usd_per_million
    except LamellaError:
        alone = None
    return Planned(plan.stages, len(plan.functions), plan.predicted.cost_usd_per_million, alone)


def row(name: str, plan: PlanRecord, base: Mapping[str, PlanRecord]) -> str:
    """One line of a table."""
    cheaper = [f"{base[b].cost_usd_per_million / plan.cost_usd_per_million:.2f}x" for b in BASES if b in base]
    slower = f"{plan.latency_ms.p50 / base['ort'].latency_ms.p50:.3f}" if "ort" in base else ""
    latency, memory = prediction_error(plan)
    return (
        f"| {name} | {plan.planner} | {plan.stages} | {len(plan.functions)} | {plan.cost_usd_per_million:.4g} "
        f"| {plan.cost_low:.4g}-{plan.cost_high:.4g} | {' | '.join(cheaper)} | {plan.latency_ms.p50:.1f} | {slower} "
        f"| {plan.latency_ms.p95:.1f} | {plan.vcpu_s:.3f} | {plan.memory_time_mb_s.billed:.2f} "
        f"| {plan.memory_time_mb_s.resident:.2f} | {plan.efficiency.billed:.0%} | {plan.efficiency.resident:.0%} "
        f"| {plan.output_error.max_rel:.0e} | {latency:+.1%} | {memory:+.1%} "
        f"| {plan.rounds_rejected + plan.rounds_noisy_kept} |"
    )


class Means(NamedTuple):
    """A planner against a baseline over several models."""

    models: int
    cheaper: float
    """How many times, geometric mean."""
    p50: float
    """Of the baseline's, geometric mean."""
    slower: int
    """Models that got slower beyond the 95 % intervals."""
    points: float
    """Of resource efficiency, percent points more on average,"""
    relative: float
    """and relative."""


Plans = dict[str, PlanRecord]


def compared(records: Mapping[str, Comparison]) -> list[Plans]:
    """The plans of each model by planner, where there are those to compare."""
    found = [{p.planner: p for p in r.plans} for r in records.values()]
    found = [plans for plans in found if {*BASES, "mopar"} <= plans.keys()]
    # where the answer is one function it is the very plan of `single`: what sets them apart in a run is luck
    return [
        {n: plans["single"] if n in BEST and _alone(p, plans["single"]) else p for n, p in plans.items()}
        for plans in found
    ]


def _alone(plan: PlanRecord, single: PlanRecord) -> bool:
    """Whether a plan is the single function's; `exact` may choose another size for it."""
    sizes = [[(f.planned_mb, f.cpu) for f in p.functions] for p in (plan, single)]
    return plan.stages == 1 and (plan.planner == "mopar" or sizes[0] == sizes[1])


def means(found: Sequence[Plans], base: str, planner: str = "mopar") -> Means:
    """A planner against a baseline."""
    pairs = [(p[planner], p[base]) for p in found]
    return Means(
        models=len(pairs),
        cheaper=geometric([b.cost_usd_per_million / a.cost_usd_per_million for a, b in pairs]),
        p50=geometric([a.latency_ms.p50 / b.latency_ms.p50 for a, b in pairs]),
        slower=sum(a.latency_ms.p50_low > b.latency_ms.p50_high for a, b in pairs),
        points=sum(100 * (a.efficiency.billed - b.efficiency.billed) for a, b in pairs) / len(pairs),
        relative=sum(a.efficiency.billed / b.efficiency.billed - 1 for a, b in pairs) / len(pairs),
    )


def summary(records: Mapping[str, Comparison]) -> list[str]:
    """What the table of one platform says."""
    found = compared(records)
    if not found:
        return []
    lines = []
    for base in BASES:
        lines.append(f"- to `{base}`: {against(means(found, base))}")
    exact = [p for p in found if "exact" in p]
    if exact:  # results of before it have none
        lines += [f"- `exact` to `{base}`: {against(means(exact, base, 'exact'))}" for base in (*BASES, "mopar")]
    errors = [prediction_error(plan) for plans in found for name, plan in plans.items() if not name.startswith("ort")]
    divided = [prediction_error(p["mopar"]) for p in found if p["mopar"].stages > 1]
    for what, those in (("all plans of lamella", errors), ("divided plans", divided)):
        if those:
            latency, memory = mean_errors(those)
            lines.append(
                f"- prediction error over {len(those)} {what}: latency {latency:.1%}, memory of a function {memory:.1%}"
            )
    dearer = [
        name
        for name, r in records.items()
        if (plans := {p.planner: p for p in r.plans}).keys() >= {"single", "mopar"}
        and plans["mopar"].cost_low > plans["single"].cost_high
    ]
    lines.append(f"- dearer than `single` beyond the intervals: {', '.join(dearer) or 'none'}.")
    return [*lines, *(f"- {line}" for line in nodes(found))]


def against(m: Means) -> str:
    """What a planner saves and costs against a baseline."""
    return (
        f"cost **{m.cheaper:.2f}x** lower, p50 **{m.p50:.3f}** of it ({m.slower} of {m.models} "
        f"models got slower beyond the 95 % intervals), resource efficiency {m.points:+.1f} points, "
        f"{m.relative:+.0%} relative on average."
    )


def nodes(found: Sequence[Plans]) -> list[str]:
    """What nodes that are paid by the hour answer, where the platform's functions have some."""
    packed = [(p["mopar"].packing, p["single"].packing) for p in found]
    pairs = [(a, b) for a, b in packed if a and b]
    if not pairs:
        return []
    ratios = [a.requests_per_hour / b.requests_per_hour for a, b in pairs]
    bound = sum(a.bound == "vcpu" for a, _ in pairs)
    return [
        f"requests that a node paid by the hour answers: {min(ratios):.2f} to {max(ratios):.2f} of `single`'s, "
        f"geometric mean {geometric(ratios):.2f}; it runs out of vCPU first for {bound} of {len(pairs)} models."
    ]


def ablations(records: Mapping[str, Comparison], planners: Sequence[str]) -> list[str]:
    """What each part contributes: cost and p50 without it, over those with it; where the plan is the same, nothing."""
    lines = []
    for name in ABLATIONS:
        found = [plans for r in records.values() if "mopar" in (plans := {p.planner: p for p in r.plans})]
        pairs = [(plans[name], plans["mopar"]) for plans in found if name in plans]
        if found and name in planners:
            same = [1.0] * (len(found) - len(pairs))
            costs = [a.cost_usd_per_million / b.cost_usd_per_million for a, b in pairs] + same
            p50 = [a.latency_ms.p50 / b.latency_ms.p50 for a, b in pairs] + same
            lines.append(
                f"| {name.removeprefix('mopar-no-')} | {len(found)} | {len(pairs)} | {geometric(costs):.2f}x "
                f"| {max(costs):.2f}x | {geometric(p50):.3f} |"
            )
    return lines


def finding(results: Results) -> list[str]:
    """Which platform pays for dividing which model: how much cheaper than one function, and as how many stages."""
    lines = ["| model | " + " | ".join(f"`{r}`" for r in PLANNERS) + " |", "|---|" + "---|" * len(PLANNERS)]
    for name in MODELS:
        lines.append(f"| {name} | " + " | ".join(answer(results, name, rules) for rules in PLANNERS) + " |")
    return lines


def answer(results: Results, name: str, rules: str) -> str:
    """The answer for a model on a platform, in brackets where it is only planned."""
    record = results.measured.get(f"{name} {rules}")
    if record is None:
        plan = results.planned.get(f"{name} {rules}")
        return f"({_answer(plan)})" if plan else ""
    plans = {p.planner: p for p in record.plans}
    best, alone = plans.get("mopar"), plans.get("single")
    if best is None:
        return "no plan"
    cost = alone.cost_usd_per_million if alone else None
    return _answer(Planned(best.stages, len(best.functions), best.cost_usd_per_million, cost))


def _answer(plan: Planned) -> str:
    if plan.why:
        return "no plan"
    if plan.functions == 1:
        return "one function"
    if plan.single_usd_per_million is None:
        return f"only divided, {plan.functions} functions"
    return f"{plan.single_usd_per_million / plan.cost_usd_per_million:.2f}x, {plan.functions} functions"


def page(results: Results) -> str:
    """`docs/benchmarks-twelve.md`."""
    first = next(iter(results.measured.values()))
    machine, dates = first.machine, between(r.date for r in results.measured.values())
    limits = "not enforced" if first.limits_reason else "enforced"
    lines = [
        "# Twelve models, four platforms",
        "",
        f"Printed by `benchmarks/twelve.py` on {dates}: {machine.cpu}, "
        f"{machine.cores} cores, {machine.isa}, onnxruntime {machine.onnxruntime}. Limits {limits}, one request at a "
        f"time, warm, batch 1, 1 vCPU per function where it is chosen, and at most {machine.cores} vCPU busy at once. "
        "All plans of a row took turns in one run. Weights are random; time and memory do not depend on them. "
        "Definitions are the *measures* of [the architecture](architecture.md).",
        "",
        "## Which platform pays for dividing which model",
        "",
        "How much less `mopar` costs than the tuned single function `single`, as measured; in brackets as planned, "
        "from the same profiles, and not deployed yet.",
        "",
        *finding(results),
        "",
    ]
    for rules in PLANNERS:
        here = {n: r for n in MODELS if (r := results.measured.get(f"{n} {rules}"))}
        if not here:
            continue
        lines += [f"## {platform(rules).title}", ""]
        if platform(rules).hop.emulated:
            hop = platform(rules).hop
            lines += [
                f"Hops are **emulated**: {hop.latency_ms.value:g} ms, {hop.mb_per_s.value:g} MB/s from the catalogue.",
                "",
            ]
        lines += [
            f"`mopar` over {len(here)} models, geometric means; where its answer is one function, the figures of "
            "`single` count, which is the same plan:",
            "",
            *summary(here),
            "",
        ]
        lines += [HEAD, "|" + "---|" * (HEAD.count("|") - 1)]
        for name, record in here.items():
            base = {p.planner: p for p in record.plans}
            lines += [row(name, p, base) for p in record.plans if p.planner not in ABLATIONS]
            lines += [f"| {name} | {n} | {why.splitlines()[0]} |" + " |" * 17 for n, why in record.failed.items()]
        lines.append("")
        parts = ablations(here, PLANNERS[rules])
        if parts:
            lines += [
                "### Without one of its parts",
                "",
                "What `mopar` costs and takes without a part, over what it does with all of them; geometric means. "
                "Where the plan without it is the same, it is not measured again and counts as 1.",
                "",
                "| without | models | where the plan differs | cost | at worst | p50 |",
                "|---|---|---|---|---|---|",
                *parts,
                "",
            ]
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--platforms", default=",".join(PLANNERS))
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--plan-only", action="store_true", help="make plans, deploy none")
    parser.add_argument("--page-only", action="store_true", help="only write the page from earlier results")
    options = parser.parse_args()
    results = Results() if options.fresh else load()
    asked = [] if options.page_only else options.platforms.split(",")
    keys = [(name, rules) for rules in asked for name in options.models.split(",")]
    for name, rules in keys:
        if f"{name} {rules}" not in results.planned:
            results.planned[f"{name} {rules}"] = plan_model(name, rules)
            results.save()
    for name, rules in [] if options.plan_only else keys:
        key = f"{name} {rules}"
        if key in results.measured:
            continue
        begun = time.monotonic()
        try:
            record = run_model(name, rules, options.requests)
        except Exception as error:  # noqa: BLE001 - one model's failure must not lose the others' hours
            print(f"{key}: FAILED {type(error).__name__}: {error}", flush=True)
            continue
        results.measured[key] = record
        results.save()
        costs = ", ".join(f"{p.planner} {p.cost_usd_per_million:.4g} $ {p.latency_ms.p50:.1f} ms" for p in record.plans)
        print(f"{key}: {costs} ({time.monotonic() - begun:.0f} s) {record.failed or ''}", flush=True)
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
