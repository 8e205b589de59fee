"""Examples, the comparison with an original, and the kept file, without a framework: the original is numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.errors import ExportRefused, UnboundShape
from lamella.frameworks import examples
from lamella.frameworks.examples import Example, made, requests, traced
from lamella.frameworks.exported import keep
from tests.unit.graph.onnx_models import model, node, save

Answer = Callable[[np.ndarray], np.ndarray]
WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) / 7


@dataclass(frozen=True)
class Original:
    """`x` times a weight, exported right; it answers as it is told."""

    answers: Answer
    examples: tuple[Example, ...] = (made("x", ("N", 4), np.dtype(np.float32)),)
    notes: str = ""

    def answer(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [self.answers(feeds["x"])]

    def write(self, path: Path) -> None:
        proto = model([node("MatMul", ["x", "w"], ["y"])], {"x": ("N", 4)}, {"y": ("N", 3)}, {"w": WEIGHT})
        proto.graph.node[0].metadata_props.add(key="stack", value=self.notes)
        save(proto, path)


def test_a_file_that_agrees_is_kept_under_its_content_without_its_notes(cache_dir: Path) -> None:
    first = keep(Original(lambda x: x @ WEIGHT, notes="line 1"), "net/1")
    assert first.name == "net_1.onnx"
    assert keep(Original(lambda x: x @ WEIGHT, notes="line 2"), "net/1") == first
    assert b"line" not in first.read_bytes()


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (lambda x: x @ WEIGHT * 1.001, r"by .*e-04 of its range; 1e-04 is allowed"),
        (lambda x: (x @ WEIGHT)[:, :2], r"shape \[2, 2\] became \[2, 3\]"),
        (lambda x: x @ WEIGHT * (np.nan if len(x) == 3 else 1), r"at x \[3, 4\]"),
        (lambda x: x @ WEIGHT * np.where(len(x) == 1, 2, 1), r"at x \[1, 4\]"),
    ],
)
def test_a_difference_at_any_batch_is_refused_with_its_size(cache_dir: Path, answers: Answer, message: str) -> None:
    with pytest.raises(ExportRefused, match=message):
        keep(Original(answers), "net")


def test_an_original_that_fails_on_a_request_is_refused(cache_dir: Path) -> None:
    def one_row(x: np.ndarray) -> np.ndarray:
        if len(x) == 1:
            raise ZeroDivisionError("mean of one row")
        return x @ WEIGHT

    with pytest.raises(ExportRefused, match=r"refuses a request of x \[1, 4\]: ZeroDivisionError: mean of one row"):
        keep(Original(one_row), "net")


def test_the_last_digit_of_equal_probabilities_is_no_difference(cache_dir: Path) -> None:
    flat = np.full((4, 3), 0.001, np.float32)

    class Flat(Original):
        def write(self, path: Path) -> None:
            nodes = [node("MatMul", ["x", "w"], ["y"])]
            save(model(nodes, {"x": ("N", 4)}, {"y": ("N", 3)}, {"w": flat}), path)

    ones = Example("x", np.ones((2, 4), np.float32), free=True, told=True)
    nudge = np.array([0, 2e-10, 0], np.float32)
    keep(Flat(lambda x: (x @ flat + nudge).astype(np.float32), (ones,)), "flat")


@settings(max_examples=50)
@given(rows=st.integers(1, 4), width=st.integers(0, 3), free=st.booleans(), seed=st.integers(0, 9))
def test_drawn_requests_hold_the_examples_values(rows: int, width: int, free: bool, seed: int) -> None:
    values = np.random.default_rng(seed).integers(-5, 5, (rows, width))
    example = examples.given("ids", values, {"ids": ("N", width)} if free else {})
    for feeds, batch in zip((*requests([example]), traced([example])), (rows, 1, 3, 2), strict=True):
        assert feeds["ids"].shape == ((batch if free else rows), width)
        assert set(feeds["ids"].ravel()) <= set(values.ravel())
    spec = example.spec()
    assert (spec is None) == (values.size == 0)
    assert spec is None or (spec.low, spec.high) == (values.min(), values.max() + 1)


@pytest.mark.parametrize("dims", [(1, "N"), (0, 4), ("?", 4)])
def test_only_the_first_axis_may_be_free(dims: tuple[int | str, ...]) -> None:
    with pytest.raises(UnboundShape, match="only N on the first axis"):
        made("x", dims, np.dtype(np.float32))
