"""The page and the figures of `benchmarks.quality`, from its cases alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from benchmarks.charts import Axis, Guide, Series, chart
from benchmarks.models import between, geometric, p95_ms, prediction_error
from benchmarks.quality_cases import CONTENDERS, LEAST_ROUNDS, OTHERS, Case, places
from lamella.compare.paired import Difference, difference
from lamella.compare.record import PlanRecord

PAGE, LATENCY, MEMORY = "benchmarks-quality.md", "quality-latency.svg", "quality-memory.svg"
ALLOWED = 0.05
"""What predictions may be off on average."""
WANTED = 0.95
"""Of the feasible cases so many must be within the SLO."""


def write(cases: Sequence[Case], docs: Path) -> None:
    """Write the page, and its figures where something was measured."""
    (docs / PAGE).write_text(page(cases))
    if any(True for _ in _predicted(cases)):
        (docs / LATENCY).write_text(latency_svg(cases))
        (docs / MEMORY).write_text(memory_svg(cases))


def page(cases: Sequence[Case]) -> str:
    """`docs/benchmarks-quality.md`."""
    done = [case for case in cases if case.measured]
    lines = ["# `exact` against the others, within an SLO", "", *_circumstances(cases), ""]
    if done:
        lines += ["## What it comes to", "", *_finding(done), "", *_means(done), ""]
        lines += ["## The SLO, in reality", "", *_kept(done), "", "## Predictions", "", *_predictions(done), ""]
    if cases:
        lines += [
            "## Cases",
            "",
            "Of the others what they cost over `exact`; `=` is the same plan, `late` a p95 beyond the SLO, `-` no "
            "plan, for the reason that is said at the end. `ort` and `single`, which people deploy late or not, are "
            "planned without the SLO where they cannot keep it.",
            "",
        ]
    for rules, factor in _groups(cases):
        here = [c for c in cases if (c.platform, c.factor) == (rules, factor)]
        lines += [f"### `{rules}`: {factor:g}x", "", *_table(here), ""]
    lines += _failures(cases)
    return "\n".join(lines)


def _circumstances(cases: Sequence[Case]) -> list[str]:
    records = [c.record for c in cases if c.record]
    on = "Nothing is measured yet."
    if records:
        limits = "**not enforced**" if any(r.limits_reason for r in records) else "enforced"
        on = f"Limits {limits}. {machines(cases)}"
    measured = sum(c.measured for c in cases)
    planned = f", {len(cases) - measured} more are planned and in brackets" if measured < len(cases) else ""
    return [
        f"Printed by `python -m benchmarks.quality`. {on} {measured} of {max(len(cases), len(places()))} cases are "
        f"measured{planned}. What is in brackets is of plans from the same profiles, and was not deployed.",
        "",
        "A case is a model on a platform's rules within an SLO: so many times the p95 that the plan of `single`, the "
        "tuned single function, promises with no SLO. All hold their p95 to the SLO, by the spread in the profile: "
        "those that bound the mean are asked for the one that leaves room for it. Every plan is made from the model's "
        "own per-unit profile; plans that decide the same are deployed once and share the figures; all others of a "
        "case took turns in the same rounds. "
        "`uniform` is the cheapest of 2, 4, 8 and 16 equal slices. One request at a time, warm, batch 1. Cost is what "
        "the measured allocations and run times come to at the platform's prices. Definitions are the *measures* of "
        "[the architecture](architecture.md).",
    ]


def machines(cases: Sequence[Case]) -> str:
    """Where and when cases were measured: each on one machine, profile and all; not all on the same."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        if case.record:
            m = case.record.machine
            found.setdefault(f"{m.cpu}, {m.cores} cores, {m.isa}, onnxruntime {m.onnxruntime}", []).append(case)
    most = max(found.values(), key=len)
    said = []
    for name, own in found.items():
        which = "" if own is most else f" ({', '.join(str(c.place) for c in own)})"
        said.append(f"{between(c.record.date for c in own if c.record)} on {name}{which}")
    return f"Measured {'; '.join(said)}."


class Rival(NamedTuple):
    """`exact` and another in one measured case: what the other costs over `exact`, and the paired difference."""

    case: Case
    other: str
    ratio: float
    difference: Difference
    """Of `exact` to the other."""
    rounds: int
    late: bool
    """Whether the other's p95 is beyond the SLO."""

    @property
    def lost(self) -> bool:
        """Whether `exact` is dearer beyond the interval of enough rounds."""
        return self.rounds >= LEAST_ROUNDS and self.difference.loses


def rivals(cases: Iterable[Case]) -> list[Rival]:
    """Every pair that was measured; plans that are the same are equal by definition."""
    found = []
    for case in cases:
        best = case.of("exact")
        for name in OTHERS if best else ():
            other = case.of(name)
            if best and other:
                ratio = other.cost_usd_per_million / best.cost_usd_per_million
                late = other.latency_ms.p95 > case.slo_ms
                found.append(Rival(case, name, ratio, difference(best, other), len(best.turns), late))
    return found


def _finding(done: Sequence[Case]) -> list[str]:
    pairs = rivals(done)
    kept, feasible = _within(done, "exact")
    lost = [p for p in pairs if p.lost]
    late = sum(p.late for p in lost)
    few = sum(p.rounds < LEAST_ROUNDS for p in pairs)
    lines = [
        f"- `exact` has a plan in {sum('exact' in c.promised for c in done)} of {len(done)} cases.",
        f"- It loses to another beyond the 95 % interval of the paired differences of a case's rounds in "
        f"**{len(lost)}** of {len(pairs)} comparisons"
        + (f", in {late} of them to one whose p95 is beyond the SLO" if late else "")
        + (f", {few} of which have fewer than {LEAST_ROUNDS} rounds and settle nothing" if few else "")
        + (":" if lost else "."),
        *(
            f"    - {p.case.place} to `{p.other}`: {p.difference.share:+.1%} "
            f"({p.difference.low:+.1%} to {p.difference.high:+.1%}){', which is late' if p.late else ''}"
            for p in sorted(lost, key=lambda p: -p.difference.share)
        ),
    ]
    if feasible:
        lines.append(
            f"- Measured p95 is within the SLO in **{kept} of {feasible}** cases where it has a plan, "
            f"{kept / feasible:.0%}; {WANTED:.0%} are wanted."
        )
    return lines


def _means(done: Sequence[Case]) -> list[str]:
    """Cost over that of `exact`, geometric means by platform and SLO."""
    lines = [
        "Cost of the others over that of `exact`, geometric means of the cases where both ran (how many):",
        "",
        "| platform | SLO | cases | " + " | ".join(f"`{o}`" for o in OTHERS) + " |",
        "|---|---:|---:|" + "---:|" * len(OTHERS),
    ]
    for rules, factor in _groups(done):
        here = [c for c in done if (c.platform, c.factor) == (rules, factor)]
        lines.append(f"| `{rules}` | {factor:g}x | {len(here)} | {_ratios(here)} |")
    return [*lines, f"| all | | {len(done)} | {_ratios(done)} |"]


def _groups(cases: Iterable[Case]) -> list[tuple[str, float]]:
    """Platforms and SLOs, one's own cluster first."""
    return sorted({(c.platform, c.factor) for c in cases}, key=lambda group: (group[0] != "openfaas", group))


def _ratios(cases: Sequence[Case]) -> str:
    pairs = rivals(cases)
    cells = []
    for other in OTHERS:
        ratios = [p.ratio for p in pairs if p.other == other]
        cells.append(f"{geometric(ratios):.2f}x ({len(ratios)})" if ratios else "")
    return " | ".join(cells)


def _within(cases: Iterable[Case], contender: str) -> tuple[int, int]:
    """In how many cases a contender's measured p95 is within the SLO, and in how many it ran."""
    ran = [(case, plan) for case in cases if (plan := case.of(contender))]
    return sum(plan.latency_ms.p95 <= case.slo_ms for case, plan in ran), len(ran)


def _kept(done: Sequence[Case]) -> list[str]:
    lines = [
        "Cases in which a contender had a plan within the SLO and ran, and its p95 as measured:",
        "",
        "| plan | cases | p95 within the SLO | share | p95 over SLO, at worst | where |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name in CONTENDERS:
        ran = [(plan.latency_ms.p95 / c.slo_ms, c) for c in done if (plan := c.of(name))]
        if ran:
            kept, count = _within(done, name)
            worst, case = max(ran, key=lambda one: one[0])
            lines.append(f"| `{name}` | {count} | {kept} | {kept / count:.0%} | {worst:.3f} | {case.place} |")
    return lines


class _Errors(NamedTuple):
    """Predicted over measured less one."""

    latency: float
    paced: float | None
    """Latency at the machine's pace in the rounds, where that is known."""
    memory: float


def _predicted(cases: Iterable[Case]) -> Iterator[tuple[Case, str, PlanRecord]]:
    """Every deployed plan that a profile predicted (not `ort`), once, by the first contender it stands for."""
    for case in cases:
        seen = set()
        for name in CONTENDERS:
            plan = case.of(name)
            if plan and name != "ort" and plan.planner not in seen:
                seen.add(plan.planner)
                yield case, name, plan


def _predictions(done: Sequence[Case]) -> list[str]:
    found = [(name, case.platform, plan, _errors(plan)) for case, name, plan in _predicted(done)]
    if not found:
        return ["No plan ran."]
    lines = [
        "Predicted over measured less one, latency by p50, memory by the functions' peaks (VmHWM): mean of the "
        f"absolute values, at most {ALLOWED:.0%} is wanted; *bias* is the mean itself. Each deployed plan counts once, "
        "under the first contender that made it; `ort`, which is measured whole when it is planned, does not count.",
        "",
        "| plans | count | latency | bias | at worst | memory | bias | at worst | of these | latency | at the pace |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    groups: list[tuple[str, list[_Errors]]] = [("**all**", [e for *_, e in found])]
    groups += [
        (f"`{rules}`", [e for _, r, _, e in found if r == rules]) for rules in dict.fromkeys(f[1] for f in found)
    ]
    groups += [("one function", [e for _, _, p, e in found if p.stages == 1 and len(p.functions) == 1])]
    groups += [("divided", [e for _, _, p, e in found if len(p.functions) > 1])]
    groups += [(f"`{n}`", [e for name, _, _, e in found if name == n]) for n in CONTENDERS]
    for what, errors in groups:
        if errors:
            latency, memory = [e.latency for e in errors], [e.memory for e in errors]
            told = [(e.latency, e.paced) for e in errors if e.paced is not None]
            raw, paced = [f"{_mean(side):.1%}" for side in zip(*told, strict=True)] if told else ("", "")
            lines.append(
                f"| {what} | {len(errors)} | {_mean(latency):.1%} | {_signed(latency)} "
                f"| {_mean(memory):.1%} | {_signed(memory)} | {len(told)} | {raw} | {paced} |"
            )
    late = [p95_ms(plan.predicted) / plan.latency_ms.p95 - 1 for _, _, plan, _ in found]
    return [
        *lines,
        "",
        "A shared machine is quicker in some minutes than in others. *At the pace* is the error of the latency that "
        "the profile predicts for the pace which known loads (products, streaming through memory, short calls) told of "
        "the machine in a plan's own turns, and beside it the error as it is, of the plans whose turns had such loads: "
        "earlier cases had none. Where the two are alike, the machine's pace is not what predictions are off by.",
        "",
        *_again(done),
        *_relative(done),
        f"The p95 of all of them: {_mean(late):.1%} off, {_signed(late).replace(' | ', ' on average, ')} at worst.",
        "",
        f"![Predicted and measured latency]({LATENCY})",
        "",
        f"![Predicted and measured memory of functions]({MEMORY})",
    ]


def _again(done: Sequence[Case]) -> list[str]:
    """How much the same plan's latency differs from one comparison to another, which no prediction can foresee."""
    same: dict[object, dict[float, float]] = {}
    for case, _, plan in _predicted(done):
        assert case.record
        what = tuple((f.first, f.last, f.memory_mb, f.cpu) for f in plan.functions)
        same.setdefault((case.record.machine, case.model, case.platform, what), {})[case.factor] = plan.latency_ms.p50
    apart = [
        max(one, other) / min(one, other) - 1
        for found in same.values()
        for one, other in combinations(found.values(), 2)
    ]
    if not apart:
        return []
    return [
        f"The same slices at the same sizes were measured in two comparisons {len(apart)} times, and took "
        f"{_mean(apart):.1%} longer in one of them than in the other, {max(apart):.1%} at worst: so much of the errors "
        "is the machine's.",
        "",
    ]


def _relative(done: Sequence[Case]) -> list[str]:
    """How far predictions are off beside that of `single`, which was as quick or slow in the same rounds."""
    found = []
    for case, name, plan in _predicted(done):
        alone = case.of("single")
        if alone and name != "single" and plan is not alone:
            found.append((1 + prediction_error(plan).latency) / (1 + prediction_error(alone).latency) - 1)
    if not found:
        return []
    return [
        "How much longer or shorter a plan takes than `single` in the same rounds, which is what plans are chosen by, "
        f"is predicted {_mean(found):.1%} off, {_signed(found).replace(' | ', ' on average, ')} at worst, over "
        f"{len(found)} plans.",
        "",
    ]


def _errors(plan: PlanRecord) -> _Errors:
    error = prediction_error(plan)
    paced = (1 + error.latency) * plan.slowdown - 1 if plan.slowdown is not None else None
    return _Errors(error.latency, paced, error.memory)


def _mean(errors: Sequence[float]) -> float:
    return sum(map(abs, errors)) / len(errors)


def _signed(values: Sequence[float]) -> str:
    """Mean, and the worst, with their signs."""
    return f"{sum(values) / len(values):+.1%} | {max(values, key=abs):+.1%}"


def _table(cases: Sequence[Case]) -> list[str]:
    """A row for each model: `exact`, and what the others cost over it."""
    lines = [
        "| model | SLO ms | `exact` $/million | 95 % | functions | p50 ms | p95 ms | "
        + " | ".join(f"`{o}`" for o in OTHERS)
        + " | noisy rounds |",
        "|---|---:|---:|---:|---:|---:|---:|" + "---:|" * len(OTHERS) + "---:|",
    ]
    for case in cases:
        slo = f"{case.slo_ms:.1f}"
        lines.append(
            f"| {case.model} | {slo} | {_exact(case)} | " + " | ".join(_cell(case, o) for o in OTHERS) + _noisy(case)
        )
    return lines


def _exact(case: Case) -> str:
    plan, promise = case.of("exact"), case.promised.get("exact")
    if plan:
        late = " late" if plan.latency_ms.p95 > case.slo_ms else ""
        return (
            f"{plan.cost_usd_per_million:.4g} | {plan.cost_low:.4g}-{plan.cost_high:.4g} | {len(plan.functions)} "
            f"| {plan.latency_ms.p50:.1f} | {plan.latency_ms.p95:.1f}{late}"
        )
    if promise and not case.measured:
        return (
            f"({promise.cost_usd_per_million:.4g}) | | ({promise.functions}) | ({promise.latency_ms:.1f}) "
            f"| ({promise.p95_ms:.1f})"
        )
    return "- | | | | "


def _cell(case: Case, other: str) -> str:
    if not case.measured:
        ours, theirs = case.promised.get("exact"), case.promised.get(other)
        if theirs is None:
            return "-"
        if case.stands[other] == case.stands.get("exact"):
            return "(=)"
        return f"({theirs.cost_usd_per_million / ours.cost_usd_per_million:.2f}x)" if ours else "(only)"
    best, plan = case.of("exact"), case.of(other)
    if plan is None:
        return "-"
    if best is plan:
        return "="
    late = " late" if plan.latency_ms.p95 > case.slo_ms else ""
    if best is None:
        return f"{plan.cost_usd_per_million:.4g} ${late}"
    return f"{plan.cost_usd_per_million / best.cost_usd_per_million:.2f}x{late}"


def _noisy(case: Case) -> str:
    plans = case.record.plans if case.record else ()
    return f" | {plans[0].rounds_rejected + plans[0].rounds_noisy_kept} |" if plans else " | |"


def _failures(cases: Sequence[Case]) -> list[str]:
    """Why contenders have no plan: each reason once, with its cases."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        for contender, why in case.failed.items():
            said = why.splitlines()[0] if why else "no reason given"
            reasons.setdefault((contender, said), []).append(str(case.place))
    if not reasons:
        return []
    lines = ["## Contenders without a plan", "", "| plan | cases | why |", "|---|---|---|"]
    for (contender, why), where in reasons.items():
        shown = ", ".join(where[:3]) + (f" and {len(where) - 3} more" if len(where) > 3 else "")
        lines.append(f"| `{contender}` | {shown} | {why.replace('|', '/')} |")
    return [*lines, ""]


Pair = tuple[float, float]


def latency_svg(cases: Sequence[Case]) -> str:
    """Predicted latency against p50 as measured, of every plan."""
    return _calibration(
        cases,
        "Latency of plans: predicted against measured",
        "ms",
        lambda plan: [(plan.latency_ms.p50, plan.predicted.latency_ms)],
    )


def memory_svg(cases: Sequence[Case]) -> str:
    """Predicted against measured peak of every function."""
    return _calibration(
        cases,
        "Peak memory of functions: predicted against measured",
        "MB",
        lambda plan: [(f.peak_mb, f.predicted_peak_mb) for f in plan.functions],
    )


def _calibration(cases: Sequence[Case], title: str, unit: str, pairs: Callable[[PlanRecord], list[Pair]]) -> str:
    series = []
    for rules in dict.fromkeys(c.platform for c in cases):
        for what, divided in (("one function", False), ("divided", True)):
            points: list[Pair] = []
            titles: list[str] = []
            for case, name, plan in _predicted(cases):
                if case.platform == rules and (len(plan.functions) > 1) == divided:
                    points += pairs(plan)
                    titles += [f"{case.place} {name}"] * len(pairs(plan))
            if points:
                series.append(Series(f"{rules}, {what}", points, titles=titles))
    values = [v for s in series for point in s.points for v in point if v > 0]
    low, high = min(values) / 1.3, max(values) * 1.3
    low, high = (low, high) if high > 1.5 * low else (low / 2, high * 2)
    guides = [
        Guide([(low, low), (high, high)]),
        *(Guide([(low, low * (1 + off)), (high, high * (1 + off))], dashed=True) for off in (ALLOWED, -ALLOWED)),
    ]
    across, up = (Axis(f"{how}, {unit}", low, high, log=True) for how in ("measured", "predicted"))
    return chart(f"{title} (dashed: {ALLOWED:.0%} off)", across, up, series, guides)
