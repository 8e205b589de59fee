"""What the figures draw, as numbers: areas, places, and that nothing lies on top of something else."""

from __future__ import annotations

from itertools import combinations, pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.compare.record import FunctionRecord, PlanRecord, UnitRecord
from lamella.report.scales import CLASSES, NARROW_PX, inside, number, shade, tick, ticks
from lamella.report.scatter import DOT_PX, HEIGHT, WIDTH, Box, _box, name_places, scatter, spread
from lamella.report.staircase import staircase, steps
from lamella.report.strip import place, places, strip
from lamella.report.versus import versus
from lamella.runtime.lanes import makespan
from tests.unit.report.made import FLOOR_MB, comparison, plans, sample, sharded, whole


@given(plans())
def test_the_area_of_the_steps_is_billed_memory_time_and_of_what_they_use_used_memory_time(plan: PlanRecord) -> None:
    found = steps(plan, FLOOR_MB)
    assert [s.function.name for s in sorted(found, key=lambda s: s.function.name)] == sorted(
        f.name for f in plan.functions
    )
    assert sum(s.allocated.mb_s for s in found) == pytest.approx(plan.memory_time_mb_s.billed)
    assert sum(b.mb_s for s in found for b in s.used) == pytest.approx(plan.memory_time_mb_s.used)


@given(plans())
def test_stages_follow_each_other_and_each_takes_as_long_as_its_makespan(plan: PlanRecord) -> None:
    found = steps(plan, FLOOR_MB)
    begin = 0.0
    for stage in range(plan.stages):
        blocks = [s.allocated for s in found if s.function.stage == stage]
        assert min(b.begin_ms for b in blocks) == pytest.approx(begin)
        end = max(b.begin_ms + b.ms for b in blocks)
        assert end - begin == pytest.approx(
            makespan([f.run_ms for f in plan.functions if f.stage == stage], plan.at_once[stage])
        )
        begin = end


@given(plans())
def test_no_two_steps_overlap_and_no_more_shards_run_at_a_time_than_may(plan: PlanRecord) -> None:
    found = steps(plan, FLOOR_MB)
    for one, two in combinations([s.allocated for s in found], 2):
        apart = 1e-6
        assert (
            one.begin_ms + one.ms <= two.begin_ms + apart
            or two.begin_ms + two.ms <= one.begin_ms + apart
            or one.base_mb + one.mb <= two.base_mb
            or two.base_mb + two.mb <= one.base_mb
        )
    for s in found:
        at = s.allocated.begin_ms + s.allocated.ms / 2
        busy = [o for o in found if o.allocated.begin_ms < at < o.allocated.begin_ms + o.allocated.ms]
        assert len(busy) <= plan.at_once[s.function.stage]


def test_panels_share_one_scale_and_the_highest_function_fills_it() -> None:
    figure = staircase(sample())
    heights = {p.planner: max(r.height for r in p.allocated) for p in figure.panels}
    assert heights["ort"] / heights["single"] == pytest.approx(1008 / 512)
    for panel in figure.panels:
        assert all(r.left >= 0 and r.left + r.width <= 100 for r in (*panel.allocated, *panel.used))
        assert all(r.top >= 0 and r.top + r.height <= figure.ground + 1e-9 for r in (*panel.allocated, *panel.used))
        assert 0 < panel.answer <= 100
    assert [p.planner for p in staircase(sample(), ("mopar",)).panels] == ["mopar"]
    assert [p.best for p in figure.panels] == [False, False, True]


def test_a_record_that_does_not_say_the_stages_has_one_per_function() -> None:
    functions = tuple(FunctionRecord("f", 100, 1.0, 90.0, 90.0, 100, run, run) for run in (3.0, 4.0))
    found = steps(msgspec.structs.replace(whole(), functions=functions), 0.0)
    assert [s.allocated.begin_ms for s in found] == [0.0, 3.0]
    assert not any(s.used for s in found)


UNITS = st.lists(st.integers(1, 200), min_size=1, max_size=150)


@given(UNITS)
def test_units_fill_the_strip_and_none_is_too_narrow(counts: list[int]) -> None:
    units, at = [], 0
    for count in counts:
        units.append(UnitRecord(first=at, last=at + count, kinds="Conv", weight_mb=1.0, live_mb=1.0, ms=1.0))
        at += count
    edges = places(units)
    assert edges[0] == 0
    assert edges[-1] == pytest.approx(100)
    assert min(b - a for a, b in pairwise(edges)) >= 100 / len(units) / 4
    marks = [place(op, units, edges) for op in range(at + 1)]
    assert marks == sorted(marks)
    assert [place(u.first, units, edges) for u in units] == pytest.approx(edges[:-1])


def test_slices_lie_under_their_units_and_shards_share_the_height() -> None:
    figure = strip(sample())
    assert figure
    lane = figure.lanes[-1]
    edges = [c.left for c in figure.rows[0].cells]
    assert [b.kind for b in lane.bars] == ["slice", "shard", "shard", "shard", "join", "slice"]
    assert lane.bars[0].left == 0
    assert lane.bars[0].width == pytest.approx(edges[2])
    shards = lane.bars[1:4]
    assert {(b.left, b.width) for b in shards} == {(shards[0].left, shards[0].width)}
    assert shards[0].left == pytest.approx(edges[2])
    assert [b.top for b in shards] == pytest.approx([0, lane.height / 3, lane.height * 2 / 3])
    assert lane.bars[4].width == 0
    assert lane.bars[5].left + lane.bars[5].width == pytest.approx(100)
    assert lane.cuts == pytest.approx((edges[2], edges[4]))
    assert "6 functions in 4 stages, 1 of shards" in lane.about
    assert "96 MB allocated" in shards[0].title


def test_the_most_has_the_strongest_colour_and_its_number_is_said() -> None:
    figure = strip(sample())
    assert figure
    memory, time = figure.rows
    assert memory.cells[-1].shade == CLASSES - 1
    assert memory.most == "8.00 MB"
    assert [c.shade for c in time.cells] == [2, 4, 6, 2, 4, 6]
    assert "weights 6.00 MB, live 2.00 MB" in memory.cells[-1].title


def test_without_units_there_is_no_strip() -> None:
    assert strip(sample(units=0)) is None


@given(st.floats(0, 1e9), st.floats(1e-6, 1e9), st.integers(2, 8))
def test_ticks_are_round_evenly_spaced_and_within(low: float, width: float, wanted: int) -> None:
    found = ticks(low, low + width, wanted)
    assert len(found) <= wanted + 1
    slack = 1e-6 * (low + width)
    assert all(low - slack <= t <= low + width + slack for t in found)


@given(st.floats(0, 1), st.floats(1e-9, 1e9))
def test_shades_rise_with_the_value(share: float, most: float) -> None:
    assert 0 <= shade(share * most, most) < CLASSES
    assert shade(most, most) == CLASSES - 1
    assert shade(0, most) == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.01234, "0.0123"), (4.5678, "4.57"), (78.94, "78.9"), (1234.6, "1235"), (1e-12, "0.00000000")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_ticks_are_written_without_idle_zeros() -> None:
    assert [tick(v) for v in (0, 0.25, 50.0, 1e6)] == ["0", "0.25", "50", "1000000"]


def test_a_label_is_shown_only_where_it_fits() -> None:
    assert inside(0, 50, 10, "128 MB")[0].fits == "always"
    assert inside(0, 50 / NARROW_PX * 100 / 3, 10, "128 MB")[0].fits == "wide"
    assert inside(0, 1, 10, "128 MB") == ()


NEAR = st.lists(st.tuples(st.floats(60, 320), st.floats(30, 230)), min_size=1, max_size=6)


@given(NEAR)
def test_names_of_points_keep_off_each_other_even_where_points_coincide(points: list[tuple[float, float]]) -> None:
    names = [f"uniform-{k}" for k in range(len(points))]
    found = name_places(points, names, Box(46, 14, WIDTH - 12, HEIGHT - 40))
    for one, two in combinations([_box(label) for label in found], 2):
        assert not one.meets(two)
    for label in found:
        assert _box(label).left >= 46
        assert _box(label).right <= WIDTH
        assert all(not _box(label).meets(Box(x - DOT_PX, y - DOT_PX, x + DOT_PX, y + DOT_PX)) for x, y in points)


def test_points_and_intervals_lie_within_the_axes() -> None:
    figure = scatter(sample())
    for p in figure.points:
        assert figure.plot.left <= p.x_low <= p.x <= p.x_high <= figure.plot.right
        assert figure.plot.top <= p.y_high <= p.y <= p.y_low <= figure.plot.bottom
    assert [p.best for p in figure.points] == [False, False, True]


def test_an_axis_begins_at_nought_unless_all_values_are_far_from_it() -> None:
    assert spread([1.0, 10.0])[0] == 0
    low, high = spread([300.0, 310.0])
    assert 280 < low < 300 < 310 < high < 330
    assert spread([0.0]) == (0.0, 1.0)


def test_predictions_stand_beside_what_was_measured_on_one_scale() -> None:
    latency, memory, cost = versus(comparison([whole(), sharded()]))
    for figure in (latency, cost):
        for pair in figure.pairs:
            assert pair.predicted == pytest.approx(0.9 * pair.measured)
            assert pair.text == "-10%"
    assert all(p.predicted == p.measured for p in memory.pairs)
    assert latency.pairs[1].title == "mopar: predicted 24.3 ms, measured 27.0 ms"
