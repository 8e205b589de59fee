"""The README's table and the staircase picture, from the results of `make bench`.

`python benchmarks/picture.py` reads `benchmarks/results/main_job.json`, writes the table between the `results` marks of
README.md, and draws `docs/staircase.svg`: the memory that is allocated and billed while one request of vgg19 runs.
The picture is the report's staircase, of two plans.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from lamella.compare.record import Comparison, PlanRecord
from lamella.report import staircase_svg

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "main_job.json"
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "staircase.svg"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
DRAWN = "vgg19"
TITLE = f"Memory billed while one request of {DRAWN} runs"
OWN, CLOUD = "openfaas", "aws-lambda"
PLANS = ("single", "mopar")


def load(path: Path) -> dict[str, Comparison]:
    """Comparisons by `MODEL PLATFORM`."""
    stored = json.loads(path.read_text())["comparisons"]
    return {key: msgspec.convert(value, Comparison) for key, value in stored.items()}


def by_planner(record: Comparison) -> dict[str, PlanRecord]:
    """The plans of a comparison by the planner's name."""
    return {p.planner: p for p in record.plans}


def table(results: Mapping[str, Comparison]) -> str:
    """The README's part: a table for the own cluster, a sentence for the cloud, date and machine."""
    own = {key.rpartition(" ")[0]: r for key, r in results.items() if key.endswith(f" {OWN}")}
    lines = [
        "| model | `ort` | `single` | `mopar` | functions | less than `ort` | less than `single` | p50 to `single` |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *(_row(name, by_planner(record)) for name, record in own.items()),
        "",
        "Cost in dollars per million requests on the rules of `openfaas`: memory-time at Lambda's price per GB-second, "
        "1 vCPU per function, one request at a time, plans without shards. " + _circumstances(list(own.values())),
    ]
    cloud = {key.rpartition(" ")[0]: r for key, r in results.items() if key.endswith(f" {CLOUD}")}
    if cloud:
        lines += ["", _cloud(cloud)]
    return "\n".join(lines)


def _row(name: str, plans: Mapping[str, PlanRecord]) -> str:
    def cost(planner: str) -> float:
        return plans[planner].cost_usd_per_million if planner in plans else math.nan

    best = plans.get("mopar")
    against = [_number(cost(p) / cost("mopar"), "{:.2f}x") for p in ("ort", "single")]
    slower = best.latency_ms.p50 / plans["single"].latency_ms.p50 - 1 if best and "single" in plans else math.nan
    cells = [_number(cost(p), "{:#.3g}") for p in ("ort", "single", "mopar")]
    cells += [str(best.stages) if best else "", *against, _number(slower, "{:+.1%}")]
    return f"| {name} | " + " | ".join(cells) + " |"


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


def _cloud(records: Mapping[str, Comparison]) -> str:
    """What the answer was on the cloud's rules."""
    stages = {n: by_planner(r)["mopar"].stages for n, r in records.items() if "mopar" in by_planner(r)}
    divided = [f"{n} ({k} functions)" for n, k in stages.items() if k > 1]
    whole = [n for n, k in stages.items() if k == 1]
    said = "; ".join(
        f"{what} for {', '.join(names)}" for what, names in (("one function", whole), ("divided", divided)) if names
    )
    return (
        f"On the rules of `{CLOUD}`, where memory buys CPU and a hop is emulated by the catalogue, the answer was: "
        f"{said}."
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
    results = load(options.results) if options.results.exists() else {}
    if not any(key.endswith(f" {OWN}") for key in results):
        print(f"no results in {options.results} yet: run `make bench` first", file=sys.stderr)
        return 1
    drawn = results.get(f"{DRAWN} {OWN}")
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
