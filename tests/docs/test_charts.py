"""The charts of the benchmarks' pages: what is drawn lies where it belongs, and reads."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Guide, Series, chart

ENDS = st.tuples(st.floats(1e-3, 1e3), st.floats(1.2, 1e6)).map(lambda ends: (ends[0], ends[0] * ends[1]))


@given(ENDS, st.booleans())
def test_an_axis_is_marked_between_its_ends_with_round_values_in_order(ends: tuple[float, float], log: bool) -> None:
    axis = Axis("x", *ends, log=log)
    marks = axis.marks()
    assert 2 <= len(marks) <= 13
    assert marks == sorted(marks)
    assert all(-1e-6 <= axis.place(mark) <= 1 + 1e-6 for mark in marks)
    labels = [axis.label(mark) for mark in marks]
    assert len(set(labels)) == len(labels)


def test_a_logarithmic_axis_goes_by_ratios() -> None:
    axis = Axis("x", 0.01, 100.0, log=True)
    assert [axis.place(v) for v in (0.01, 1.0, 100.0)] == pytest.approx([0.0, 0.5, 1.0])


def test_points_lie_within_the_frame_and_say_what_they_are() -> None:
    points = [(1.0, 1.0), (10.0, 5.0), (100.0, 100.0)]
    drawn = chart(
        "predicted < measured",
        Axis("measured & sent, ms", 1.0, 100.0, log=True),
        Axis("predicted, ms", 1.0, 100.0, log=True),
        [Series("openfaas", points, titles=["a", "b", "c"]), Series("a long name " * 6, points, line=True)],
        [Guide([(1.0, 1.0), (100.0, 100.0)], "equal", dashed=True)],
    )
    root = ElementTree.fromstring(drawn)
    texts = "".join(root.itertext())
    assert all(said in texts for said in ("predicted < measured", "measured & sent, ms", "equal", "openfaas"))
    space = "{http://www.w3.org/2000/svg}"
    dots = [d for d in root.iter(f"{space}path") if d.find(f"{space}title") is not None]
    assert ["".join(d.itertext()) for d in dots] == ["a", "b", "c"]
    for dot, (x, y) in zip(dots, points, strict=True):
        across, up = (float(v) for v in re.findall(r"[\d.]+", dot.attrib["d"])[:2])
        assert across == pytest.approx(LEFT + math.log10(x) / 2 * (WIDTH - LEFT - RIGHT), abs=5)
        assert up == pytest.approx(TOP + (1 - math.log10(y) / 2) * (HEIGHT - TOP - BOTTOM), abs=5)
