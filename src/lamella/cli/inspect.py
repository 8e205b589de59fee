"""`lamella inspect`: what a model is made of and where it can be divided."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.markup import escape

from lamella.cli.options import Json, Model, Shape
from lamella.cli.prepare import loaded
from lamella.cli.show import console, megabytes, print_json, table
from lamella.graph.cuts import IDLE, Refusal, legal_cuts, plan_cuts
from lamella.graph.model import Graph
from lamella.units import Dim

DOMINANT = 0.2
"""An operator or unit with more than this share of the model's weights or FLOPs dominates it."""


class OperatorFacts(msgspec.Struct, frozen=True):
    """One operator; `dominates` is of "memory" and "time"."""

    index: int
    kind: str
    name: str
    output_shapes: dict[str, tuple[Dim, ...]]
    flops: int
    weight_bytes: int
    output_bytes: int
    dominates: tuple[str, ...]


class UnitFacts(msgspec.Struct, frozen=True):
    """Operators `first` to `last - 1`, which the planner does not divide."""

    first: int
    last: int
    flops: int
    weight_bytes: int
    live_peak_bytes: int
    dominates: tuple[str, ...]


class CutFacts(msgspec.Struct, frozen=True):
    """A legal cut before operator `position`: everything that crosses it, each with its bytes."""

    position: int
    tensors: dict[str, int]
    side: dict[str, int]
    """Request constants, such as a mask: they cross as well, and their bytes count."""
    bytes: int


class Inspection(msgspec.Struct, frozen=True):
    """`lamella inspect --json`; sizes in bytes at batch 1."""

    model: str
    hash: str
    inputs: dict[str, tuple[Dim, ...]]
    outputs: dict[str, tuple[Dim, ...]]
    operators: int
    flops: int
    weight_bytes: int
    live_peak_bytes: int
    free_batch: bool
    units: tuple[tuple[int, int], ...]
    legal_cuts: int
    refused_cuts: int
    cannot_divide: tuple[str, ...]
    per_operator: tuple[OperatorFacts, ...]
    per_unit: tuple[UnitFacts, ...]
    cuts: tuple[CutFacts, ...]


def inspect(
    model: Model,
    *,
    shape: Shape = None,
    operators: Annotated[bool, Parameter(negative="", help="List every operator.")] = False,
    cuts: Annotated[bool, Parameter(negative="", help="List every legal cut and all that crosses it.")] = False,
    json: Json = False,
) -> None:
    """What the model is made of, where it can be divided, and what cannot be divided and why."""
    graph = loaded(model, shape)
    found = examine(graph)
    if json:
        print_json(found)
        return
    _show(graph, found)
    if operators:
        _show_operators(found)
    if cuts:
        _show_cuts(found)


def examine(graph: Graph) -> Inspection:
    """Everything `inspect` says of a model."""
    cuts, refused = legal_cuts(graph)
    spans = tuple(pairwise([0, *(c.position for c in plan_cuts(graph)), len(graph.operators)]))
    size = {name: tensor.bytes_at() for name, tensor in graph.tensors.items()}
    weights = graph.weight_bytes(0, len(graph.operators))
    flops = sum(op.flops for op in graph.operators)

    def dominates(weight_bytes: int, of_flops: int) -> tuple[str, ...]:
        shares = {"memory": weight_bytes / (weights or 1), "time": of_flops / (flops or 1)}
        return tuple(what for what, share in shares.items() if share > DOMINANT)

    per_operator = []
    for op in graph.operators:
        held = graph.weight_bytes(op.index, op.index + 1)
        per_operator.append(
            OperatorFacts(
                index=op.index,
                kind=op.kind,
                name=op.name,
                output_shapes={n: graph.tensors[n].shape for n in op.outputs},
                flops=op.flops,
                weight_bytes=held,
                output_bytes=sum(size[n] for n in op.outputs),
                dominates=dominates(held, op.flops),
            )
        )
    per_unit = []
    for first, last in spans:
        held, work = graph.weight_bytes(first, last), sum(op.flops for op in graph.operators[first:last])
        per_unit.append(UnitFacts(first, last, work, held, graph.live_bytes(first, last), dominates(held, work)))
    return Inspection(
        model=graph.name,
        hash=graph.hash,
        inputs={n: graph.tensors[n].shape for n in graph.inputs},
        outputs={n: graph.tensors[n].shape for n in graph.outputs},
        operators=len(graph.operators),
        flops=flops,
        weight_bytes=weights,
        live_peak_bytes=graph.live_bytes(0, len(graph.operators)),
        free_batch=graph.batchable,
        units=spans,
        legal_cuts=len(cuts),
        refused_cuts=len(refused),
        cannot_divide=tuple(_reasons(graph, refused, len(spans))),
        per_operator=tuple(per_operator),
        per_unit=tuple(per_unit),
        cuts=tuple(
            CutFacts(c.position, {n: size[n] for n in c.tensors}, {n: size[n] for n in c.side}, c.bytes) for c in cuts
        ),
    )


def _show(graph: Graph, found: Inspection) -> None:
    out = console()
    out.print(
        f"[bold]{escape(found.model)}[/bold]: {found.operators} operators, {megabytes(found.weight_bytes)} MB of "
        f"weights, {found.flops / 1e9:.2f} GFLOP, live activations peak at {megabytes(found.live_peak_bytes)} MB, "
        f"batch axis {'free' if found.free_batch else 'bound'}"
    )
    for what, shapes in (("input ", found.inputs), ("output", found.outputs)):
        for name, shape in shapes.items():
            out.print(f"  {what} {name} {graph.tensors[name].dtype} {list(shape)}", markup=False)
    out.print(
        f"{found.legal_cuts} legal cuts, {found.refused_cuts} refused; {len(found.units)} units worth planning over:"
    )
    behind = {c.position: c for c in found.cuts}
    rows = []
    for i, unit in enumerate(found.per_unit):
        cut = behind.get(unit.last)
        kinds = dict.fromkeys(op.kind for op in found.per_operator[unit.first : unit.last])
        rows.append(
            [
                str(i),
                f"{unit.first}-{unit.last - 1}",
                "+".join(list(kinds)[:4]) + ("+..." if len(kinds) > 4 else ""),
                f"{unit.flops / 1e9:.3f}",
                megabytes(unit.weight_bytes),
                megabytes(unit.live_peak_bytes),
                f"{len(cut.tensors)}+{len(cut.side)}" if cut else "",
                megabytes(cut.bytes) if cut else "",
                _dominant(unit.dominates),
            ]
        )
    columns = ["unit", "operators", "kinds ", "GFLOP", "weights MB", "live MB", "tensors+side", "cut MB", "dominates "]
    out.print(table(columns, rows))
    for op in found.per_operator:
        if op.dominates:
            out.print(
                f"operator {op.index} ({op.kind} {op.name}) is {_dominant(op.dominates)}: "
                f"{op.weight_bytes / (found.weight_bytes or 1):.0%} of the weights, "
                f"{op.flops / (found.flops or 1):.0%} of the FLOPs",
                markup=False,
            )
    for reason in found.cannot_divide:
        out.print(f"cannot be divided: {reason}", markup=False)


def _show_operators(found: Inspection) -> None:
    rows = [
        [
            str(op.index),
            op.kind,
            op.name,
            " ".join("x".join(map(str, shape)) or "scalar" for shape in op.output_shapes.values()),
            f"{op.flops / 1e6:.3f}",
            str(op.weight_bytes),
            str(op.output_bytes),
            _dominant(op.dominates),
        ]
        for op in found.per_operator
    ]
    columns = ["operator", "kind ", "name ", "output shapes ", "MFLOP", "weight bytes", "output bytes", "dominates "]
    console().print(table(columns, rows))


def _show_cuts(found: Inspection) -> None:
    rows = [[str(c.position), str(c.bytes), _names(c.tensors), _names(c.side)] for c in found.cuts]
    columns = ["cut before operator", "bytes", "tensors (bytes) ", "side inputs (bytes) "]
    console().print(table(columns, rows))


def _names(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} ({size})" for name, size in sizes.items())


def _dominant(what: tuple[str, ...]) -> str:
    return " and ".join(what) + ("-dominant" if what else "")


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
