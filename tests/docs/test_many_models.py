"""The benchmark of many models: its chance is what it says, and its page comes from the results alone."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import many_models
from benchmarks.many_models_bound import Blobs, blind_bound, bound, bytes_per_s, fewest_bytes
from benchmarks.many_models_inside import Asked, Model, difference
from lamella.units import MB
from lamella.zoo.draft import Seeded


@given(st.integers(1, 100), st.floats(0.0, 3.0))
def test_the_kth_most_popular_model_has_a_share_of_one_over_k_to_the_skew(models: int, skew: float) -> None:
    shares = many_models.shares(models, skew)
    assert shares.sum() == pytest.approx(1.0)
    assert shares / shares[0] == pytest.approx(np.arange(1, models + 1) ** -skew)


def test_a_trace_is_its_seed_and_its_most_popular_model_is_asked_for_most() -> None:
    asked, ranked = many_models.trace(12, 1.0, 20_000, seed=4)
    assert (asked, ranked) == many_models.trace(12, 1.0, 20_000, seed=4)
    assert asked != many_models.trace(12, 1.0, 20_000, seed=5)[0]
    assert sorted(ranked) == list(range(12))
    found = np.array([Counter(asked)[k] for k in ranked]) / len(asked)
    assert found == pytest.approx(many_models.shares(12, 1.0), abs=0.02)


def test_tuned_variants_differ_in_their_last_layers_only() -> None:
    one, other = (many_models.MIXES["tuned"][0].build(f"tuned-{k}").weights for k in (1, 2))
    own = [a for a, b in zip(one, other, strict=True) if isinstance(a, Seeded) and a != b]
    assert {weight.name.split(".")[0] for weight in own} == {"layer10", "layer11", "last_hidden_state"}
    share = sum(np.prod(w.shape) for w in own) / sum(np.prod(w.shape) for w in one if isinstance(w, Seeded))
    assert 0.1 < share < 0.2


def test_every_system_gets_the_same_requests_and_cold_the_first_of_them() -> None:
    model = Model("m", "m.onnx", "m", "m.npz", "m.npy", 100 << 20, 300.0, (("blob", 90 << 20),))
    mix = many_models.Mix((model,) * 8, "store", 30.0, 800 << 20)
    sizes = many_models.Sizes(warm=5, asked=20, cold=7)
    windows = {
        kind: many_models.window(mix, kind, 1.0, 3, sizes, "page-cache", Path("x")) for kind in many_models.SYSTEMS
    }
    assert {w.limit_mb for w in windows.values()} == {200}
    assert {w.asked for kind, w in windows.items() if kind not in ("cold", "reload")} == {windows["keep-alive"].asked}
    assert windows["cold"].asked == windows["reload"].asked == windows["keep-alive"].asked[:7]
    assert set(windows["keep-alive"].warm) == set(range(8)), "each model once, at least"


def window(cold_ms: float, hits: int, misses: int) -> dict[str, Any]:
    asked = [Asked(0, 10.0, 10.0, False)] * hits + [Asked(1, cold_ms, cold_ms, True)] * misses
    rows = [[a.model, a.ms, a.busy_ms, a.cold] for a in asked]
    counts = {"evictions": misses, "store_evictions": 0, "alive": 2, "peak_mb": 99.0, "oom_kills": 0}
    return {"asked": rows, "error": 1e-6, **counts}


def test_the_page_says_rates_ratios_and_hits() -> None:
    entry = {
        "mix": "small", "skew": 1.0, "seed": 1, "date": "2026-01-02", "cpu": "a CPU", "models": 8, "mb": 800.0,
        "stored_mb": 810.0, "limit_mb": 200, "share": 0.25,
        "quick": False, "backing": "page-cache", "limits": "cgroup-v1", "rounds": 2,
        "systems": {
            "cold": [window(200.0, 0, 10)] * 2,
            "keep-alive": [window(110.0, 5, 5)] * 2,
            "lamella-lru": [window(30.0, 5, 5)] * 2,
        },
    }  # fmt: skip
    text = many_models.page({"small, skew 1": entry})
    assert "No system" not in text, "results of before have no bound"
    rows = {cells[1]: cells for cells in (re.split(r" ?\| ?", line) for line in text.splitlines()) if len(cells) > 9}
    assert rows["cold"][2] == "5.00"
    assert rows["keep-alive"][2:6:2] == ["16.67", "3.3x"]
    assert rows["lamella-lru"][2] == "50.00"
    assert rows["lamella-lru"][4:6] == ["10.0x", "3.0x"]
    assert "took at most 10 ms, which is the inference; were all as quick, that were 20.0 times" in text
    assert rows["lamella-lru"][8] == "50%"
    assert "limit 200 MB, 25% of the files, cgroup-v1" in text


def test_an_answer_is_compared_over_its_range_and_by_its_shape() -> None:
    right = np.array([0.0, 4.0])
    assert difference(np.array([0.0, 3.0]), right) == 0.25
    assert difference(np.zeros(3), right) == float("inf")


def least_by_trying_all(sizes: list[int], asked: list[int], room: int) -> float:
    """Units read, by every way of keeping whole units from one request to the next."""
    states = {(0,) * len(sizes): 0}
    for k in asked:
        after: dict[tuple[int, ...], int] = {}
        for held, read in states.items():
            now = tuple(size if j == k else h for j, (size, h) in enumerate(zip(sizes, held, strict=True)))
            for kept in itertools.product(*(range(h + 1) for h in now)):
                if sum(kept) <= room:
                    after[kept] = min(after.get(kept, 10**9), read + sizes[k] - held[k])
        states = after
    return min(states.values())


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 3), min_size=3, max_size=3),
    st.lists(st.integers(0, 2), min_size=1, max_size=7),
    st.integers(0, 6),
)
def test_beladys_eviction_reads_the_fewest_bytes_of_all(sizes: list[int], asked: list[int], room: int) -> None:
    models: list[Blobs] = [[(str(k), size)] for k, size in enumerate(sizes)]
    assert sum(fewest_bytes(models, asked, room)) == least_by_trying_all(sizes, asked, room)


def test_blobs_of_several_models_are_read_once_and_stay_for_the_next_of_them() -> None:
    models: list[Blobs] = [[("common", 10), ("a", 1)], [("common", 10), ("b", 2)], [("c", 5)]]
    assert fewest_bytes(models, [0, 1, 0, 2, 1], room=12) == [11, 2, 0, 5, 1]
    assert fewest_bytes(models, [0, 0, 1], room=0) == [11, 11, 12]


def test_a_bound_is_inference_and_what_has_to_be_read_or_only_what_inference_does_not_hide() -> None:
    models: list[Blobs] = [[("a", 100)], [("b", 100)]]
    found = bound(models, [0, 1] * 10, room=100, bytes_per_s=1000, warm_s=[0.03, 0.03])
    read = sum(fewest_bytes(models, [0, 1] * 10, room=100))
    assert found.read_then_run == pytest.approx(20 * 0.03 + (read - 100) / 1000), "memory may have been full before"
    assert found.overlapped < found.read_then_run
    assert bound(models, [0, 1] * 10, room=140, bytes_per_s=1000, warm_s=[0.03, 0.03]).overlapped == pytest.approx(0.6)
    fast = bound(models, [0, 1] * 10, room=0, bytes_per_s=1e9, warm_s=[0.03, 0.03])
    assert fast.overlapped == pytest.approx(0.6)
    common: list[Blobs] = [[("a", 100)], [("a", 100), ("b", 1)]]
    assert bound(common, [0, 1], room=0, bytes_per_s=1, warm_s=[1, 1]).overlapped == 2


def test_the_page_says_the_bound_and_whether_the_target_is_within_it(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"?" * (4 << 20))
    entry: dict[str, Any] = {
        "names": ["m-1", "m-2"], "blobs": [[("a", 50 * MB)], [("b", 50 * MB)]], "limit_mb": 100,
        "bytes_per_s": bytes_per_s([tmp_path / "blob"]), "asked": [[0, 0, 0, 0]], "skew": 1.0, "seed": 1,
        "systems": {"cold": [window(200.0, 0, 4)], "lamella-resident": [window(30.0, 4, 0)]},
    }  # fmt: skip
    (line, _) = many_models.least(entry)
    assert "no more than 20.0 times" in line.replace("nor more", "no more"), "all is in memory from the start"
    assert "8 times are within that" in line
    entry["systems"]["cold"] = [window(50.0, 0, 4)]
    assert "8 times are out of reach here" in many_models.least(entry)[0]
    del entry["systems"]["cold"]
    assert many_models.least(entry) == []


def test_who_does_not_know_the_next_request_keeps_what_is_asked_for_most() -> None:
    models: list[Blobs] = [(("a", 100),), (("b", 50),), (("c", 100),)]
    shares = [0.5, 0.3, 0.2]
    found = blind_bound(models, shares, room=120.0, bytes_per_s=1000.0, warm_s=[0.0, 0.0, 0.0])
    assert found.read_then_run == pytest.approx((0.3 * 30 + 0.2 * 100) / 1000)
    drawn = np.random.default_rng(0).choice(3, 5_000, p=shares).tolist()
    known = bound(models, drawn, room=120.0, bytes_per_s=1000.0, warm_s=[0.0, 0.0, 0.0])
    assert known.read_then_run / len(drawn) < found.read_then_run, "knowing more saves more"


def test_what_is_hidden_behind_the_inference_is_not_missed() -> None:
    models: list[Blobs] = [(("a", 100),), (("b", 50),)]
    found = blind_bound(models, [0.5, 0.5], room=0.0, bytes_per_s=1000.0, warm_s=[0.04, 0.04])
    assert found.read_then_run == pytest.approx(0.04 + 0.075)
    assert found.overlapped == pytest.approx(0.04 + (0.5 * 60 + 0.5 * 10) / 1000)
