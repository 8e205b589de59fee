"""Rounds that are noisy, and plans that are lost in the middle of one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lamella.compare import rounds as module
from lamella.compare.rounds import Rounds, run_rounds
from lamella.deploy.local import Deployment
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.profile.quiet import Load
from lamella.runtime.chain import Chain, Size
from tests.faults import packages

QUIET, NOISY = 1.0, 2.0


@pytest.fixture(scope="module")
def cnn(cache_dir: Path) -> Graph:
    return import_model("zoo:cnn-tiny")


@pytest.fixture
def one(cnn: Graph, tmp_path: Path) -> Iterator[dict[str, Deployment]]:
    """One plan that is up."""
    with Deployment(packages.package(cnn, tmp_path / "package"), freezable=True) as deployment:
        yield {"one": deployment}


def run(
    deployments: dict[str, Deployment], graph: Graph, patch: pytest.MonkeyPatch, loads: list[float], rounds: int
) -> Rounds:
    """Rounds of one request, beside a known load that takes `loads`, two of them per round, and then no more."""
    left = iter([QUIET] * 5 + loads)
    patch.setattr(module, "known_load", lambda: Load(next(left), QUIET))
    rng = np.random.default_rng(0)
    return run_rounds(deployments, lambda: request(graph, rng), rounds=rounds, per_round=1, tick=lambda share: None)


def test_a_noisy_round_is_thrown_away_and_run_again(
    one: dict[str, Deployment], cnn: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(one, cnn, monkeypatch, [QUIET, NOISY, QUIET, QUIET, QUIET, QUIET], 2)
    assert (found.kept, found.rejected, found.noisy_kept) == (2, 1, 0)
    assert [s.round for s in found.samples["one"]] == [0, 1]


def test_noisy_rounds_that_are_kept_are_not_counted_as_rejected(
    one: dict[str, Deployment], cnn: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(one, cnn, monkeypatch, [NOISY] * 8, 2)
    assert (found.kept, found.rejected, found.noisy_kept) == (2, 2, 2)
    assert len(found.samples["one"]) == 2


def test_rounds_are_spread_over_the_time_that_is_asked_for(one: dict[str, Deployment], cnn: Graph) -> None:
    rng, ends = np.random.default_rng(0), [time.monotonic()]
    run_rounds(
        one,
        lambda: request(cnn, rng),
        rounds=3,
        per_round=1,
        tick=lambda share: ends.append(time.monotonic()),
        max_rejected=0,
        over_s=3.0,
    )
    assert ends[-1] - ends[0] >= 2.0  # the last one begins after two thirds
    assert min(b - a for a, b in pairwise(ends[1:])) > 0.5


@pytest.mark.parametrize(("short_ms", "more"), [(1e6, module.SETTLING), (0.0, 0)])
def test_the_first_requests_of_a_short_plan_s_turn_do_not_count(
    one: dict[str, Deployment], cnn: Graph, monkeypatch: pytest.MonkeyPatch, short_ms: float, more: int
) -> None:
    monkeypatch.setattr(module, "SHORT_MS", short_ms)
    rng, asked = np.random.default_rng(0), []

    def fresh() -> dict[str, np.ndarray]:
        asked.append(request(cnn, rng))
        return asked[-1]

    found = run_rounds(one, fresh, rounds=2, per_round=3, tick=lambda share: None, max_rejected=0)
    assert len(asked) == 2 * (3 + more)
    assert [s.round for s in found.samples["one"]] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(("vcpu", "paused"), [([1.0, 2.0], False), ([1.0, 0.5], True), ([1.25], True)])
def test_requests_to_a_fraction_of_a_core_come_behind_pauses(vcpu: list[float], paused: bool) -> None:
    held = SimpleNamespace(limiter=SimpleNamespace(enforced=True), _sizes={f"f{v}": Size(100, v) for v in vcpu})
    free = SimpleNamespace(limiter=SimpleNamespace(enforced=False), _sizes=held._sizes)
    assert [Chain.throttled.fget(one) for one in (held, free)] == [paused, False]  # type: ignore[attr-defined]
