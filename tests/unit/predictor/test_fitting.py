"""Formulas from made-up measurements: what is known to be true is found again, also far beyond what was measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.predictor.document import Kind
from lamella.predictor.fitting import fit_kinds, fit_memory, network_error, nonnegative
from lamella.predictor.footprint import Footprint
from lamella.predictor.sampling import LAYOUTS, NodeTimes, Sampled
from lamella.predictor.work import Work
from lamella.profile.document import UnitMemory

NUMBERS = st.floats(-4, 4).map(lambda x: round(x, 2))


@given(
    st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(NUMBERS, min_size=n + 1, max_size=n + 1), min_size=5, max_size=9)
    )
)
def test_least_squares_without_negatives_is_optimal(table: list[list[float]]) -> None:
    """By the conditions of Karush, Kuhn and Tucker: no slope leads down, none but zero at a positive coefficient."""
    rows, values = np.array(table)[:, :-1], np.array(table)[:, -1]
    found = nonnegative(rows, values)
    slopes = rows.T @ (rows @ found - values)
    assert (found >= 0).all()
    assert (slopes >= -1e-6).all()
    assert np.abs(slopes[found > 1e-9]) == pytest.approx(0, abs=1e-5)


def work(rows: float, inner: float, outer: float) -> Work:
    """A product."""
    gmac, weights, moved = rows * inner * outer / 1e9, inner * outer * 4 / 2**20, rows * (inner + outer) * 4 / 2**20
    terms = (("call", 1.0), ("gmac", gmac), ("weight_mb", weights))
    return Work("product", terms, (rows, inner, outer), gmac, weights, moved)


def true_ms(one: Work) -> float:
    """A roofline, and a kernel that is less efficient on few rows."""
    few = 1 + 0.5 / math.sqrt(one.dimensions[0])
    return 0.004 + few * 24 * one.gmac + 0.1 * one.weight_mb


def sampled(works: list[Work], number: int, noise: np.random.Generator) -> Sampled:
    """A network of products, measured with 2 % of noise."""
    times = tuple(true_ms(w) * float(noise.normal(1, 0.02)) for w in works)
    live = float(number)
    weights = 10.0 + 7 * number % 5
    held = Footprint(len(works), weights, 0.0, weights, 1.0, live, live / 2)
    memory = tuple(UnitMemory(layout, held.mapped_mb, 2.0, 8.0 + 1.5 * live, 7.0, 5.0, 0.0) for layout in LAYOUTS)
    return Sampled(
        f"n{number}",
        tuple(works),
        tuple(NodeTimes(layout, 1, warm, times) for layout in LAYOUTS for warm in (False, True)),
        held,
        memory,
    )


@pytest.fixture(scope="module")
def samples() -> list[Sampled]:
    noise = np.random.default_rng(0)

    def draw(low: float, high: float) -> float:
        return float(int(2 ** noise.uniform(low, high)))

    return [sampled([work(draw(0, 9), draw(5, 11), draw(5, 11)) for _ in range(6)], k, noise) for k in range(20)]


def product_of(kinds: tuple[Kind, ...]) -> Kind:
    return next(k for k in kinds if k.kind == "product")


def test_a_roofline_is_found_and_kept_far_beyond_what_was_measured(samples: list[Sampled]) -> None:
    kinds, _ = fit_kinds(samples)
    fit = product_of(kinds).by_variant["plain", 1, False]
    far = work(4096, 8192, 8192)
    assert fit.formula.of(far.terms) == pytest.approx(true_ms(far), rel=0.15)
    assert fit.formula.error < 0.08


def test_neighbours_are_asked_only_where_networks_left_out_come_out_better(samples: list[Sampled]) -> None:
    kinds, left_out = fit_kinds(samples)
    nodes, whole = network_error(samples, left_out)
    assert nodes < 0.06
    assert whole < 0.06
    assert product_of(kinds).points


def test_memory_is_a_sum_of_what_is_held(samples: list[Sampled]) -> None:
    plain = fit_memory(samples)[0]
    assert plain.figures["live_mb"].error < 0.01
    terms = tuple(Footprint(6, 200.0, 0.0, 200.0, 1.0, 30.0, 15.0).terms().items())
    assert plain.figures["live_mb"].of(terms) == pytest.approx(8 + 1.5 * 30, rel=0.02)
