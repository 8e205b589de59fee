"""The mapped weights file: alignment, content, and a disk that refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from lamella.errors import ModelError, StorageError
from lamella.graph.weights import INLINE_BYTES, alignment, external, read_external, write_weights


@pytest.mark.parametrize(
    ("size", "step"), [(1, 64), (4095, 64), (4096, 4096), ((1 << 20) - 1, 4096), (1 << 20, 65536), (1 << 30, 65536)]
)
def test_larger_tensors_start_on_larger_boundaries(size: int, step: int) -> None:
    assert alignment(size) == step


@given(st.lists(st.integers(0, 40_000), max_size=8))
def test_weights_are_aligned_apart_and_whole(sizes: list[int]) -> None:
    import tempfile

    arrays = {f"w{i}": np.random.default_rng(i).integers(0, 256, n).astype(np.uint8) for i, n in enumerate(sizes)}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "weights.bin"
        table, protos = write_weights(path, arrays)
        assert path.stat().st_size % 4096 == 0
        end = 0
        for key, proto in zip(arrays, protos, strict=True):
            weight = table[key]
            if arrays[key].nbytes <= INLINE_BYTES:
                assert weight.offset == -1
                np.testing.assert_array_equal(numpy_helper.to_array(proto), arrays[key])
                continue
            assert weight.offset % alignment(weight.bytes) == 0
            assert weight.offset >= end
            end = weight.offset + weight.bytes
            np.testing.assert_array_equal(read_external(proto, path.parent), arrays[key])


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint16", "int64", "bool", "bfloat16"])
def test_every_type_survives(dtype: str, tmp_path: Path) -> None:
    import ml_dtypes

    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    array = np.arange(4000).reshape(40, 100).astype(kind)
    table, protos = write_weights(tmp_path / "weights.bin", {"w": array[:, ::2].T})
    assert table["w"].dtype == dtype
    found = read_external(protos[0], tmp_path)
    assert found.dtype == kind
    np.testing.assert_array_equal(found, array[:, ::2].T)


def test_a_weight_is_mapped_read_only_not_copied(tmp_path: Path) -> None:
    _, protos = write_weights(tmp_path / "weights.bin", {"w": np.ones(4096, np.float32)})
    found = read_external(protos[0], tmp_path)
    assert isinstance(found, np.memmap)
    assert not found.flags.writeable


def test_a_file_cut_short_is_refused_with_both_sizes(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(100))
    proto = external("w", np.dtype(np.float32), (10, 10), "w.bin", 0, 400)
    with pytest.raises(ModelError, match="has 100 bytes, the model needs 400: truncated"):
        read_external(proto, tmp_path)


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write weights\.bin: No such file or directory"):
        write_weights(tmp_path / "nowhere" / "weights.bin", {"w": np.ones(4096, np.float32)})
