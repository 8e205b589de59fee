"""What each codec makes of real models' tensors: `python benchmarks/codecs.py`.

For the pretrained models of the zoo, at their widest cuts: bytes, ratio, speed, error on the tensor and on the model's
output, for every codec, the learned ones among them; then which is quickest over links of four speeds, and the speed
of the link below which each begins to pay. Requests are random values in the inputs' ranges, other ones to fit on than
to judge by: the errors are those of such requests. Results go to `benchmarks/results/codecs.json` after each model,
the tables to `docs/benchmarks-codecs.md`. Let the machine do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
from pathlib import Path

import msgspec
import numpy as np

from lamella.codecs import Codecs, installed, lossless
from lamella.graph.cuts import Cut, plan_cuts
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.machine import Machine, on_cores, this_machine
from lamella.plan.validation.judge import Coded, Judge, Validation
from lamella.plan.validation.metrics import METRICS
from lamella.profile.codecs import codec_result
from lamella.profile.fitting import RATIOS, activations

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "codecs.json"
PAGE = ROOT / "docs" / "benchmarks-codecs.md"
MODELS = "minilm-int8 rapidocr-det rapidocr-rec rapidocr-cls dnsmos dnsmos-p808 silero-vad magika".split()
CUTS = 2
FITTED, JUDGED = 8, 4
LINKS = {"10 Mbit/s": 10.0, "100 Mbit/s": 100.0, "1 Gbit/s": 1e3, "10 Gbit/s": 1e4}
BOUND = METRICS["max_rel"].bound


class Row(msgspec.Struct, frozen=True):
    """One codec at one cut."""

    codec: str
    ratio: float
    encode_ms: float
    decode_ms: float
    tensor_error: float
    output_error: float
    """Over the output's range, of the worst request."""


class CutResult(msgspec.Struct, frozen=True):
    """Every codec at one cut."""

    position: int
    tensors: dict[str, tuple[int, ...]]
    bytes: int
    rows: tuple[Row, ...]


class Result(msgspec.Struct, frozen=True):
    """One model."""

    date: str
    machine: Machine
    cuts: tuple[CutResult, ...]


def widest(graph: Graph) -> list[Cut]:
    """The planning cuts that most bytes cross, each size once, in order."""
    sizes: dict[int, Cut] = {}
    for cut in plan_cuts(graph):
        sizes.setdefault(cut.bytes, cut)
    return sorted((sizes[size] for size in sorted(sizes, reverse=True)[:CUTS]), key=lambda c: c.position)


def run_model(name: str) -> Result:
    """Every codec at the widest cuts of a model."""
    graph = import_model(f"zoo:{name}")
    rng = np.random.default_rng(0)
    requests = [request(graph, rng) for _ in range(FITTED + JUDGED)]
    asked = Validation(
        source="random",
        sha256="",
        judged=tuple(requests[:JUDGED]),
        fitted=tuple(requests[JUDGED:]),
        fitted_source="random",
        metric=METRICS["max_rel"],
        bound=math.inf,
    )
    judge = Judge(graph, asked)
    found = tuple(measure(graph, judge, cut) for cut in widest(graph))
    return Result(datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"), this_machine(), found)


def measure(graph: Graph, judge: Judge, cut: Cut) -> CutResult:
    """Every codec at one cut."""
    names = (*cut.tensors, *cut.side)
    made = [n for n in names if n not in graph.inputs]
    values = judge.asked.judged[0] | next(activations(graph, made, judge.asked.judged[:1]))
    learned = [f"pca-{ratio}" for ratio in RATIOS] if judge.bases(made, 1) else []
    rows = []
    for name in (*installed(), *learned):
        coded = Coded(cut.position, name, tuple(made))
        codecs = judge.codecs(coded) if name in learned else Codecs()
        result = codec_result(name, cut, values, 1, codecs)
        error = judge.verdict([coded]).value
        rows.append(Row(name, result.ratio, result.encode_ms, result.decode_ms, result.max_rel, error))
    shapes = {n: values[n].shape for n in names}
    return CutResult(cut.position, shapes, sum(values[n].nbytes for n in names), tuple(rows))


def transfer_ms(cut: CutResult, row: Row, mbit_per_s: float) -> float:
    """Encoding, the link without its latency, decoding."""
    return cut.bytes / row.ratio * 8 / (mbit_per_s * 1000) + row.encode_ms + row.decode_ms


def pays_below(cut: CutResult, row: Row) -> float:
    """The speed of the link, Mbit/s, at which the bytes saved take as long as the work; 0 where none are."""
    plain = cut.rows[0]
    work = row.encode_ms + row.decode_ms - plain.encode_ms - plain.decode_ms
    saved = cut.bytes * (1 - 1 / row.ratio)
    if saved <= 0:
        return 0.0
    return saved * 8 / (work * 1000) if work > 0 else math.inf


def rate(cut: CutResult, ms: float) -> str:
    """MB/s of plain bytes."""
    return f"{cut.bytes / 2**20 / (ms / 1000):,.0f}" if ms > 0.001 else ""


def speed(mbit_per_s: float) -> str:
    """A link's speed as one reads it."""
    if mbit_per_s == math.inf:
        return "any"
    return f"{mbit_per_s / 1000:.1f} Gbit/s" if mbit_per_s >= 1000 else f"{mbit_per_s:.0f} Mbit/s"


def page(results: dict[str, Result]) -> str:
    """`docs/benchmarks-codecs.md`."""
    machine = next(iter(results.values())).machine
    lines = [
        "# Codecs",
        "",
        f"Printed by `benchmarks/codecs.py` on {max(r.date for r in results.values())}: {machine.cpu}, one core, "
        f"onnxruntime {machine.onnxruntime}. Each model's {CUTS} widest planning cuts, batch 1. Requests are random "
        f"values in the inputs' ranges, {FITTED} to fit the learned codecs (`pca-K`) on, {JUDGED} others for the "
        "errors: real ones are more regular, so the learned codecs may do better on yours than here. Errors are the "
        "largest over the range, of the tensor and of the model's output. A codec pays on links slower than `pays "
        "below`, where the bytes saved take longer than encoding and decoding. The decisions are "
        "[11](decisions/0011-codecs.md) and [14](decisions/0014-lossy-codecs.md).",
        "",
        "| model | cut | MB | codec | ratio | encode MB/s | decode MB/s | tensor error | output error | pays below |",
        "|" + "---|" * 10,
    ]
    for name, result in results.items():
        for cut in result.cuts:
            for row in cut.rows:
                if row.codec == "none":
                    continue
                cells = [
                    name,
                    str(cut.position),
                    f"{cut.bytes / 2**20:.2f}",
                    row.codec,
                    f"{row.ratio:.2f}",
                    rate(cut, row.encode_ms),
                    rate(cut, row.decode_ms),
                    f"{row.tensor_error:.0e}" if row.tensor_error else "0",
                    f"{row.output_error:.0e}" if row.output_error else "0",
                    speed(pays_below(cut, row)) if pays_below(cut, row) else "never",
                ]
                lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "## The quickest",
        "",
        "Per link the quickest codec without loss, then the quickest of all whose output error is at most "
        f"{BOUND:g}; ms of encoding, transfer and decoding, without the link's latency.",
        "",
        f"| model | cut | {' | '.join(LINKS)} |",
        "|" + "---|" * (2 + len(LINKS)),
    ]
    for name, result in results.items():
        for cut in result.cuts:
            cells = [name, str(cut.position), *(quickest(cut, link) for link in LINKS.values())]
            lines.append(f"| {' | '.join(cells)} |")
    without = [name for name, result in results.items() if not result.cuts]
    if without:
        lines += ["", f"Without a cut: {', '.join(without)}."]
    return "\n".join(lines) + "\n"


def quickest(cut: CutResult, mbit_per_s: float) -> str:
    """Of those without loss, and of all whose output error is within the default bound; with what they take, ms."""

    def best(rows: list[Row]) -> str:
        row = min(rows, key=lambda r: transfer_ms(cut, r, mbit_per_s))
        return f"{row.codec} {transfer_ms(cut, row, mbit_per_s):.2f}"

    plain = [r for r in cut.rows if lossless(r.codec)]
    bounded = [r for r in cut.rows if r.output_error <= BOUND]
    return f"{best(plain)}; {best(bounded)}"


def main() -> None:
    """Run what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    options = parser.parse_args()
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() and not options.fresh else {}
    with on_cores(1):
        for name in options.models.split(","):
            if name not in stored:
                stored[name] = json.loads(msgspec.json.encode(run_model(name)))
                RESULTS.write_text(json.dumps(stored, indent=1))
                print(name, *(f"{c['position']}: {c['bytes']} bytes" for c in stored[name]["cuts"]), flush=True)
    PAGE.write_text(page({n: msgspec.convert(r, Result) for n, r in stored.items()}))
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
