"""The page about prediction and its plot come from the results alone, and say what was asked and missed."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks.predictor import Compared, Pair, Results, compare, mean_off, page, plot
from lamella.machine import this_machine
from tests.unit.plan.synthetic import Made, model_of

WAYS = ("plain 1", "prepacked 1")


def made(off: float, memory_off: float = 0.02) -> Compared:
    """A model of which every figure is so far off."""
    pairs = tuple(Pair(ms * (1 + off), ms) for ms in (0.5, 3.0, 40.0))
    held = tuple(Pair(mb * (1 + memory_off), mb) for mb in (60.0, 200.0))
    return Compared(
        units=dict.fromkeys(WAYS, pairs),
        slices=dict.fromkeys(WAYS, pairs),
        whole=dict.fromkeys(WAYS, pairs[-1]),
        slice_memory={"plain": held, "prepacked": held},
        whole_memory={"plain": held[0], "prepacked": held[0]},
    )


def results(**models: Compared) -> Results:
    return Results(this_machine(), 50, 900, 0.1, 0.07, dict(models))


def test_the_page_says_of_each_mean_whether_it_is_what_was_asked() -> None:
    text = page(results(vgg19=made(-0.10), gcn=made(0.14)))
    assert "- time, plain 1: whole models 12%, slices 12%: kept" in text
    assert "| vgg19 | 10% | 10% | -10% |" in text
    assert "missed" in page(results(vgg19=made(0.4)))
    assert "- memory, plain: whole models 2.0%, slices 2.0%: kept" in text


def test_a_page_without_results_says_so() -> None:
    assert "Nothing is measured yet." in page(Results())


def test_the_plot_is_drawn_within_its_borders() -> None:
    root = ElementTree.fromstring(plot(results(vgg19=made(-0.10), gcn=made(0.14))))
    _, _, wide, high = map(float, root.attrib["viewBox"].split())
    dots = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(dots) == 6 + 4
    assert all(0 < float(d.attrib["cx"]) < wide and 0 < float(d.attrib["cy"]) < high for d in dots)


def test_a_model_beside_itself_is_not_off() -> None:
    model = model_of((Made(time_ms=5.0), Made(time_ms=7.0), Made(time_ms=1.0)))
    found = compare(model, model, (1, 2))
    assert set(found.whole) == {"plain 1", "plain 2", "prepacked 1", "prepacked 2"}
    assert len(found.slices["plain 1"]) == 6
    assert mean_off(found.slices["plain 1"]) == mean_off(found.slice_memory["plain"]) == 0
    assert found.whole["plain 1"].measured == pytest.approx(13.0)
