"""`lamella inspect`: what a model is made of and where it can be divided."""

from __future__ import annotations

from itertools import pairwise

import msgspec

from lamella.cli.options import Json, Model, Shape, parse_shapes
from lamella.cli.show import console, megabytes, print_json, table
from lamella.graph.cuts import IDLE, Refusal, legal_cuts, plan_cuts
from lamella.graph.load import import_model
from lamella.graph.model import Graph

DOMINANT = 0.2
"""An operator with more than this share of the model's weights or FLOPs dominates it."""


class Inspection(msgspec.Struct, frozen=True):
    """`lamella inspect --json`; sizes in bytes at batch 1."""

    model: str
    hash: str
    inputs: dict[str, tuple[int | str, ...]]
    outputs: dict[str, tuple[int | str, ...]]
    operators: int
    flops: int
    weight_bytes: int
    live_peak_bytes: int
    free_batch: bool
    units: tuple[tuple[int, int], ...]
    legal_cuts: int
    refused_cuts: int
    cannot_divide: tuple[str, ...]


def inspect(model: Model, *, shape: Shape = None, json: Json = False) -> None:
    """What the model is made of, where it can be divided, and what cannot be divided and why."""
    graph = import_model(model, parse_shapes(shape))
    cuts, refused = legal_cuts(graph)
    marks = [0, *(c.position for c in plan_cuts(graph)), len(graph.operators)]
    spans = list(pairwise(marks))
    reasons = _reasons(graph, refused, len(spans))
    if json:
        print_json(
            Inspection(
                model=graph.name,
                hash=graph.hash,
                inputs={n: graph.tensors[n].shape for n in graph.inputs},
                outputs={n: graph.tensors[n].shape for n in graph.outputs},
                operators=len(graph.operators),
                flops=sum(op.flops for op in graph.operators),
                weight_bytes=graph.weight_bytes(0, len(graph.operators)),
                live_peak_bytes=graph.live_bytes(0, len(graph.operators)),
                free_batch=graph.batchable,
                units=tuple(spans),
                legal_cuts=len(cuts),
                refused_cuts=len(refused),
                cannot_divide=tuple(reasons),
            )
        )
        return
    out = console()
    out.print(
        f"[bold]{graph.name}[/bold]: {len(graph.operators)} operators, "
        f"{megabytes(graph.weight_bytes(0, len(graph.operators)))} MB of weights, "
        f"{sum(op.flops for op in graph.operators) / 1e9:.2f} GFLOP, live activations peak at "
        f"{megabytes(graph.live_bytes(0, len(graph.operators)))} MB, "
        f"batch axis {'free' if graph.batchable else 'bound'}"
    )
    for name in graph.inputs:
        out.print(f"  input  {name} {graph.tensors[name].dtype} {list(graph.tensors[name].shape)}", markup=False)
    for name in graph.outputs:
        out.print(f"  output {name} {graph.tensors[name].dtype} {list(graph.tensors[name].shape)}", markup=False)
    out.print(f"{len(cuts)} legal cuts, {len(refused)} refused; {len(spans)} units worth planning over:")
    rows = []
    by_position = {c.position: c for c in cuts}
    total_w = graph.weight_bytes(0, len(graph.operators)) or 1
    total_f = sum(op.flops for op in graph.operators) or 1
    for i, (first, last) in enumerate(spans):
        weight, flops = graph.weight_bytes(first, last), sum(op.flops for op in graph.operators[first:last])
        marks_ = [
            m for m, yes in (("memory", weight / total_w > DOMINANT), ("time", flops / total_f > DOMINANT)) if yes
        ]
        cut = by_position.get(last)
        kinds = dict.fromkeys(op.kind for op in graph.operators[first:last])
        rows.append(
            [
                str(i),
                f"{first}-{last - 1}",
                "+".join(list(kinds)[:4]) + ("+..." if len(kinds) > 4 else ""),
                f"{flops / 1e9:.3f}",
                megabytes(weight),
                megabytes(graph.live_bytes(first, last)),
                f"{len(cut.tensors)}+{len(cut.side)}" if cut else "",
                megabytes(cut.bytes) if cut else "",
                " and ".join(marks_) + ("-dominant" if marks_ else ""),
            ]
        )
    columns = ["unit", "operators", "kinds ", "GFLOP", "weights MB", "live MB", "tensors+side", "cut MB", "dominates "]
    out.print(table(columns, rows))
    for reason in reasons:
        out.print(f"cannot be divided: {reason}", markup=False)


def _reasons(graph: Graph, refused: list[Refusal], units: int) -> list[str]:
    found = []
    total = graph.weight_bytes(0, len(graph.operators)) or 1
    for op in graph.operators:
        if op.has_subgraph:
            share = graph.weight_bytes(op.index, op.index + 1) / total
            found.append(
                f"operator {op.index} ({op.kind} {op.name}) with {share:.1%} of the weights: it holds subgraphs, and "
                "is indivisible together with what it captures"
            )
    if refused:
        found.append(f"{len(refused)} positions, the first at operator {refused[0].position}: {refused[0].reason}")
    if units == 1:
        found.append(f"the model as a whole: no cut leaves more than {IDLE:.1%} of its load on each side")
    return found
