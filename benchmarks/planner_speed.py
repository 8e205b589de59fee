"""How long planning takes: `python -m benchmarks.planner_speed`.

Each case runs in a process of its own on one core, with a limit of time and of memory, so that the largest ones are
done or refused and nothing else suffers. First the search alone against HiGHS on fixed instances (arc-flow program,
one thread, the same arcs); then from profile to plan: chains with every choice, long chains, real models on every
megabyte of Lambda; and how time grows with units. Cases that are in `benchmarks/results/planner_speed.json` are not run
again (`--again` does); tables go to `docs/benchmarks-planner.md`, the picture to `docs/planner-growth.svg`. Let the
machine do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import datetime
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from benchmarks.planner_growth import Line, growth_svg
from benchmarks.planner_instances import instance, profiled, routes
from lamella.errors import LamellaError
from lamella.graph.load import import_model
from lamella.machine import Machine, this_machine
from lamella.plan.make import make_plan
from lamella.plan.planners.exact import Exact
from lamella.plan.planners.milp import cheapest, solver_name
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request
from lamella.platforms import platform
from lamella.profile.measure import measure, threads_needed

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "planner_speed.json"
PAGE = ROOT / "docs" / "benchmarks-planner.md"
PICTURE = ROOT / "docs" / "planner-growth.svg"

WHERE, SIZES = "aws-lambda-2021", 46
LAMBDA = "aws-lambda"
ALONE = (20, 40, 60, 100)
"""Units of the instances of the search alone, by ten sizes; the fixed ones are the last two."""
GROWTH = (25, 50, 100, 200, 400, 800)
MODELS = ("vgg19", "resnet50", "gpt2-medium")
WITHIN_S = {"choices 100": 1.0, "chain 1000": 20.0, **{f"model {name}": 2.0 for name in MODELS}}
"""What is claimed, seconds."""
TIMES = {60: 50.0, 100: 10.0}
"""What is claimed against HiGHS, by units."""
CASES = (
    *(f"alone {units}" for units in ALONE),
    "choices 100",
    *(f"chain {units}" for units in (*GROWTH, 1000, 10000)),
    *(f"model {name}" for name in MODELS),
)
REPEATS = 5
SLO = 0.85
"""Of the units' times on one thread: between the quickest plan and the cheapest one."""
SOLVER_S, CASE_S, CASE_GB = 900.0, 1800.0, 20


T = TypeVar("T")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One case. Seconds are the least of some runs."""

    case: str
    seconds: float = 0.0
    units: int = 0
    considered: int = 0
    """Arcs of the search alone; operators of a real model."""
    stages: int = 0
    usd_per_million: float = 0.0
    peak_mb: float = 0.0
    """Of the process, libraries and instance included."""
    solver_s: float = 0.0
    solver_usd_per_million: float = 0.0
    solver_gap: float = 0.0
    refused: str = ""
    """Why there is no plan."""


class Results(msgspec.Struct, frozen=True):
    """What was measured, by case."""

    date: str
    machine: Machine
    solver: str
    rows: dict[str, Row]


# ---------------------------------------------------------------------------------------------------------- cases


def alone(units: int) -> Row:
    """The search against the solver on the same arcs."""
    arcs, slo_ms = instance(units, 10)
    seconds, found = timed(lambda: routes(arcs).cheapest(slo_ms), REPEATS)
    solved = cheapest(arcs, slo_ms, seconds=SOLVER_S)
    return Row(
        case=f"alone {units}",
        seconds=seconds,
        units=units,
        considered=len(arcs.tail),
        stages=len(found.routes[0].arcs),
        usd_per_million=found.routes[0].usd * 1e6,
        solver_s=solved.seconds if solved else SOLVER_S,
        solver_usd_per_million=solved.usd * 1e6 if solved else 0.0,
        solver_gap=solved.gap if solved else 1.0,
    )


def planned(case: str, units: int, *, every: bool) -> Row:
    """From a made-up profile to the decision of `exact`."""
    model, request = profiled(units, WHERE, shards=every, codecs=every)
    time_ms = sum(u.times[0].median_ms for u in model.profile.units)
    request = request._replace(slo_ms=SLO * time_ms)

    def plan() -> tuple[int, float]:
        fresh = SliceModel(model.graph, model.profile, model.platform, request, model.lossy)
        chosen = Exact().decide(fresh, request).chosen
        return len(chosen.choices), chosen.cost_usd

    seconds, (stages, usd) = timed(plan, REPEATS if units <= 100 else 1)
    return Row(case=case, seconds=seconds, units=units, stages=stages, usd_per_million=usd * 1e6)


def real(name: str) -> Row:
    """From the profile of a real model to its plan document, every megabyte a size; the slowest of three SLOs."""
    graph, rules = import_model(f"zoo:{name}"), platform(LAMBDA)
    profile = measure(graph, threads=threads_needed(rules.cpu.coupling, 1.0), shards=True)
    _confined()  # not before: with one core it would be another machine's profile
    whole = make_plan(graph, profile, rules, "single", given=name).predicted.latency_ms
    worst = Row(case=f"model {name}", considered=len(graph.operators), units=len(profile.units))
    for share in (1.0, 1.5, 3.0):
        asked = Request(slo_ms=whole * share)
        seconds, plan = timed(partial(make_plan, graph, profile, rules, "exact", given=name, request=asked), 3)
        if seconds > worst.seconds:
            usd = plan.predicted.cost_usd_per_million
            worst = msgspec.structs.replace(worst, seconds=seconds, stages=plan.stages, usd_per_million=usd)
    return worst


def timed(run: Callable[[], T], times: int) -> tuple[float, T]:
    """The least seconds of some runs, and what the last gave."""
    least = float("inf")
    for _ in range(times):
        begun = time.perf_counter()
        found = run()
        least = min(least, time.perf_counter() - begun)
    return least, found


def run_case(case: str) -> Row:
    """One case, here."""
    kind, _, what = case.partition(" ")
    if kind == "alone":
        return alone(int(what))
    if kind == "model":
        return real(what)
    return planned(case, int(what), every=kind == "choices")


def _reason(said: str) -> str:
    """The sentence of an error that a process ended with, without where and what to try."""
    lines = [line for line in said.strip().splitlines() if not line.startswith(("  where:", "  try:", " "))]
    return lines[-1].partition("Error: ")[2] or lines[-1] if lines else ""


def apart(case: str) -> Row:
    """One case in a process of its own, with its peak memory; what it was refused for, if it was."""
    here = [sys.executable, "-m", "benchmarks.planner_speed", "--case", case]
    try:
        first = None if case.startswith("model ") else _confined  # real ones confine themselves, behind the profile
        done = subprocess.run(here, cwd=ROOT, capture_output=True, text=True, timeout=CASE_S, preexec_fn=first)
    except subprocess.TimeoutExpired:
        return Row(case=case, refused=f"not done within {CASE_S:.0f} s")
    if done.returncode:
        return Row(case=case, refused=_reason(done.stderr) or f"ended with {done.returncode}")
    return msgspec.json.decode(done.stdout, type=Row)


def _confined() -> None:
    """One core, as much address space as a case may take."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    resource.setrlimit(resource.RLIMIT_AS, (CASE_GB << 30, CASE_GB << 30))


# ----------------------------------------------------------------------------------------------------------- page


def against(row: Row) -> str:
    """What the solver took in proportion, and whether it agrees."""
    if not row.solver_s:
        return "not measured"
    ratio = f"{row.solver_s / row.seconds:,.0f}x"
    if row.solver_gap > 1e-6:
        return f"more than {ratio}: stopped with a gap of {row.solver_gap:.1%}"
    same = abs(row.usd_per_million / row.solver_usd_per_million - 1) < 1e-6
    return ratio if same else f"{ratio}, but it says ${row.solver_usd_per_million:.6g}"


def page(results: Results) -> str:
    """The benchmark's page: claims, what was measured, what falls short."""
    rows, cores = results.rows, results.machine.cores
    if not rows:
        return (
            "# Planning\n\nNothing is measured yet: `python -m benchmarks.planner_speed` does, and writes this page.\n"
        )
    lines = [
        "# Planning",
        "",
        f"Printed by `python -m benchmarks.planner_speed` on {results.date}: {results.machine.cpu}, one of {cores} "
        f"cores, {results.solver} on one thread. Each case is a process of its own; the least of {REPEATS} runs "
        "where one takes about a second, and one run of the long ones. The planner is "
        "[`exact`](decisions/0021-exact.md); the program is that of [decision 22](decisions/0022-amps-inf.md).",
        "",
        "## The search alone, against a solver",
        "",
        "The same arcs, slices of a made-up chain by ten sizes under an SLO that binds: ours from arrays to the plan, "
        "the solver's from arrays to the proof. `benchmarks/planner_instances.py` makes the instances.",
        "",
        "| units | arcs | ours, ms | solver, s | solver / ours | claimed | stages |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for units in ALONE:
        if row := rows.get(f"alone {units}"):
            claim = f"{TIMES[units]:.0f}x" if units in TIMES else ""
            lines.append(
                f"| {units} | {row.considered:,} | {row.seconds * 1000:.1f} | {row.solver_s:.2f} | {against(row)} | "
                f"{claim} | {row.stages} |"
            )
    lines += [
        "",
        "## From profile to plan",
        "",
        f"`choices` is a chain with {SIZES} sizes, none or 2, 3 or 4 shards per unit, none or one of 3 codecs per hop; "
        f"`chain` has the sizes only; both as `{WHERE}` sells. `model` is a real one on `{LAMBDA}`, every megabyte a "
        "size: the slowest of three SLOs.",
        "",
        "| case | units | s | claimed, s | stages | peak MB of the process |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for case in CASES:
        row = rows.get(case)
        if row and not case.startswith("alone"):
            within = f"{WITHIN_S[case]:.0f}" if case in WITHIN_S else ""
            lines.append(
                f"| {case} | {row.units or ''} | {row.refused or f'{row.seconds:.3g}'} | {within} | "
                f"{row.stages or ''} | "
                f"{f'{row.peak_mb:.0f}' if row.peak_mb else ''} |"
            )
    return "\n".join([*lines, "", "![How planning grows](planner-growth.svg)", "", *verdicts(rows), ""])


def verdicts(rows: dict[str, Row]) -> list[str]:
    """Each claim, kept or not, as a list."""
    said = []
    for case, most in WITHIN_S.items():
        if row := rows.get(case):
            kept = not row.refused and row.seconds <= most
            said.append(f"- `{case}` within {most:.0f} s: {'kept' if kept else 'NOT kept'}.")
    for units, times in TIMES.items():
        if row := rows.get(f"alone {units}"):
            # a solver that was stopped took at least so long
            agrees = row.solver_gap > 1e-6 or abs(row.usd_per_million / row.solver_usd_per_million - 1) < 1e-6
            kept = agrees and row.solver_s >= times * row.seconds
            said.append(
                f"- {units} units by ten sizes {times:.0f}x as fast as the solver: {'kept' if kept else 'NOT kept'}."
            )
    return said


def picture(results: Results) -> str:
    """How time grows with units."""
    rows = [r for r in results.rows.values() if not r.refused and r.units]

    def line(kind: str, take: Callable[[Row], float]) -> tuple[tuple[float, float], ...]:
        return tuple(sorted((float(r.units), take(r)) for r in rows if r.case.startswith(f"{kind} ")))

    return growth_svg(
        "Time to plan by units of the model",
        (
            Line("HiGHS, the arcs alone, 10 sizes", line("alone", lambda r: r.solver_s)),
            Line(f"exact, from profile to plan, {SIZES} sizes", line("chain", lambda r: r.seconds), best=True),
            Line("exact, the arcs alone, 10 sizes", line("alone", lambda r: r.seconds), best=True),
        ),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", help="run one case here and print it as JSON")
    parser.add_argument("--only", default="", help="cases that begin so")
    parser.add_argument("--again", action="store_true", help="also what has been measured")
    asked = parser.parse_args()
    if asked.case:
        try:
            row = run_case(asked.case)
        except (LamellaError, MemoryError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 1
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(msgspec.json.encode(msgspec.structs.replace(row, peak_mb=peak_mb)).decode())
        return 0
    rows = measured_here()
    for case in CASES:
        if case.startswith(asked.only) and (asked.again or case not in rows):
            rows[case] = apart(case)
            print(msgspec.json.encode(rows[case]).decode(), flush=True)
            write(rows)
    if rows:  # without new cases the page is written again from the results
        write(rows)
    return 0


def load() -> Results:
    """What was measured."""
    return msgspec.json.decode(RESULTS.read_bytes(), type=Results)


def measured_here() -> dict[str, Row]:
    """What was measured on this machine: another's figures do not stand beside its."""
    known = load() if RESULTS.exists() else None
    return dict(known.rows) if known and known.machine == this_machine() else {}


def write(rows: dict[str, Row]) -> None:
    """Results, page and picture."""
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    results = Results(date, this_machine(), solver_name(), rows)
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    PAGE.write_text(page(results))
    if rows:
        PICTURE.write_text(picture(results))


if __name__ == "__main__":
    sys.exit(main())
