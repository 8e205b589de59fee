"""`lamella demo`: the main job, start to end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lamella.cli.options import progress
from lamella.cli.show import console, show_comparison
from lamella.compare.compare import Settings, compare
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
    requests: Annotated[int, Parameter(help="Requests per plan in the comparison.")] = 24,
) -> None:
    """Read a picture with a real model whole and in slices, then serve vgg19 three ways under enforced limits."""
    begun = time.monotonic()
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
    out.print("[bold]2. A fraction of the cost.[/bold] vgg19 (575 MB, random weights) as it is deployed today (ort),")
    out.print("   as one function of our own package (single), and divided (mopar). Same allocation rule for all,")
    out.print("   priced by memory-time at Lambda's price per GB-second.")
    with progress("preparing vgg19") as move:
        move(0.0, "making the model")
        graph = import_model(BIG)
    with progress("profile") as move:
        profile = measure(graph, budget_s=4.0, progress=move)
    with progress("compare") as move:
        record = compare(
            graph,
            profile,
            platform("openfaas"),
            Settings(given=BIG, planners=("ort", "single", "mopar"), requests=requests),
            progress=move,
        )
    show_comparison(record)
    by_name = {p.planner: p for p in record.plans}
    best = by_name["mopar"]
    gains = [
        f"{by_name[n].cost_usd_per_million / best.cost_usd_per_million:.1f}x less than {n}" for n in ("ort", "single")
    ]
    slower = best.latency_ms.p50 / by_name["single"].latency_ms.p50 - 1
    out.print(
        f"\nDivided into {best.stages} functions vgg19 costs {gains[0]} and {gains[1]}, at {slower:+.1%} latency; "
        f"answers differ by {best.output_error.max_rel:.0e} of their range."
    )
    out.print(f"lamella plan {BIG} --platform openfaas  says why. ({time.monotonic() - begun:.0f} s)", markup=False)
