"""The README's table and the staircase picture, from the results of `make bench`.

`python benchmarks/picture.py` reads `benchmarks/results/main_job.json`, writes the table between the `results` marks of
README.md, and draws `docs/staircase.svg`: the memory that is allocated and billed while one request of vgg19 runs.
The picture is put together from strings: a plotting library would be a dependency for a dozen rectangles.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import msgspec

from lamella.compare.record import Comparison, FunctionRecord, PlanRecord

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "main_job.json"
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "staircase.svg"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
DRAWN = "vgg19"
TITLE = f"Memory billed while one request of {DRAWN} runs"
OWN, CLOUD = "openfaas", "aws-lambda"

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 72, 16, 56, 52

Scale = Callable[[float], float]


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


def staircase(record: Comparison) -> str:
    """The picture: time of one request across, memory allocated upwards; `single` behind, the slices before it."""
    plans = by_planner(record)
    whole, slices = plans["single"], plans["mopar"]
    ends = list(accumulate(f.run_ms for f in slices.functions))
    most_ms = max(ends[-1], sum(f.run_ms for f in whole.functions))
    most_mb = max(f.memory_mb for p in (whole, slices) for f in p.functions)
    step_ms, step_mb = _step(most_ms, 6), _step(most_mb, 5)
    top_mb = math.ceil(most_mb / step_mb) * step_mb

    def x(ms: float) -> float:
        return LEFT + ms / (most_ms * 1.02) * (WIDTH - LEFT - RIGHT)

    def y(mb: float) -> float:
        return HEIGHT - BOTTOM - mb / top_mb * (HEIGHT - TOP - BOTTOM)

    parts = [_line(LEFT, y(mb), WIDTH - RIGHT, y(mb), "grid") for mb in _ticks(top_mb, step_mb)]
    parts += [_text(LEFT - 8, y(mb) + 4, f"{mb:g}", "end") for mb in _ticks(top_mb, step_mb)]
    parts += [_text(x(ms), y(0) + 18, f"{ms:g}", "middle") for ms in _ticks(most_ms, step_ms)]
    parts.append(_steps(whole.functions, x, y, "single"))
    parts.append(_steps(slices.functions, x, y, "slices"))
    for f, begin in zip(slices.functions, [0.0, *ends], strict=False):
        if x(begin + f.run_ms) - x(begin) > 44:
            parts.append(
                _text((x(begin) + x(begin + f.run_ms)) / 2, y(f.memory_mb) + 15, f"{f.memory_mb} MB", "middle")
            )
    parts += [
        _line(LEFT, y(0), WIDTH - RIGHT, y(0), "axis"),
        _line(LEFT, y(0), LEFT, TOP, "axis"),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "time of one request, ms", "middle"),
        f'<text transform="translate(16 {(TOP + y(0)) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        "memory allocated, MB</text>",
        _legend(0, "single", f"one function: {whole.memory_time_mb_s.billed:.0f} MB-s billed"),
        _legend(1, "slices", f"{slices.stages} functions: {slices.memory_time_mb_s.billed:.0f} MB-s billed"),
    ]
    return SVG.format(width=WIDTH, height=HEIGHT, left=LEFT, title=TITLE, body="\n".join(parts))


SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">
<title>{title}</title>
<style>
  text {{ font: 13px system-ui, sans-serif; fill: #24292f; }}
  .title {{ font-weight: 600; font-size: 15px; }}
  .axis {{ stroke: #57606a; }}
  .grid {{ stroke: #57606a; stroke-opacity: 0.2; }}
  .single {{ fill: #8c959f; fill-opacity: 0.3; stroke: #57606a; stroke-dasharray: 5 3; }}
  .slices {{ fill: #0a7d6f; fill-opacity: 0.35; stroke: #0a7d6f; stroke-width: 1.5; }}
  @media (prefers-color-scheme: dark) {{
    text {{ fill: #e6edf3; }}
    .axis, .grid, .single {{ stroke: #9da7b1; }}
    .slices {{ fill: #2dd4bf; stroke: #2dd4bf; }}
  }}
</style>
<text class="title" x="{left}" y="20">{title}</text>
{body}
</svg>
"""


def _steps(functions: Sequence[FunctionRecord], x: Scale, y: Scale, kind: str) -> str:
    """A closed outline over the functions, one after another."""
    at, points = 0.0, [(x(0), y(0))]
    for f in functions:
        points += [(x(at), y(f.memory_mb)), (x(at + f.run_ms), y(f.memory_mb))]
        at += f.run_ms
    points.append((x(at), y(0)))
    return f'<path class="{kind}" d="M' + " L".join(f"{a:.1f} {b:.1f}" for a, b in points) + ' Z"/>'


def _legend(index: int, kind: str, text: str) -> str:
    left = LEFT + index * 290
    return f'<rect class="{kind}" x="{left}" y="32" width="18" height="12"/>' + _text(left + 26, 43, text, "start")


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _step(most: float, wanted: int) -> float:
    """A round distance of ticks, 1, 2 or 5 times a power of ten, for about `wanted` of them."""
    rough = most / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(m for m in (1, 2, 5, 10) if m * power >= rough)


def _ticks(most: float, step: float) -> list[float]:
    return [i * step for i in range(int(most / step + 1e-9) + 1)]


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
        options.picture.write_text(staircase(drawn))
        print(f"wrote {options.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
