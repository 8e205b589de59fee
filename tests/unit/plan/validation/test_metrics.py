"""What a loss is measured by, against figures by hand; and what a user's own function may get wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lamella.errors import ConfigError
from lamella.plan.validation.metrics import LARGEST, metric

SCORES = np.array([[1.0, 5.0, 2.0], [9.0, 0.0, 3.0]], np.float32)


def of(name: str, got: np.ndarray, want: np.ndarray = SCORES) -> float:
    return metric(name).of({"y": want}, {"y": got})


def test_each_metric_is_what_it_says() -> None:
    off = SCORES.copy()
    off[0, 0] += 0.9
    assert of("max_rel", off) == pytest.approx(0.1)
    assert of("top1", off) == 1.0
    off[0, 0] = 6.0
    assert of("top1", off) == 0.5
    assert of("cosine", 3 * SCORES) == pytest.approx(1.0)
    assert of("cosine", np.array([0.0, 1.0], np.float32), np.array([1.0, 1.0], np.float32)) == pytest.approx(0.5**0.5)
    assert of("cosine", 0 * SCORES) == 0.0
    assert of("cosine", 0 * SCORES, 0 * SCORES) == 1.0


def test_answers_of_another_shape_or_nan_are_as_bad_as_can_be() -> None:
    assert of("max_rel", SCORES[:1]) == LARGEST
    assert of("top1", SCORES[:1]) == 0.0
    assert of("cosine", SCORES[:1]) == -1.0
    assert of("cosine", SCORES * np.float32("nan")) == -1.0
    assert of("max_rel", SCORES * np.float32("nan")) == LARGEST


def test_over_requests_the_worst_counts_and_of_a_share_the_mean() -> None:
    assert metric("max_rel").over([0.1, 0.3]) == 0.3
    assert metric("cosine").over([0.9, 0.8]) == 0.8
    assert metric("top1").over([1.0, 0.0]) == 0.5
    assert metric("max_rel").keeps(0.01, 0.01)
    assert not metric("cosine").keeps(0.9989, 0.999)


def test_top1_needs_scores_to_choose_from() -> None:
    with pytest.raises(ConfigError, match="no output of the model has scores"):
        of("top1", np.ones((2, 1), np.float32), np.ones((2, 1), np.float32))


@pytest.mark.parametrize("name", ["mse", "json:", ":dumps", ""])
def test_an_unknown_metric_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(ConfigError, match="there are max_rel, top1, cosine, and module:function"):
        metric(name)


def test_a_user_s_own_function_is_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_lossy_metric.py").write_text(
        "def mean(want, got):\n    return abs(want['y'] - got['y']).mean()\n"
        "def fails(want, got):\n    return want['z']\n"
        "def text(want, got):\n    return 'good'\n"
        "def nothing(want, got):\n    return float('nan')\n"
        "def same(want, got):\n    return bool((want['y'] == got['y']).all())\n"
        "def huge(want, got):\n    return 10**400\n"
        "def leaves(want, got):\n    raise SystemExit(0)\n"
        "def writes(want, got):\n    want['y'] -= got['y']\n    return abs(want['y']).max()\n"
    )
    monkeypatch.chdir(tmp_path)
    found = metric("my_lossy_metric:mean")
    assert found.of({"y": SCORES}, {"y": SCORES + 2}) == pytest.approx(2.0)
    assert (found.bound, found.more_is_better) == (0.01, False)
    with pytest.raises(ConfigError, match="the metric my_lossy_metric:fails raised KeyError: 'z'"):
        of("my_lossy_metric:fails", SCORES)
    with pytest.raises(ConfigError, match="leaves raised SystemExit: 0"):
        of("my_lossy_metric:leaves", SCORES)
    kept = SCORES.copy()
    with pytest.raises(ConfigError, match="writes raised ValueError: output array is read-only"):
        of("my_lossy_metric:writes", SCORES, kept)
    np.testing.assert_array_equal(kept, SCORES)
    assert kept.flags.writeable
    for name, said in (("text", "'good'"), ("nothing", "nan"), ("same", "True"), ("huge", "1000")):
        with pytest.raises(ConfigError, match=f"gave {said}.*, not a finite number"):
            of(f"my_lossy_metric:{name}", SCORES)
    with pytest.raises(ConfigError, match="my_lossy_metric has no function 'absent'"):
        metric("my_lossy_metric:absent")
    (tmp_path / "my_leaving_metric.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(ConfigError, match="my_leaving_metric cannot be imported: SystemExit: 0"):
        metric("my_leaving_metric:f")
    with pytest.raises(ConfigError, match="no_such_module_here cannot be imported: ModuleNotFoundError"):
        metric("no_such_module_here:f")
