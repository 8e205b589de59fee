"""Serverless against hosted instances: where it flips is where counting says so."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from benchmarks import hosted
from benchmarks.hosted import Instance, Market, Offer, Way, instance, market, page
from lamella.machine import this_machine
from lamella.platforms import platform

INSTANCE = platform("hosted")
MARKETS = st.builds(
    Market,
    st.builds(Way, st.just(3), st.just(100.0), st.floats(1e-6, 1e-4), st.just(0.0)),
    st.just(600.0),
    st.floats(0.5, 50.0),
    st.floats(0.01, 2.0),
)


def offer(request_usd: float = 2e-6, alone_ms: float = 40.0, peak_mb: float = 300.0) -> Offer:
    return Offer(
        ways={"exact": Way(3, 120.0, request_usd, 3e-4), "single": Way(1, 100.0, 2 * request_usd, 2e-4)},
        failed={"exact, any latency": "memory: too much\n  try: less"},
        alone_ms=alone_ms,
        beside_ms=70.0,
        peak_mb=peak_mb,
        machine=this_machine(),
        date="2026-11-22",
    )


@given(MARKETS)
def test_below_the_flip_serverless_is_cheaper_and_above_the_last_hosting_always(m: Market) -> None:
    assume(abs(m.equal / m.capacity - 1) > 0.02)  # nearer than that the last flip is beyond what can be counted
    flips = m.flips
    if flips is None:
        assert all(m.saving(m.capacity * k / 7) >= -1e-9 for k in range(1, 700))
        return
    first, last = flips
    assert first <= last
    assert all(m.saving(first * k / 50) > 0 for k in range(1, 50))
    assert m.saving(first * 1.0001) < 1e-3
    assert all(m.saving(last * (1 + k / 50) + 1e-9) < 1e-9 for k in range(1, 200))
    if last > first * (1 + 1e-6):
        assert m.saving(last * (1 - 1e-6)) > 0, "just before the last flip it was the other way round"


@given(MARKETS, st.floats(0.1, 0.99), st.floats(0.0, 1e-3))
def test_up_to_a_rate_so_much_is_saved_and_no_longer_beyond_it(m: Market, share: float, start_usd: float) -> None:
    m = m._replace(way=Way(3, 100.0, m.way.request_usd, start_usd))
    rate = m.upto(share)
    assert all(m.saving(rate * k / 100) >= share - 1e-6 for k in range(1, 101))
    if rate < m.capacity * (1 - 1e-9):
        assert m.saving(rate * 1.001) < share


def test_an_instance_answers_by_the_way_that_answers_more_if_its_memory_holds_it() -> None:
    both = instance(offer(), INSTANCE)
    assert both.lanes == 2
    assert both.capacity == pytest.approx(0.7 * 2 * 1000 / 70)
    full = instance(offer(peak_mb=3000.0), INSTANCE)
    assert full.lanes == 1
    assert full.capacity == pytest.approx(0.7 * 1000 / 40)
    quick = instance(offer(alone_ms=30.0), INSTANCE)
    assert quick.capacity == pytest.approx(0.7 * 1000 / 30)


def test_waiting_on_one_lane_is_that_of_a_queue_with_equal_services() -> None:
    assert Instance(7.0, 100.0, 1).waiting_ms == pytest.approx(100 * 0.7 / (2 * 0.3))  # Pollaczek and Khinchine
    assert Instance(14.0, 100.0, 2).waiting_ms == pytest.approx(100 * 0.5764706 / (2 * 0.3) / 2)  # Erlang C(2, 1.4)


def test_seldom_requests_pay_the_start_of_every_function_and_frequent_ones_none() -> None:
    m = market(offer(), "exact", 0.085)
    assert m.serverless(1e-6) == pytest.approx(3600 * 1e-6 * (2e-6 + 3e-4), rel=1e-3)
    assert m.serverless(1.0) == pytest.approx(3600 * 2e-6)


def test_the_page_and_its_figures_come_from_the_results_alone(tmp_path: Path) -> None:
    results = tmp_path / "hosted.json"
    results.write_bytes(msgspec.json.encode(hosted.Results(offers={"vgg19": offer()})))
    hosted.main(["--page-only", "--results", str(results), "--docs", str(tmp_path)])
    text = (tmp_path / hosted.PAGE).read_text()
    flip = 0.085 / 3600 / 2e-6
    assert f"Hosting is cheaper from {flip:.3g} requests a second (vgg19)" in text
    assert f"| vgg19 | {0.0425 / 3600 / 2e-6:.3g} | {flip:.3g} |" in text
    assert "| vgg19 | memory: too much |" in text
    for name in (hosted.SAVING, hosted.FLIPS):
        assert "vgg19" in "".join(ElementTree.parse(tmp_path / name).getroot().itertext())
    assert "Nothing is planned yet" in page({}, 0.085)


@pytest.mark.slow  # it profiles
def test_a_tiny_model_is_planned_for_real_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--models", "cnn-tiny", "--results", str(tmp_path / "hosted.json"), "--docs", str(tmp_path)]
    hosted.main(asked)
    assert "cnn-tiny: Offer(" in capsys.readouterr().out
    assert "| cnn-tiny | 1 |" in (tmp_path / hosted.PAGE).read_text()
    hosted.main(asked)
    assert capsys.readouterr().out == ""
