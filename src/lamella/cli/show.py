"""Tables for a terminal. JSON goes through `print_json`, so that both come from the same document."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lamella.compare.record import Comparison, PlanRecord
from lamella.compare.table import NODE_COLUMNS, Column, columns
from lamella.plan.document import Plan
from lamella.predictor.document import Calibration
from lamella.profile.document import Profile, Timing, Variant
from lamella.units import digits

TELLING = 0.03
"""A machine that is slower or quicker than usual by more than this is worth a line."""


def console() -> Console:
    """Standard output; wide when it is not a terminal, so that nothing is cut."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def print_json(document: object) -> None:
    """One indented JSON document on standard output."""
    print(msgspec.json.format(msgspec.json.encode(document), indent=1).decode())


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """A plain table: the first column and those whose name ends in a space are text, the others numbers."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        text = i == 0 or name.endswith(" ")
        made.add_column(name.strip(), justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for row in rows:
        made.add_row(*map(escape, row))  # a tensor may be called w[/x]
    return made


def megabytes(size: float) -> str:
    """Bytes as MB with a sensible number of digits."""
    mb = size / 2**20
    return f"{mb:.0f}" if mb >= 10 else f"{mb:.2f}"


def show_calibration(calibration: Calibration) -> None:
    """Every kind of operator with its plain formula, one thread, cold, and the errors it made."""
    out = console()
    machine = calibration.machine
    out.print(
        f"{machine.cpu}, {machine.cores} cores, onnxruntime {machine.onnxruntime}: {calibration.operators} operators "
        f"in {calibration.networks} of {calibration.spread} networks",
        markup=False,
    )
    out.print(
        f"on networks left out: {calibration.network_error:.0%} off on a network's time, {calibration.error:.0%} on "
        "its operators' (plain, one thread)"
    )
    counts = calibration.threads
    rows = []
    for kind in calibration.kinds:
        fits = [kind.by_variant[layout, n, False] for layout in ("plain", "prepacked") for n in counts]
        terms = {n: c for n, c in fits[0].formula.coefficients.items() if c}
        told = " + ".join(f"{c:.3g} {name}" for name, c in terms.items())
        near = f", and {len(kind.points)} neighbours" if kind.points else ""
        rows.append([kind.kind, *(f"{f.formula.error:.0%}" for f in fits), told + near])
    names = [f"{layout} {n}t" for layout in ("plain", "prepacked") for n in counts]
    out.print(table(["operators", *names, "ms, plain, one thread "], rows))
    held = [
        [name.removesuffix("_mb").replace("_", " "), *(f"{m.figures[name].error:.0%}" for m in calibration.memory)]
        for name in calibration.memory[0].figures
    ]
    out.print(table(["of a function", *(m.layout for m in calibration.memory)], held))


def show_profile(profile: Profile) -> None:
    """Units and cuts with what was measured at batch 1."""
    out = console()
    prices = (profile.hop.warm, profile.hop.cold, profile.hop.paused)
    warm, cold, paused = (cost.fixed_ms + cost.call_ms for cost in prices)
    out.print(
        f"{escape(profile.model)} on {profile.machine.cpu}, onnxruntime {profile.machine.onnxruntime}: runtime floor "
        f"{profile.floor.resident_mb:.0f} MB, a hop {warm:.2f} to {cold:.2f} ms, {paused:.2f} behind a pause, "
        f"noise of a known load {profile.noise.worst:.2f}x, in memory {profile.noise.worst_memory:.2f}x"
    )
    if profile.predicted:
        out.print(f"not run: {profile.predicted.said}", markup=False)
    variants = [v for v in profile.variants if v.batch == 1]
    counts = sorted({v.threads for v in variants})
    rows = []
    cuts = [*profile.cuts, None]
    for i, (unit, cut) in enumerate(zip(profile.units, cuts, strict=True)):
        times = {t.variant: t for t in unit.times}
        held = {m.layout: m for m in unit.memory}
        off, on = held["plain"], held["prepacked"]
        rows.append(
            [
                str(i),
                f"{unit.first}-{unit.last - 1}",
                unit.kinds,
                megabytes(unit.weight_bytes),
                f"{on.private_mb - off.private_mb:.0f}" if on.private_mb - off.private_mb > 0.5 else "",
                f"{off.live_mb:.1f}",
                *(_by_layout([times[v] for v in variants if v.threads == count]) for count in counts),
                f"{times[variants[0]].p95_ms:.2f}",
                *(f"{q.throttled_ms:.1f}" for q in unit.quotas),
                megabytes(cut.bytes) if cut else "",
                f"{cut.savings[0].ms:.2f}" if cut else "",
            ]
        )
    out.print(
        table(
            [
                "unit",
                "operators",
                "kinds ",
                "weights MB",
                "prepacked MB",
                "live MB",
                *(f"ms {count}t" for count in counts),
                "p95",
                *(f"ms {q.vcpu:g} vCPU" for q in profile.units[0].quotas),
                "cut MB",
                "cut costs ms",
            ],
            rows,
        )
    )
    out.print(
        f"ms: weights {' / '.join(dict.fromkeys(v.layout for v in variants))}, where some product of the unit would be"
    )
    batches = sorted({v.batch for v in profile.variants})
    if len(batches) > 1:
        totals = []
        for b in batches:
            k = profile.variants.index(Variant(b, "plain", 1))
            total = sum(u.times[k].median_ms for u in profile.units) - sum(c.savings[k].ms for c in profile.cuts)
            totals.append(f"{b}: {total:.1f} ms ({total / b:.1f} a row)")
        out.print("one thread, by batch: " + ", ".join(totals))


def _by_layout(times: Sequence[Timing]) -> str:
    """Of a unit, in each layout that is its own."""
    return " / ".join(f"{t.median_ms:.2f}" for t in times if not t.shared)


def _parts(plan: Plan) -> str:
    """How many functions, and of how many stages where shards make these fewer."""
    count = len(plan.functions)
    said = f"{count} function{'s' * (count > 1)}"
    return said if plan.stages == count else f"{said} in {plan.stages} stages"


def _bounded(plan: Plan) -> str:
    """The percentile of latency that was held to a bound."""
    return "" if plan.percentile is None else f" (percentile {plan.percentile:g}: {plan.bounded_ms:.1f})"


def _shared(plan: Plan) -> str:
    """How many requests share a run."""
    return f", {plan.requests} of which share a run" if plan.requests > 1 else ""


def kept_for(plan: Plan) -> list[str]:
    """Of which share of all requests the SLO holds, starts included; nothing where no rate is told."""
    if plan.in_time is None:
        return []
    asked, held = plan.asked_percentile or 0.0, plan.in_time * 100
    one = "run" if plan.requests > 1 else "request"
    return [
        f"the SLO holds for at least {held:.4g} % of all {one}s, for percentile {plan.percentile:.6g} of those "
        "that find their functions ready"
        + (f": {asked:g} % were asked for, and no plan was found that keeps that" if held < asked * (1 - 1e-6) else "")
    ]


def _starts(plan: Plan) -> list[str]:
    """What starts after idle times add."""
    cold, lines = plan.cold, []
    one = "run" if plan.requests > 1 else "request"
    if cold is None:
        return []
    if cold.rate_per_s is not None:
        own = (
            "a time of the platform that is not known"
            if cold.platform_ms is None
            else f"{cold.platform_ms:.0f} ms of its own"
        )
        adds = cold.share * cold.usd_per_million_starts
        lines.append(
            f"starts: with a {one} every {_span(1 / cold.rate_per_s)}, {cold.share:.1%} of them find {cold.starts} "
            f"function(s) stopped and wait {cold.init_ms:.0f} ms and {own}; that adds "
            f"${digits(adds / plan.requests, 3)} per million requests"
        )
        lines += kept_for(plan)
    if cold.one_function_below_per_s:
        least = _span(1 / cold.one_function_below_per_s)
        lines.append(f"with fewer {one}s than one every {least} one function would be cheaper, for its fewer starts")
    return lines


def _used(value: float, unit: str) -> str:
    """What a constraint has been used for; money in its own digits."""
    return digits(value, 3) if unit == "$" else f"{value:.1f}"


def _span(seconds: float) -> str:
    """A time, in the unit that suits it."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def show_plan(plan: Plan) -> None:
    """The plan, why each choice was made and why each loser lost."""
    out = console()
    p = plan.predicted
    out.print(
        f"[bold]{escape(plan.model.name)} on {plan.platform} by {plan.planner}[/bold]: {_parts(plan)}, "
        f"{p.latency_ms:.1f} ms{_bounded(plan)}, {p.memory_mb:.0f} MB in all, "
        f"${digits(p.cost_usd_per_million / plan.requests, 3)} per million requests{_shared(plan)} (predicted)"
    )
    out.print(f"why: {plan.why}", markup=False)
    if plan.orders:
        out.print(plan.orders.sentence, markup=False)
    for line in _starts(plan):
        out.print(line, markup=False)
    out.print(
        table(
            ["function", "operators", "MB", "vCPU", "threads", "ms", "why "],
            [
                [
                    f.name,
                    f"{f.first}-{f.last - 1}",
                    str(f.memory_mb),
                    f"{f.vcpu:.2f}",
                    str(f.threads),
                    f"{f.run_ms:.1f}",
                    f.why,
                ]
                for f in plan.functions
            ],
        )
    )
    if count := sum(len(f.int8) for f in plan.functions):
        out.print(f"on 8-bit integers: {count} products of {sum(bool(f.int8) for f in plan.functions)} function(s)")
    if plan.validation and plan.validation.measured is None:
        out.print(f"nothing lossy is worth it or within its bound: {plan.validation.sentence()}", markup=False)
    elif plan.validation:
        learned = f", learned on {plan.validation.fitted_requests} others" if plan.fitted else ""
        out.print(f"what it loses, together: {plan.validation.sentence()}{learned}", markup=False)
    if plan.hops:
        out.print(
            table(
                ["hop at", "tensors ", "MB", "channel ", "codec ", "ms", "why "],
                [
                    [
                        str(h.position),
                        ", ".join(h.tensors) + (f" + {len(h.side)} request constants" if h.side else ""),
                        megabytes(h.bytes),
                        h.channel,
                        h.codec,
                        f"{h.time_ms:.2f}",
                        h.why,
                    ]
                    for h in plan.hops
                ],
            )
        )
    out.print(
        table(
            ["constraint", "limit", "used", "slack", "unit "],
            [
                [s.constraint, f"{s.limit:g}", _used(s.used, s.unit), _used(s.limit - s.used, s.unit), s.unit]
                for s in plan.slack
            ],
        )
    )
    if plan.losers:
        out.print(
            table(
                ["turned down", "stages", "ms", "$ per million", "because "],
                [
                    [x.candidate, str(x.stages), f"{x.latency_ms:.1f}", digits(x.cost_usd_per_million, 3), x.why]
                    for x in plan.losers
                ],
            )
        )


def _rows(shown: Sequence[Column], plans: Sequence[PlanRecord]) -> Table:
    return table([c.name + " " * c.is_text for c in shown], [[c.of(p) for c in shown] for p in plans])


def show_comparison(record: Comparison) -> None:
    """The run record as a table, the cheapest first line of the reader's eye: cost, then latency, then memory."""
    out = console()
    label = "limits enforced" if not record.limits_reason else f"limits NOT enforced ({record.limits_reason})"
    batch = f", batch {record.batch}" if record.batch > 1 else ""
    out.print(
        f"[bold]{escape(record.model)} on {record.platform}[/bold]{batch}, {record.machine.cpu}, {record.date}, {label}"
    )
    out.print(_rows(columns(record), record.plans))
    on_nodes = [p for p in record.plans if p.packing]
    if on_nodes:
        out.print(_rows(NODE_COLUMNS, on_nodes))
    paces = [p.slowdown for p in record.plans if p.slowdown is not None]
    if any(abs(pace - 1) > TELLING for pace in paces):
        low, high = (f"{pace:.0%}" for pace in (min(paces), max(paces)))
        much = low if low == high else f"{low} to {high}"
        out.print(f"By known loads, work took {much} of what it takes at the pace of the profile.")
    for p in record.plans:
        if p.emulated:
            out.print(f"{p.planner}: emulated, {p.emulated}")
        for name, why in p.refused.items():
            out.print(f"{p.planner}: {name} is planned blocked and ran plain: {why}", markup=False)
    for name, why in record.failed.items():
        out.print(f"{name}: failed. {why}", markup=False)
