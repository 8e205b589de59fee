"""`lamella diff`: what changed between two plans."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from lamella.cli.options import Json
from lamella.cli.show import console, print_json, table
from lamella.errors import LamellaError, LawBroken
from lamella.graph.divide import Range, shard
from lamella.graph.load import import_model
from lamella.plan.document import Plan, read_plan
from lamella.plan.explanation.diff import Difference, Segment
from lamella.plan.explanation.diff import diff as difference
from lamella.plan.layout import model_ranges


def diff(before: Path, after: Path, *, json: Json = False) -> None:
    """What changed from the plan BEFORE to the plan AFTER, and what each change does to cost and latency.

    The model is only asked for where shards differ: without it the totals are compared.
    """
    plans = read_plan(before), read_plan(after)
    note, spans = "", None
    if plans[0].shards != plans[1].shards and plans[0].model.hash == plans[1].model.hash:
        try:
            spans = _spans(plans[0]), _spans(plans[1])
        except LamellaError as error:
            note = f"shards differ, and where they lie only the model tells: {error.message}"
    found = difference(*plans, (str(before), str(after)), spans)
    if json:
        print_json(found)
    else:
        show(found, note)


def _spans(plan: Plan) -> list[Range]:
    """The operators of the model that each function has a part in."""
    graph = import_model(plan.model.given, plan.model.shapes)
    if graph.hash != plan.model.hash:
        raise LawBroken(f"the plan is for model {plan.model.hash[:12]}, {graph.name} is {graph.hash[:12]}")
    return model_ranges([(f.first, f.last) for f in plan.functions], shard(graph, plan.shards))


def show(found: Difference, note: str) -> None:
    """Fields, segments, totals."""
    out = console()
    out.print(f"[bold]from {escape(found.before)} to {escape(found.after)}[/bold]")
    if found.same:
        out.print("the plans do not differ")
    if note:
        out.print(f"note: {note}", markup=False)
    elif not found.comparable:
        out.print("note: of different models, so only the totals are compared")
    if found.changes:
        out.print(table(["", "before ", "after "], [[c.what, c.before, c.after] for c in found.changes]))
    changed = [s for s in found.segments if s.changes]
    if changed:
        columns = ["operators", "before ", "after ", "MB", "ms", "$ per million", "what "]
        out.print(table(columns, [_row(s) for s in changed]))
        kept = len(found.segments) - len(changed)
        if kept:
            out.print(f"{kept} more segment{'s' * (kept > 1)} between common borders did not change")
    was, now = found.was, found.now
    out.print(
        table(
            ["in all", "before", "after", "change", "share"],
            [
                _total("stages", was.stages, now.stages, "d"),
                _total("functions", was.functions, now.functions, "d"),
                _total("MB", was.memory_mb, now.memory_mb, ".0f"),
                _total("ms", was.latency_ms, now.latency_ms, ".2f"),
                _total("of it in no segment, ms", was.rest_ms, now.rest_ms, ".2f"),
                _total("$ per million", was.cost_usd_per_million, now.cost_usd_per_million, ".4f"),
            ],
        )
    )


def _row(s: Segment) -> list[str]:
    a, b = s.before, s.after
    return [
        f"{s.first}-{s.last - 1}",
        a.said,
        b.said,
        f"{b.memory_mb - a.memory_mb:+d}",
        f"{b.ms - a.ms:+.2f}",
        f"{b.cost_usd_per_million - a.cost_usd_per_million:+.4f}",
        "; ".join(s.changes),
    ]


def _total(what: str, was: float, now: float, digits: str) -> list[str]:
    share = f"{now / was - 1:+.1%}" if was > 0 and abs(now / was - 1) >= 0.0005 else ""
    change = f"{now - was:+{digits}}" if now != was else ""
    return [what, f"{was:{digits}}", f"{now:{digits}}", change, share]
