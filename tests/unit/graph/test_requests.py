"""Requests: random ones stay in the ranges that are known or given; files of them are refused in clear words."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from lamella.errors import ConfigError, InputRefused, StorageError
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.requests import read_arrays, request, unknown_ranges, write_arrays
from tests.unit.graph.onnx_models import dense, graph_of, model, node


@pytest.fixture
def bert() -> Graph:
    return import_model("zoo:bert-tiny")


@pytest.fixture
def bytes_in(tmp_path: Path) -> Graph:
    """A model of one uint8 input, batch bound."""
    kinds = {"pixels": TensorProto.UINT8, "y": TensorProto.FLOAT}
    cast = node("Cast", ["pixels"], ["y"], to=TensorProto.FLOAT)
    return graph_of(model([cast], {"pixels": [1, 50]}, {"y": None}, kinds=kinds), tmp_path)


def test_a_zoo_models_request_binds_the_batch_and_stays_in_range(bert: Graph) -> None:
    feeds = request(bert, np.random.default_rng(1), batch=5)
    ids = feeds["input_ids"]
    assert ids.shape == (5, 32)
    assert ids.dtype == np.int64
    assert 0 <= ids.min() <= ids.max() < 1000
    assert (feeds["attention_mask"] == 1).all()


def test_a_request_follows_its_seed(tmp_path: Path) -> None:
    graph = graph_of(dense(), tmp_path)
    first, again, other = (request(graph, np.random.default_rng(seed))["x"] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_scalar_input_is_drawn_as_an_array(tmp_path: Path) -> None:
    proto = model([node("Add", ["x", "by"], ["y"])], {"x": [1, 4], "by": []}, {"y": None})
    value = request(graph_of(proto, tmp_path), np.random.default_rng(1))["by"]
    assert type(value) is np.ndarray
    assert value.shape == ()


@pytest.mark.parametrize(("name", "batch"), [("bound", 2), ("free", 0)])
def test_an_impossible_batch_is_refused(name: str, batch: int, tmp_path: Path) -> None:
    graph = graph_of(dense(["n", 8]), tmp_path, {"x": (1 if name == "bound" else "N", 8)})
    with pytest.raises(InputRefused, match=f"batch of {batch}"):
        request(graph, np.random.default_rng(1), batch=batch)


def test_a_range_of_an_input_the_model_does_not_have_names_those_it_has(bytes_in: Graph) -> None:
    for ask in (lambda r: request(bytes_in, np.random.default_rng(0), ranges=r), lambda r: unknown_ranges(bytes_in, r)):
        with pytest.raises(ConfigError, match="no input 'pixel'; its inputs are pixels") as caught:
            ask({"pixel": (0, 5)})
        assert caught.value.try_ == "--range pixels=0:5"


@pytest.mark.parametrize("bounds", [(0.5, 0.7), (-1, 5), (0, 257)])
def test_a_range_without_values_of_the_inputs_type_is_refused(bounds: tuple[float, float], bytes_in: Graph) -> None:
    with pytest.raises(ConfigError, match="whole numbers from 0 to 255"):
        request(bytes_in, np.random.default_rng(0), ranges={"pixels": bounds})


def test_a_range_may_hold_every_value_of_the_type(bytes_in: Graph) -> None:
    assert unknown_ranges(bytes_in) == ["pixels"]
    assert unknown_ranges(bytes_in, {"pixels": (0, 256)}) == []
    values = request(bytes_in, np.random.default_rng(0), ranges={"pixels": (250, 256)})["pixels"]
    assert set(np.unique(values)) == {250, 251, 252, 253, 254, 255}


# ------------------------------------------------------------------------------------------------ files of arrays


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as whole:
        for name, content in members.items():
            whole.writestr(name.replace("__", "."), content)
    return file.getvalue()


X = np.arange(8, dtype=np.float32)
WHOLE = zipped(x__npy=npy(X))
DIRECTORY = WHOLE.rfind(b"PK\x01\x02")
HUGE = npy(X).replace(b"(8,), }", b"(9" + b"0" * 14 + b",), }").replace(b" " * 14 + b"\n", b"\n")
REFUSED = {
    "nothing": (b"", r"it is no \.npz file \(0 bytes\)"),
    "text": (b"x = 1, 2, 3", r"it is no \.npz file \(11 bytes\)"),
    "a pickle": (pickle.dumps({"x": 1}), r"it is no \.npz file"),
    "a plain array": (npy(X), "one array without a name"),
    "half": (WHOLE[: len(WHOLE) // 2], r"cut short at \d+ bytes"),
    "a pickled member": (zipped(x__npy=pickle.dumps(1)), "member 'x' is no array"),
    "a text member": (zipped(x__npy=npy(X), notes__txt=b"hello"), r"member 'notes\.txt' is no array"),
    "a member cut short": (zipped(x__npy=npy(X)[:-4]), "EOF"),
    "a bad header": (zipped(x__npy=b"\x93NUMPY\x01\x00\x10\x00{'descr': garbage"), r"cannot read"),
    "a bad type": (zipped(x__npy=npy(X).replace(b"'<f4'", b"'<q9'")), "dtype"),
    "a huge shape": (zipped(x__npy=HUGE), "Unable to allocate"),
    "a flipped byte": (WHOLE[:150] + bytes([WHOLE[150] ^ 255]) + WHOLE[151:], "CRC"),
    "a password": (WHOLE[: DIRECTORY + 8] + b"\x01" + WHOLE[DIRECTORY + 9 :], "encrypted"),
    "a strange compression": (WHOLE[: DIRECTORY + 10] + b"\x63" + WHOLE[DIRECTORY + 11 :], "compression"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_holds_no_request_is_refused_in_clear_words(kind: str, tmp_path: Path) -> None:
    content, said = REFUSED[kind]
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(InputRefused, match=said) as caught:
        read_arrays(tmp_path / "x.npz")
    assert caught.value.message.startswith(f"cannot read {tmp_path / 'x.npz'}: ")
    assert caught.value.try_


def test_python_objects_are_refused_with_the_array_and_a_way_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", good=X, ragged=np.array([[1], None], object))
    with pytest.raises(InputRefused, match="Python objects, not numbers") as caught:
        read_arrays(tmp_path / "x.npz")
    assert caught.value.where == "array 'ragged'"
    assert "astype" in caught.value.try_


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="No such file"):
        read_arrays(tmp_path / "x.npz")
    with pytest.raises(InputRefused, match="Is a directory"):
        read_arrays(tmp_path)


def test_directories_inside_a_zip_are_no_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as whole:
        whole.writestr("sub/", "")
        whole.writestr("sub/x.npy", npy(X))
    assert list(read_arrays(tmp_path / "x.npz")) == ["sub/x"]


def test_arrays_of_any_name_are_written_and_read_back(tmp_path: Path) -> None:
    arrays = {"file": X, "allow_pickle": X + 1, "gpu_0/softmax_1": X.reshape(2, 4), "w[/x]": np.array(3), "self": X}
    write_arrays(tmp_path / "y.npz", arrays)
    found = read_arrays(tmp_path / "y.npz")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_arrays_that_cannot_be_written_are_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(StorageError, match=r"y\.npz"):
        write_arrays(tmp_path / "file" / "y.npz", {"x": X})
