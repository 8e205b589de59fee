"""How far predictions from single operators are off: `python -m benchmarks.predictor`.

Calibrates this machine if it is not (`lamella calibrate`), then predicts the profile of each of the twelve models and
holds it against the one that `lamella profile` measured here, which is measured now where there is none. All twelve are
left out: the calibration never saw a model, only its own networks. Compared are units, slices (every run of units that
could be a function) and whole models, time on each number of threads and peak memory. Results go to
`benchmarks/results/predictor.json` after each model, so an interrupted run goes on where it stopped; tables and the
plot go to `docs/benchmarks-prediction.md` and `docs/prediction.svg`. Let the machine do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.models import KINDS, MODELS
from lamella.graph.load import import_model
from lamella.machine import Machine, this_machine
from lamella.plan.pricing.predict import SliceModel
from lamella.platforms import platform
from lamella.predictor.calibrate import calibrate
from lamella.predictor.document import Calibration
from lamella.predictor.predict import predict
from lamella.predictor.sampling import LAYOUTS
from lamella.profile.document import Profile, Variant
from lamella.profile.measure import measure

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "predictor.json"
PAGE = ROOT / "docs" / "benchmarks-prediction.md"
PLOT = ROOT / "docs" / "prediction.svg"
RULES = "openfaas"
ASKED = 0.15
"""Of the mean over models left out."""
DRAWN = 60
"""Slices of a model in the plot, at most."""
TINY_MS = 0.02
"""Units that take less are left out of the mean of units: their time is the call's."""
COLOURS = dict(zip(KINDS, ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700"), strict=True))


class Pair(msgspec.Struct, frozen=True):
    """A figure as predicted and as measured."""

    predicted: float
    measured: float

    @property
    def off(self) -> float:
        """Relative to what was measured; below nought where too little was predicted."""
        return self.predicted / self.measured - 1


class Compared(msgspec.Struct, frozen=True):
    """A model: times in ms by `LAYOUT THREADS`, memory in MB by layout."""

    units: dict[str, tuple[Pair, ...]]
    slices: dict[str, tuple[Pair, ...]]
    whole: dict[str, Pair]
    slice_memory: dict[str, tuple[Pair, ...]]
    whole_memory: dict[str, Pair]


class Results(msgspec.Struct):
    """`predictor.json`."""

    machine: Machine | None = None
    networks: int = 0
    operators: int = 0
    node_error: float = 0.0
    network_error: float = 0.0
    """Of the calibration, on its own networks left out."""
    models: dict[str, Compared] = msgspec.field(default_factory=dict)

    def save(self, path: Path = RESULTS) -> None:
        """Write the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1))


def load(path: Path = RESULTS) -> Results:
    """Earlier results; none where there is no file."""
    return msgspec.json.decode(path.read_bytes(), type=Results) if path.exists() else Results()


def run_model(name: str, calibration: Calibration) -> Compared:
    """One model of the zoo, predicted and measured."""
    graph = import_model(f"zoo:{name}")
    counts = calibration.threads
    foretold = predict(graph, calibration, threads=counts)
    found = measure(graph, threads=counts)
    models = [SliceModel(graph, p, platform(RULES)) for p in (foretold, found)]
    return compare(models[0], models[1], counts)


def compare(foretold: SliceModel, found: SliceModel, threads: Sequence[int]) -> Compared:
    """A predicted model beside the measured one."""
    spans = [(i, j) for i in range(found.units) for j in range(i + 1, found.units + 1)]

    def times(first: int, last: int, variant: Variant) -> Pair:
        layout, threads = variant.layout, variant.threads
        return Pair(*(m.compute_ms(first, last, layout=layout, threads=threads) for m in (foretold, found)))

    def memory(first: int, last: int, variant: Variant) -> Pair:
        return Pair(*(m.memory_mb(first, last, layout=variant.layout)[0] for m in (foretold, found)))

    ways = [Variant(1, layout, n) for layout in LAYOUTS for n in threads]
    held = [Variant(1, layout, 1) for layout in LAYOUTS]
    return Compared(
        units={_key(v): tuple(_units(foretold.profile, found.profile, v)) for v in ways},
        slices={_key(v): tuple(times(i, j, v) for i, j in spans) for v in ways},
        whole={_key(v): times(0, found.units, v) for v in ways},
        slice_memory={v.layout: tuple(memory(i, j, v) for i, j in spans) for v in held},
        whole_memory={v.layout: memory(0, found.units, v) for v in held},
    )


def _key(variant: Variant) -> str:
    return f"{variant.layout} {variant.threads}"


def _units(foretold: Profile, found: Profile, variant: Variant) -> Iterable[Pair]:
    for a, b in zip(foretold.units, found.units, strict=True):
        yield Pair(*(next(t.median_ms for t in u.times if t.variant == variant) for u in (a, b)))


def mean_off(pairs: Iterable[Pair], least: float = 0.0) -> float:
    """Mean absolute error of the figures of at least that size; nought where there is none."""
    offs = [abs(p.off) for p in pairs if p.measured >= least]
    return float(np.mean(offs)) if offs else 0.0


def page(results: Results) -> str:
    """The page."""
    head = [
        "# Prediction",
        "",
        "What `lamella profile --predicted` says of a model it never ran, beside what `lamella profile` measured: mean "
        "absolute errors, and of whole models the error with its sign. The calibration behind it "
        "([decision 24](decisions/0024-prediction.md)) knows small networks of its own and none of these models. Made "
        "by `python -m benchmarks.predictor`.",
        "",
    ]
    if not results.models or results.machine is None:
        return "\n".join([*head, "Nothing is measured yet.", ""])
    ways = list(next(iter(results.models.values())).whole)
    lines = [
        *head,
        f"{results.machine.cpu}, {results.machine.cores} cores, onnxruntime {results.machine.onnxruntime}; "
        f"{results.operators} operators in {results.networks} networks, {results.node_error:.0%} off on operators and "
        f"{results.network_error:.0%} on networks left out.",
        "",
        *finding(results, ways),
        "",
        "![predicted against measured, of slices](prediction.svg)",
        "",
        "## Time",
        "",
        "| model | " + " | ".join(f"{what}, {way}" for way in ways for what in ("units", "slices", "whole")) + " |",
        "|---" + "|---:" * (3 * len(ways)) + "|",
    ]
    for name, one in results.models.items():
        cells = [
            cell
            for way in ways
            for cell in (
                f"{mean_off(one.units[way], TINY_MS):.0%}",
                f"{mean_off(one.slices[way]):.0%}",
                f"{one.whole[way].off:+.0%}",
            )
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"The columns say layout and threads. Units below {TINY_MS:g} ms are not counted.",
        "",
        "## Memory",
        "",
        "| model | " + " | ".join(f"{what}, {layout}" for layout in LAYOUTS for what in ("slices", "whole")) + " |",
        "|---" + "|---:" * (2 * len(LAYOUTS)) + "|",
    ]
    for name, one in results.models.items():
        cells = [
            cell
            for layout in LAYOUTS
            for cell in (f"{mean_off(one.slice_memory[layout]):.1%}", f"{one.whole_memory[layout].off:+.1%}")
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def finding(results: Results, ways: Sequence[str]) -> list[str]:
    """Means over models, and whether they are what was asked."""
    lines = [f"Means over {len(results.models)} models, all left out; asked were at most {ASKED:.0%}:", ""]
    for way in ways:
        whole = mean_off(m.whole[way] for m in results.models.values())
        slices = float(np.mean([mean_off(m.slices[way]) for m in results.models.values()]))
        verdict = "kept" if max(whole, slices) <= ASKED else "missed"
        lines.append(f"- time, {way}: whole models {whole:.0%}, slices {slices:.0%}: {verdict}")
    for layout in LAYOUTS:
        whole = mean_off(m.whole_memory[layout] for m in results.models.values())
        slices = float(np.mean([mean_off(m.slice_memory[layout]) for m in results.models.values()]))
        verdict = "kept" if max(whole, slices) <= ASKED else "missed"
        lines.append(f"- memory, {layout}: whole models {whole:.1%}, slices {slices:.1%}: {verdict}")
    return lines


WIDTH, HEIGHT, EDGE = 460, 430, 56


def plot(results: Results, way: str = "plain 1") -> str:
    """Slices' predicted over measured time, both axes logarithmic; the diagonal, and dashed what was asked."""
    models = {name: _some(one.slices[way]) for name, one in results.models.items()}
    values = [v for pairs in models.values() for p in pairs for v in (p.predicted, p.measured)]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

    def across(value: float) -> float:
        return EDGE + (math.log10(value) - low) / (high - low) * (WIDTH - EDGE - 12)

    def up(value: float) -> float:
        return HEIGHT - EDGE - (math.log10(value) - low) / (high - low) * (HEIGHT - EDGE - 40)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="11" role="img"><title>Predicted against measured time of slices, {way} thread</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    ends = 10.0**low, 10.0**high
    for share, dash in ((1.0, ""), (1 + ASKED, "4 3"), (1 - ASKED, "4 3")):
        a, b = max(ends[0], ends[0] / share), min(ends[1], ends[1] / share)
        parts.append(
            f'<line x1="{across(a):.1f}" y1="{up(a * share):.1f}" x2="{across(b):.1f}" y2="{up(b * share):.1f}" '
            f'stroke="#888" stroke-dasharray="{dash}"/>'
        )
    for power in range(low, high + 1):
        value = 10.0**power
        parts.append(f'<text x="{across(value):.1f}" y="{HEIGHT - EDGE + 16}" text-anchor="middle">{value:g}</text>')
        parts.append(f'<text x="{EDGE - 6}" y="{up(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for name, pairs in models.items():
        colour = next((COLOURS[kind] for kind, names in KINDS.items() if name in names), "#444")
        for p in pairs:
            parts.append(
                f'<circle cx="{across(p.measured):.1f}" cy="{up(p.predicted):.1f}" r="2.2" fill="{colour}" '
                f'fill-opacity=".45"><title>{name}: {p.measured:.3g} ms, predicted {p.predicted:.3g}</title></circle>'
            )
    for k, (kind, colour) in enumerate(COLOURS.items()):
        parts.append(f'<circle cx="{EDGE + 12}" cy="{22 + 15 * k}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{EDGE + 22}" y="{26 + 15 * k}">{kind}</text>')
    middle = (WIDTH + EDGE) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 16}" text-anchor="middle">measured, ms</text>')
    turned = f"translate(14 {HEIGHT / 2}) rotate(-90)"
    parts.append(f'<text transform="{turned}" text-anchor="middle">predicted, ms</text></svg>')
    return "\n".join(parts) + "\n"


def _some(pairs: Sequence[Pair]) -> list[Pair]:
    """A few, evenly over their times."""
    ordered = sorted(pairs, key=lambda p: p.measured)
    picked = np.linspace(0, len(ordered) - 1, min(DRAWN, len(ordered))).astype(int)
    return [ordered[k] for k in dict.fromkeys(picked.tolist())]


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--budget-s", type=float, default=300.0, help="of the calibration")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--page-only", action="store_true", help="only write the page from earlier results")
    asked = parser.parse_args()
    results = Results() if asked.fresh else load()
    if not asked.page_only:
        known = calibrate(budget_s=asked.budget_s, progress=lambda share, what: print(f"{share:4.0%} {what}"))
        results.machine, results.networks, results.operators = this_machine(), known.networks, known.operators
        results.node_error, results.network_error = known.error, known.network_error
        for name in asked.models.split(","):
            if name not in results.models:
                results.models[name] = run_model(name, known)
                results.save()
                print(name, {way: f"{p.off:+.0%}" for way, p in results.models[name].whole.items()}, flush=True)
    PAGE.write_text(page(results))
    if results.models:
        PLOT.write_text(plot(results))


if __name__ == "__main__":
    main()
