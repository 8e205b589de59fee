"""The zoo: names, files, and what comes out of the small models when they run."""

from __future__ import annotations

import errno
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from lamella import errors, zoo
from lamella.graph.shapes import random_values
from lamella.units import dim_at
from lamella.zoo.draft import Blueprint

TINY = (
    *("cnn-tiny", "bert-tiny", "lstm-tiny", "inception-v3-tiny", "vit-tiny", "gpt2-tiny", "bilstm-tiny"),
    *("gru-seq2seq-tiny", "gcn-tiny", "dlrm-tiny", "deepfm-tiny"),
)
QUIET = {"bert-tiny", "vit-tiny", "gpt2-tiny", "deepfm-tiny", "inception-v3-tiny"}
"""Small on purpose: attention and embeddings begin near zero, as in the papers; and where an image is smaller than the
kernels, most of what they read is padding."""
LIGHT_SMALL = ("inception", "densenet121")  # one Gemm reached through Reshape; one with Unsqueezed Mul and Add
FROM_WHEELS = tuple(name for name in zoo.names() if zoo.get(name).requires not in {None, "onnx"})
NUMPY_TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the whole file, so that each model is built once."""
    return tmp_path_factory.mktemp("zoo")


def session_of(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feeds_of(name: str, batch: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {s.name: tuple(dim_at(d, batch) for d in s.shape) for s in zoo.get(name).inputs}
    return {s.name: random_values(np.dtype(s.dtype), shapes[s.name], s, rng) for s in zoo.get(name).inputs}


def assert_rows_equal_alone_and_together(name: str, path: Path) -> None:
    session = session_of(path)
    feeds = feeds_of(name, batch=3)
    together = session.run(None, feeds)[0]
    assert together.shape[0] == 3
    assert not np.allclose(together[0], together[1], rtol=1e-3, atol=0), "outputs should depend on the input"
    for row in range(3):
        alone = session.run(None, {key: value[row : row + 1] for key, value in feeds.items()})[0]
        np.testing.assert_allclose(alone, together[row : row + 1], rtol=1e-4, atol=1e-5)


def path_or_skip(name: str, cache: Path) -> Path:
    try:
        return zoo.materialise(name, cache)
    except errors.ModelError as error:
        pytest.skip(f"wheel absent: {error.message}")


def test_the_promised_models_are_registered_once_each() -> None:
    assert len(set(zoo.names())) == len(zoo.names())
    assert {
        *("vgg19", "resnet50", "alexnet", "densenet121", "inception", "bert-base", "lstm", *TINY),
        *("inception-v3", "vit-large", "gpt2-medium", "lstm-2048", "bilstm", "gru-seq2seq", "gcn", "dlrm", "deepfm"),
        *("rapidocr-det", "rapidocr-rec", "rapidocr-cls", "dnsmos", "dnsmos-p808"),
        *("minilm-int8", "silero-vad", "magika"),
    } <= set(zoo.names())


def test_every_entry_is_complete() -> None:
    for name in zoo.names():
        model = zoo.get(name)
        assert model.name == name
        assert model.summary
        assert model.licence
        assert model.inputs
        for spec in model.inputs:
            assert spec.low < spec.high
            assert {dim for dim in spec.shape if isinstance(dim, str)} <= {"N"}


def test_an_unknown_name_is_answered_with_the_closest_one_and_the_list() -> None:
    with pytest.raises(errors.ModelError, match="'resnet50'") as caught:
        zoo.get("resnet-50")
    assert all(name in str(caught.value) for name in zoo.names())
    with pytest.raises(errors.ModelError):
        zoo.materialise("zzz", Path("unused"))


def test_importing_the_zoo_imports_no_onnx() -> None:
    code = "import sys, lamella.zoo; sys.exit(any(m.split('.')[0] in {'onnx', 'onnxruntime'} for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", TINY)
def test_the_same_recipe_gives_the_same_bytes(name: str, cache: Path, tmp_path: Path) -> None:
    assert zoo.materialise(name, cache).read_bytes() == zoo.materialise(name, tmp_path).read_bytes()


def test_a_light_recipe_gives_the_same_bytes_too(cache: Path, tmp_path: Path) -> None:
    name = "inception"
    assert zoo.materialise(name, cache).read_bytes() == zoo.materialise(name, tmp_path).read_bytes()


def test_a_cached_file_is_found_and_not_written_again(cache: Path) -> None:
    path = zoo.materialise("cnn-tiny", cache)
    written = path.stat().st_mtime_ns
    assert zoo.materialise("cnn-tiny", cache) == path
    assert path.stat().st_mtime_ns == written
    assert path.parent == cache
    assert path.name.startswith("cnn-tiny.")
    assert path.suffix == ".onnx"


@pytest.mark.parametrize("name", [*TINY, *LIGHT_SMALL])
def test_rows_of_a_batch_equal_single_runs(name: str, cache: Path) -> None:
    assert_rows_equal_alone_and_together(name, zoo.materialise(name, cache))


@pytest.mark.parametrize("name", [*TINY, *LIGHT_SMALL])
def test_a_built_file_is_valid_and_holds_all_its_weights(name: str, cache: Path) -> None:
    model = onnx.load(zoo.materialise(name, cache))
    onnx.checker.check_model(model, full_check=True)
    graph = model.graph
    assert not graph.value_info
    assert not any(node.op_type == "ConstantOfShape" for node in graph.node)
    assert [entry.name for entry in graph.input] == [spec.name for spec in zoo.get(name).inputs]
    assert all(entry.type.tensor_type.shape.dim[0].dim_param == "N" for entry in (*graph.input, *graph.output))
    used = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= used
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > 1:
            assert values.std() > 0, f"{tensor.name} repeats one number"


@pytest.mark.parametrize("name", [*(t for t in TINY if t not in QUIET), "inception-v3", *LIGHT_SMALL])
def test_the_signal_neither_vanishes_nor_explodes_inside(name: str, cache: Path) -> None:
    model = onnx.load(zoo.materialise(name, cache))
    loud = {"Conv", "Gemm", "LSTM", "GRU", "MatMul", "Concat"}
    inside = [node.output[0] for node in model.graph.node if node.op_type in loud]
    inside = [tensor for tensor in inside if tensor not in {entry.name for entry in model.graph.output}]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(tensor, 1, None) for tensor in inside)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run(inside, feeds_of(name))
    spread = {t: float(value.std()) for t, value in zip(inside, values, strict=True) if value.size > 1}
    assert {tensor: std for tensor, std in spread.items() if not 0.1 < std < 10} == {}


@pytest.mark.parametrize("name", ["cnn-tiny", "inception", "inception-v3"])
def test_probabilities_are_neither_one_hot_nor_uniform(name: str, cache: Path) -> None:
    feeds = feeds_of(name)
    (row,) = session_of(zoo.materialise(name, cache)).run(None, feeds)[0]
    assert row.sum() == pytest.approx(1, abs=1e-4)
    assert row.max() < 0.5
    assert row.max() > 2 * row.min()


@pytest.mark.parametrize("name", FROM_WHEELS)
def test_a_wheel_model_lies_in_its_wheel_and_takes_what_its_entry_says(name: str, cache: Path) -> None:
    path = path_or_skip(name, cache)
    assert cache not in path.parents
    model = zoo.get(name)
    session = session_of(path)
    assert [(entry.name, NUMPY_TYPES[entry.type]) for entry in session.get_inputs()] == [
        (spec.name, spec.dtype) for spec in model.inputs
    ]
    outputs = session.run(None, feeds_of(name))
    assert all(np.isfinite(output).all() for output in outputs)


@pytest.mark.parametrize("name", ["rapidocr-cls", "rapidocr-rec", "dnsmos-p808", "minilm-int8", "magika"])
def test_rows_of_a_wheel_models_batch_equal_single_runs(name: str, cache: Path) -> None:
    assert_rows_equal_alone_and_together(name, path_or_skip(name, cache))


def test_a_missing_wheel_is_answered_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.ModelError, match="pip install --no-deps rapidocr"):
        zoo.materialise("rapidocr-det", tmp_path)
    with pytest.raises(errors.ModelError, match="pip install --no-deps onnx"):
        zoo.materialise("vgg19", tmp_path)


def test_a_full_disk_is_a_storage_error_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(self: Blueprint) -> Iterator[bytes]:
        yield b"some"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Blueprint, "stream", full)
    with pytest.raises(errors.StorageError, match="No space left"):
        zoo.materialise("cnn-tiny", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_a_folder_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(errors.StorageError, match="could not write"):
        zoo.materialise("cnn-tiny", tmp_path / "file")
