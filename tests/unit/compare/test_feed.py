"""Where the requests of a comparison come from, and which files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lamella.compare.feed import feed
from lamella.errors import InputRefused
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.requests import load_inputs


@pytest.fixture(scope="module")
def graph(cache_dir: Path) -> Graph:
    return import_model("zoo:cnn-tiny")


def rows(count: int, dtype: str = "float32", side: int = 32) -> np.ndarray:
    return np.arange(count * 3 * side * side).reshape(count, 3, side, side).astype(dtype)


def test_requests_of_a_file_are_its_rows(graph: Graph, tmp_path: Path) -> None:
    rows = np.arange(2 * 3 * 32 * 32, dtype=np.float32).reshape(2, 3, 32, 32)
    np.savez(tmp_path / "x.npz", x=rows, unused=np.zeros(3))
    feeds = load_inputs(tmp_path / "x.npz", graph, 1)
    assert [set(f) for f in feeds] == [{"x"}, {"x"}]
    for k, values in enumerate(feeds):
        np.testing.assert_array_equal(values["x"], rows[k : k + 1])


@pytest.mark.parametrize("content", [None, b"", b"no zip", b"PK\x03\x04"])
def test_a_file_of_requests_that_cannot_be_read_is_refused(graph: Graph, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputRefused, match=r"cannot read .*x\.npz"):
        load_inputs(path, graph, 1)


def test_a_single_array_without_a_name_is_refused(graph: Graph, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(InputRefused, match="one array without a name"):
        load_inputs(tmp_path / "x.npy", graph, 1)


def test_a_file_that_lacks_an_input_is_refused_by_name(graph: Graph, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", y=np.zeros((1, 3, 32, 32), np.float32))
    with pytest.raises(InputRefused, match=r"lacks 'x'; it holds y"):
        load_inputs(tmp_path / "x.npz", graph, 1)


def test_a_request_of_a_larger_batch_is_so_many_rows(graph: Graph, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=rows(6))
    feeds = load_inputs(tmp_path / "x.npz", graph, 3)
    assert len(feeds) == 2
    np.testing.assert_array_equal(feeds[1]["x"], rows(6)[3:])


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (rows(5), r"input 'x' has 5 rows, a request of batch 3 takes 3"),
        (rows(0), r"input 'x' has 0 rows, a request of batch 3 takes 3"),
        (np.float32(1), r"input 'x' has 0 rows"),
        (rows(3, side=31), r"is float32 \[3, 3, 31, 31\], at batch 3 the model takes float32 \[3, 3, 32, 32\]"),
        (rows(3, "float64"), r"is float64 \[3, 3, 32, 32\], at batch 3 the model takes float32"),
    ],
)
def test_a_file_that_holds_no_requests_of_this_batch_is_refused_with_both_numbers(
    graph: Graph, tmp_path: Path, array: np.ndarray, said: str
) -> None:
    np.savez(tmp_path / "x.npz", x=array)
    with pytest.raises(InputRefused, match=said):
        load_inputs(tmp_path / "x.npz", graph, 3)


def test_inputs_that_hold_different_numbers_of_requests_are_refused(cache_dir: Path, tmp_path: Path) -> None:
    bert = import_model("zoo:bert-tiny")
    counts = dict(zip(bert.inputs, (2, 4, 4), strict=False))
    arrays = {n: np.zeros((2 * c, *bert.tensors[n].shape_at()[1:]), bert.tensors[n].dtype) for n, c in counts.items()}
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputRefused, match=r"different numbers of requests: 2 of '.*', 4 of '"):
        load_inputs(tmp_path / "x.npz", bert, 2)


def test_requests_given_from_python_are_held_to_the_batch_too(graph: Graph) -> None:
    draw = feed(graph, 2, [{"x": rows(2)}, {"x": rows(2) + 1}])
    assert [int(draw()["x"][0, 0, 0, 0]) for _ in range(3)] == [0, 1, 0]
    with pytest.raises(InputRefused, match="at batch 2"):
        feed(graph, 2, [{"x": rows(1)}])
