"""What a node has to do, by hand."""

from __future__ import annotations

import math

import pytest

from lamella.predictor.footprint import footprint
from lamella.predictor.optimised import Node, Operand
from lamella.predictor.work import ANY, work_of
from lamella.units import MB


def operand(*shape: int, constant: bool = False, name: str = "") -> Operand:
    """A float32 tensor."""
    return Operand(name or f"t{shape}{constant}", shape, 4 * math.prod(shape), constant)


def node(
    kind: str, inputs: tuple[Operand, ...], output: Operand, *, blocked: bool = False, **attributes: object
) -> Node:
    """A node with one output."""
    return Node(kind, blocked, inputs, (output,), attributes)


def test_a_convolution_multiplies_every_output_with_its_window() -> None:
    kernel = operand(64, 32, 3, 3, constant=True)
    work = work_of(node("Conv", (operand(1, 32, 14, 14), kernel), operand(1, 64, 7, 7), blocked=True, group=1))
    assert work.kind == "convolution"
    assert work.gmac == pytest.approx(64 * 7 * 7 * 32 * 9 / 1e9)
    assert work.weight_mb == pytest.approx(64 * 32 * 9 * 4 / MB)
    assert work.moved_mb == pytest.approx((32 * 14 * 14 + 64 * 7 * 7) * 4 / MB)


@pytest.mark.parametrize(
    ("blocked", "group", "depth", "edge", "kind"),
    [
        (True, 1, 32, 1, "pointwise convolution"),
        (True, 32, 1, 3, "depthwise convolution"),
        (True, 4, 8, 3, "grouped convolution"),
        (False, 1, 32, 3, "plain convolution"),
        (False, 4, 8, 3, "plain grouped convolution"),
    ],
)
def test_convolutions_are_of_the_kind_of_their_kernel(
    blocked: bool, group: int, depth: int, edge: int, kind: str
) -> None:
    kernel = operand(32, depth, edge, edge, constant=True)
    one = node("Conv", (operand(1, 32, 8, 8), kernel), operand(1, 32, 8, 8), blocked=blocked, group=group)
    assert work_of(one).kind == kind


def test_a_product_of_activations_reads_no_weights() -> None:
    one = node("MatMul", (operand(1, 8, 16, 32), operand(1, 8, 32, 24)), operand(1, 8, 16, 24))
    work = work_of(one)
    assert work.kind == "product of activations"
    assert work.gmac == pytest.approx(8 * 16 * 32 * 24 / 1e9)
    assert work.weight_mb == 0
    assert dict(work.terms)["products"] == 8


def test_a_turned_product_is_counted_by_its_rows() -> None:
    one = node("Gemm", (operand(32, 5), operand(32, 24, constant=True)), operand(5, 24), transA=1)
    assert work_of(one).gmac == pytest.approx(5 * 32 * 24 / 1e9)


def test_a_recurrence_reads_its_weights_at_every_step() -> None:
    hidden, width, steps = 512, 256, 6
    w = operand(1, 4 * hidden, width, constant=True)
    r = operand(1, 4 * hidden, hidden, constant=True)
    work = work_of(node("LSTM", (operand(steps, 1, width), w, r), operand(steps, 1, 1, hidden)))
    terms = dict(work.terms)
    assert work.gmac == pytest.approx(steps * 4 * hidden * (width + hidden) / 1e9)
    again = 4 * hidden * hidden * 4 / MB
    assert terms["step_cached_mb"] + terms["step_memory_mb"] == pytest.approx(steps * again)


def test_a_kind_nobody_knows_is_any() -> None:
    work = work_of(node("Frobnicate", (operand(3, 4),), operand(3, 4)))
    assert work.kind == ANY
    assert [name for name, _ in work.common] == ["call", "gmac", "weight_mb", "moved_mb"]


def test_a_footprint_holds_what_lives_at_a_time_and_tables_apart() -> None:
    table, i, x = operand(1000, 16, constant=True, name="table"), operand(1, 1, name="i"), operand(1, 16, name="x")
    w, y = operand(16, 8, constant=True, name="w"), operand(1, 8, name="y")
    held = footprint([node("Gather", (table, i), x), node("MatMul", (x, w), y)], ["i"], ["y"])
    assert held.tables_mb == pytest.approx(64_000 / MB)
    assert held.mapped_mb == held.packed_mb == pytest.approx(512 / MB)
    assert held.border_mb == pytest.approx(36 / MB)
    assert held.live_mb == pytest.approx(100 / MB)
