"""The README's table and the staircase picture, from the results of `benchmarks/twelve.py`.

`python -m benchmarks.picture` reads `benchmarks/results/twelve.json`, writes the table between the `results` marks of
README.md, and draws `docs/staircase.svg`: the memory that is allocated and billed while one request of vgg19 runs.
The picture is the report's staircase, of two plans.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.models import MODELS
from benchmarks.twelve import BASES, PLANNERS, RESULTS, Results, answer, compared, load, means, nodes
from lamella.compare.record import Comparison, PlanRecord
from lamella.report import staircase_svg

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "staircase.svg"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
DRAWN = "vgg19"
TITLE = f"Memory billed while one request of {DRAWN} runs"
OWN = "openfaas"
PLANS = ("single", "mopar")


def by_planner(record: Comparison) -> dict[str, PlanRecord]:
    """The plans of a comparison by the planner's name."""
    return {p.planner: p for p in record.plans}


def table(results: Results) -> str:
    """The README's part: what dividing saves on one's own cluster and on the clouds, date and machine."""
    own = {n: r for n in MODELS if (r := results.measured.get(f"{n} {OWN}"))}
    clouds = [c for c in PLANNERS if c != OWN and any(answer(results, n, c) for n in own)]
    head = ["model", "`ort`", "`single`", "`mopar`", "functions", "less than `ort`", "than `single`", "p50 to `ort`"]
    lines = [
        "| " + " | ".join([*head, *(f"`{cloud}`" for cloud in clouds)]) + " |",
        "|---" + "|---:" * (len(head) + len(clouds) - 1) + "|",
    ]
    for name, record in own.items():
        cells = [*_own(by_planner(record)), *(answer(results, name, cloud) for cloud in clouds)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    found = compared(own)
    if found:
        plain, alone = (means(found, base) for base in BASES)
        divided = sum(plans["mopar"].stages > 1 for plans in found)
        lines += [
            "",
            f"Geometric means of {plain.models} models, {divided} of them divided: cost **{plain.cheaper:.2f}x** below "
            f"`ort` and **{alone.cheaper:.2f}x** below `single`, p50 **{plain.p50:.3f}** of that of `ort`; resource "
            f"efficiency {plain.points:+.0f} points, {plain.relative:+.0%}. "
            + "".join(f"{line[0].upper()}{line[1:]}" for line in nodes(found)),
        ]
    lines += [
        "",
        "Cost in dollars per million requests on the rules of `openfaas`: memory-time at Lambda's price per GB-second, "
        "1 vCPU per function and at most two busy at once, one request at a time. On the right how much less `mopar` "
        "costs than `single` on the rules of the clouds, and as how many functions, in brackets as planned and not "
        "deployed. " + _circumstances(list(own.values())),
    ]
    return "\n".join(lines)


def _own(plans: Mapping[str, PlanRecord]) -> list[str]:
    """A model's cells for one's own cluster; an answer of one function is the plan of `single`, and has its figures."""
    if "single" in plans and "mopar" in plans and plans["mopar"].stages == 1:
        plans = {**plans, "mopar": plans["single"]}

    def cost(planner: str) -> float:
        return plans[planner].cost_usd_per_million if planner in plans else math.nan

    best = plans.get("mopar")
    slower = best.latency_ms.p50 / plans["ort"].latency_ms.p50 - 1 if best and "ort" in plans else math.nan
    return [
        *(_number(cost(p), "{:#.3g}") for p in ("ort", "single", "mopar")),
        str(len(best.functions)) if best else "",
        *(_number(cost(p) / cost("mopar"), "{:.2f}x") for p in ("ort", "single")),
        _number(slower, "{:+.1%}"),
    ]


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else form.format(value)


def _circumstances(records: Sequence[Comparison]) -> str:
    machine = records[0].machine
    dates = sorted({r.date for r in records})
    reasons = sorted({r.limits_reason for r in records if r.limits_reason})
    limits = f"limits **not enforced** ({'; '.join(reasons)})" if reasons else "limits enforced"
    return (
        f"Measured on {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}: {machine.cpu}, {machine.cores} cores, "
        f"onnxruntime {machine.onnxruntime}, {limits}."
    )


def fill(text: str, part: str) -> str:
    """`text` with `part` between the marks.

    Raises:
        ValueError: the marks are not there.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"no {BEGIN} ... {END}")
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{part}\n\n{END}{rest.partition(END)[2]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Write table and picture; 1 where there are no results yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args(argv)
    results = load(options.results)
    drawn = results.measured.get(f"{DRAWN} {OWN}")
    if not any(key.endswith(f" {OWN}") for key in results.measured):
        print(f"no results in {options.results} yet: run `python -m benchmarks.twelve` first", file=sys.stderr)
        return 1
    part = table(results)
    if drawn:
        part = f"![{TITLE}](docs/staircase.svg)\n\n{part}"
    options.readme.write_text(fill(options.readme.read_text(), part))
    print(f"wrote the table in {options.readme}")
    if drawn:
        options.picture.write_text(staircase_svg(drawn, TITLE, PLANS))
        print(f"wrote {options.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
