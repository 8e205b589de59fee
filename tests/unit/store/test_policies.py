"""Who leaves memory first, by policy."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.errors import ConfigError
from lamella.store.policies import POLICIES, REMEMBERED, SEGMENTS, Candidate, CostAware, History, policy


def candidate(id: str, *, bytes: int = 1, uses: list[float] | None = None, reload_s: float = 1.0) -> Candidate:
    times = uses or []
    return Candidate(id, bytes, times[-1] if times else 0.0, len(times), tuple(times), reload_s)


candidates = st.lists(
    st.builds(
        candidate,
        st.text("abcdef", min_size=1, max_size=4),
        bytes=st.integers(1, 1 << 40),
        uses=st.lists(st.floats(0, 1e6), max_size=REMEMBERED).map(sorted),
        reload_s=st.floats(0, 1e4),
    ),
    min_size=1,
    unique_by=lambda c: c.id,
)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=30)
@given(given=candidates, order=st.randoms(use_true_random=False))
def test_a_choice_is_one_of_the_candidates_whatever_their_order(
    name: str, given: list[Candidate], order: Random
) -> None:
    chosen = policy(name).choose(given, 1e6)
    shuffled = list(given)
    order.shuffle(shuffled)
    assert policy(name).choose(shuffled, 1e6) == chosen
    assert chosen in given if name != "never" else chosen is None


def test_lru_takes_the_one_used_longest_ago_and_lfu_the_one_used_least() -> None:
    often, once = candidate("a", uses=[1.0, 2.0, 3.0]), candidate("b", uses=[4.0])
    assert policy("lru").choose([often, once], 5.0) == often
    assert policy("lfu").choose([often, once], 5.0) == once


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        (candidate("a", uses=[9.0], reload_s=1.0), candidate("b", uses=[9.0], reload_s=2.0)),
        (candidate("a", uses=[9.0], bytes=2), candidate("b", uses=[9.0], bytes=1)),
        (candidate("a", uses=[1.0, 9.0]), candidate("b", uses=[8.0, 9.0])),
        (candidate("a", uses=[]), candidate("b", uses=[1.0])),
    ],
    ids=["quicker to load", "larger", "used more rarely", "never used"],
)
def test_cost_aware_lets_go_what_saves_least_per_byte(worse: Candidate, better: Candidate) -> None:
    assert CostAware().choose([better, worse], 10.0) == worse


def test_a_history_forgets_times_beyond_the_last_and_segments_beyond_the_most_recent() -> None:
    history = History()
    for k in range(SEGMENTS + 1):
        history.leased(f"{k}", float(k))
    for k in range(2 * REMEMBERED):
        history.leased("5", 1e4 + k)
    assert history.candidate("0", 1).uses == 0
    assert history.candidate("5", 1).uses == 2 * REMEMBERED + 1
    assert len(history.candidate("5", 1).recent) == REMEMBERED
    history.loaded("5", 2e4, 3.0)
    assert history.candidate("5", 7)[1:4] == (7, 2e4, 2 * REMEMBERED + 1)
    assert history.candidate("5", 7).reload_s == 3.0


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="fifo") as caught:
        policy("fifo")
    assert "lru, lfu, cost-aware, never" in caught.value.try_
