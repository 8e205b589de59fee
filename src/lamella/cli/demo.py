"""`lamella demo`: the main job, start to end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lamella.cli.options import positive, progress
from lamella.cli.show import console, megabytes, show_comparison
from lamella.compare.compare import Settings, compare
from lamella.compare.record import check_answers
from lamella.demo.reading import picture, read
from lamella.errors import LawBroken
from lamella.graph.load import import_model
from lamella.platforms import platform
from lamella.profile.measure import measure

BIG = "zoo:vgg19"
SLICES = 4


def demo(
    *,
    image: Annotated[Path | None, Parameter(help="Your own picture of one line of text.")] = None,
    model: Annotated[str, Parameter(help="What is served three ways.")] = BIG,
    requests: Annotated[int, Parameter(help="Requests per plan in the comparison.")] = 24,
) -> None:
    """Read a picture with a real model whole and in slices, then serve vgg19 three ways under enforced limits."""
    positive(requests=requests)
    begun = time.monotonic()
    read_twice(image)
    serve_three_ways(model, requests)
    console().print(
        f"lamella plan {model} --platform openfaas  says why. ({time.monotonic() - begun:.0f} s)", markup=False
    )


def read_twice(image: Path | None) -> None:
    """Read a picture with the recogniser as one function and as slices; both have to read the same."""
    out = console()
    out.print("[bold]1. The same answer.[/bold] A pretrained text recogniser (PP-OCRv6) reads a picture,")
    out.print("   as one function and as slices, each a process of its own with shared memory between them.")
    pixels = picture(image)
    readings = [read(pixels, 1), read(pixels, SLICES)]
    for reading in readings:
        sizes = " + ".join(f"{mb:.1f}" for mb in reading.weights_mb)
        out.print(
            f"   {reading.functions} function(s), {sizes} MB of weights, {reading.latency_ms:.1f} ms: '{reading.text}'",
            markup=False,
        )
    if readings[0].text != readings[1].text:
        raise LawBroken("the slices read something else than the whole model")
    out.print("   Both read the same.\n")


def serve_three_ways(model: str, requests: int) -> None:
    """Compare today's deployment, our package whole, and divided, on the rules of openfaas; print what is gained."""
    out = console()
    with progress(f"preparing {model}") as move:
        move(0.0, "making the model")
        graph = import_model(model)
    weights = megabytes(graph.weight_bytes(0, len(graph.operators)))
    out.print(f"[bold]2. A fraction of the cost.[/bold] {graph.name} ({weights} MB) as it is deployed today (ort),")
    out.print("   as one function of our own package (single), and divided (exact). Same allocation rule for all,")
    out.print("   priced by memory-time at Lambda's price per GB-second.")
    with progress("profile") as move:
        profile = measure(graph, budget_s=4.0, progress=move, shards=True)
    settings = Settings(given=model, planners=("ort", "single", "exact"), requests=requests)
    with progress("compare") as move:
        record = compare(graph, profile, platform("openfaas"), settings, progress=move)
    show_comparison(record)
    check_answers(record)
    by_name = {p.planner: p for p in record.plans}
    best = by_name.pop("exact", None)
    if best is None or not by_name:
        return  # the table says who failed, and why
    gains = [
        f"{p.cost_usd_per_million / best.cost_usd_per_million:.1f}x less than {name}" for name, p in by_name.items()
    ]
    name, beside = by_name.popitem()
    out.print(
        f"\nAs {len(best.functions)} function(s) {graph.name} costs {' and '.join(gains)}, at "
        f"{best.latency_ms.p50 / beside.latency_ms.p50 - 1:+.1%} latency beside {name}; answers differ by "
        f"{best.output_error.max_rel:.0e} of their range."
    )
