"""The README's table and the staircase picture, from the cases of `benchmarks/quality.py`.

`python -m benchmarks.picture` reads `benchmarks/results/quality`, writes the table of twelve models on `openfaas` at 1x
between the `results` marks of README.md, and draws `docs/staircase.svg`: the memory that is allocated and billed while
one request of vgg19 runs. The picture is the report's staircase, of two plans.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.models import MODELS, geometric
from benchmarks.quality import RESULTS, Campaign
from benchmarks.quality_cases import Case
from benchmarks.quality_page import machines
from lamella.compare.record import PlanRecord
from lamella.report import staircase_svg

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "staircase.svg"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
DRAWN = "vgg19"
TITLE = f"Memory billed while one request of {DRAWN} runs"
OWN, FACTOR = "openfaas", 1.0
SHOWN = ("ort", "single", "mopar", "exact")
BASES = ("ort", "single", "mopar")
"""What `exact` is held against."""


def first_set(cases: Sequence[Case]) -> list[Case]:
    """Those of one's own cluster within the latency of the single function, measured, in the order of the models."""
    found = {c.model: c for c in cases if (c.platform, c.factor) == (OWN, FACTOR) and c.of("exact")}
    return [found[name] for name in MODELS if name in found]


def table(cases: Sequence[Case]) -> str:
    """The README's part: what serving at least cost saves on one's own cluster, date and machine."""
    head = ["model", *(f"`{p}`" for p in SHOWN), "functions", *(f"less than `{b}`" for b in BASES), "p50 to `ort`"]
    lines = ["| " + " | ".join([*head, "p95 to SLO"]) + " |", "|---" + "|---:" * len(head) + "|"]
    lines += [f"| {case.model} | " + " | ".join(_cells(case)) + " |" for case in cases]
    divided = sum(len(best.functions) > 1 for case in cases if (best := case.of("exact")))
    less = [
        f"**{geometric(ratios):.2f}x** below `{base}`"
        for base in BASES
        if (ratios := [r for case in cases if (r := _ratio(case, base)) is not None])
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"Geometric means: cost {', '.join(less)}; {divided} of {len(cases)} models are divided.",
            "",
            "Cost in dollars per million requests on the rules of `openfaas`: memory-time at Lambda's price per "
            "GB-second, 1 vCPU per function and at most two busy at once, one request at a time. `mopar` and `exact` "
            "keep the 95th percentile within an SLO, that of the tuned `single`; `ort` and `single`, where they "
            "cannot, are as quick as they are. " + _circumstances(cases),
        ]
    )


def _cells(case: Case) -> list[str]:
    best, plain = case.of("exact"), case.of("ort")
    assert best
    return [
        *(f"{plan.cost_usd_per_million:#.3g}" if (plan := case.of(p)) else "" for p in SHOWN),
        str(len(best.functions)),
        *("" if (ratio := _ratio(case, base)) is None else f"{ratio:.2f}x" for base in BASES),
        f"{best.latency_ms.p50 / plain.latency_ms.p50 - 1:+.1%}" if plain else "",
        f"{best.latency_ms.p95 / case.slo_ms - 1:+.1%}",
    ]


def _ratio(case: Case, base: str) -> float | None:
    """What a base costs over `exact`; None where it has no plan."""
    best, other = case.of("exact"), case.of(base)
    return other.cost_usd_per_million / best.cost_usd_per_million if best and other else None


def _circumstances(cases: Sequence[Case]) -> str:
    records = [case.record for case in cases if case.record]
    reasons = sorted({r.limits_reason for r in records if r.limits_reason})
    limits = f"Limits **not enforced** ({'; '.join(reasons)})" if reasons else "Limits enforced"
    return f"{limits}. {machines(cases)}"


def drawing(case: Case) -> str:
    """The staircase of the single function and of `exact`."""
    plans: list[PlanRecord] = [plan for name in ("single", "exact") if (plan := case.of(name))]
    assert case.record
    return staircase_svg(case.record, TITLE, tuple(dict.fromkeys(plan.planner for plan in plans)))


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
    cases = first_set(Campaign(options.results).all())
    if not cases:
        print(f"no results in {options.results} yet: run `python -m benchmarks.quality` first", file=sys.stderr)
        return 1
    part = table(cases)
    drawn = next((case for case in cases if case.model == DRAWN), None)
    if drawn:
        part = f"![{TITLE}](docs/staircase.svg)\n\n{part}"
    options.readme.write_text(fill(options.readme.read_text(), part))
    print(f"wrote the table in {options.readme}")
    if drawn:
        options.picture.write_text(drawing(drawn))
        print(f"wrote {options.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
