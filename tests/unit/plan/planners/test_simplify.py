"""Merging runs of similar units."""

from __future__ import annotations

from hypothesis import given

from lamella.plan.planners.simplify import SIMILAR, merge_similar, waste
from tests.unit.plan.synthetic import CHAINS, Made, model_of

LIGHT = Made(weights_mb=1, out_mb=0.004, live_mb=1, private_mb=1, load_extra_mb=0)
HEAVY = Made(weights_mb=400, out_mb=0.004, live_mb=1, private_mb=1, load_extra_mb=0)


def test_equal_neighbours_of_next_to_no_weight_become_one_run() -> None:
    tiny = Made(weights_mb=0.01, out_mb=0.004, live_mb=9, private_mb=1, load_extra_mb=0)
    assert merge_similar(model_of((tiny,) * 5)) == [0, 5]


def test_a_heavy_unit_stays_apart_from_its_light_neighbours() -> None:
    marks = merge_similar(model_of((LIGHT, LIGHT, HEAVY, LIGHT)))
    assert 2 in marks
    assert 3 in marks


def test_one_unit_is_one_run() -> None:
    assert merge_similar(model_of((HEAVY,))) == [0, 1]


@given(CHAINS)
def test_ends_are_kept_and_what_remains_is_dissimilar(units: tuple[Made, ...]) -> None:
    model = model_of(units)
    marks = merge_similar(model)
    assert marks[0] == 0
    assert marks[-1] == len(units)
    assert marks == sorted(set(marks))
    triples = zip(marks, marks[1:], marks[2:], strict=False)
    assert all(waste(model, *t) > SIMILAR for t in triples)


@given(CHAINS)
def test_two_dissimilar_units_are_never_merged(units: tuple[Made, ...]) -> None:
    pair = units[:2]
    if len(pair) < 2:
        return
    model = model_of(pair)
    assert merge_similar(model) == ([0, 2] if waste(model, 0, 1, 2) <= SIMILAR else [0, 1, 2])
