"""Codecs: what comes back, and how far from what was sent."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.codecs import CODECS, Codec, codec
from lamella.errors import CodecError, ConfigError

SMALLEST_NORMAL = 2.0**-126

floats = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)
bits = st.integers(0, 2**32 - 1)


def there_and_back(one: Codec, tensor: np.ndarray) -> np.ndarray:
    data = one.encode(tensor)
    assert data.dtype == np.uint8
    assert data.ndim == 1
    return one.decode(data, tensor.dtype.name, tensor.shape)


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_is_found_by_its_name(name: str) -> None:
    assert codec(name).name == name


def test_an_unknown_codec_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no codec 'zip'; there are none, bf16"):
        codec("zip")


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint8", "int32", "int64", "bool"])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 3, 5)])
def test_types_a_codec_does_not_shorten_come_back_bit_for_bit(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    tensor = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    found = there_and_back(codec(name), np.asarray(tensor))
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert found.tobytes() == tensor.tobytes()


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("shape", [(), (0,), (1, 1), (3, 4)])
def test_every_shape_comes_back(name: str, shape: tuple[int, ...]) -> None:
    assert there_and_back(codec(name), np.zeros(shape, np.float32)).shape == shape


@pytest.mark.parametrize("name", CODECS)
def test_a_tensor_that_is_not_contiguous_comes_back_in_its_own_order(name: str) -> None:
    tensor = np.arange(24, dtype=np.float32).reshape(4, 6)[::2, 1::2].T
    np.testing.assert_array_equal(there_and_back(codec(name), tensor), tensor)


@given(st.lists(bits, max_size=20))
def test_the_plain_codec_keeps_every_bit(values: list[int]) -> None:
    tensor = np.array(values, np.uint32).view(np.float32)
    assert there_and_back(codec("none"), tensor).tobytes() == tensor.tobytes()


def test_the_plain_codec_copies_nothing() -> None:
    tensor = np.ones((3, 4), np.float32)
    assert np.shares_memory(codec("none").encode(tensor), tensor)


@given(st.lists(floats, max_size=20))
def test_half_the_bytes_stay_within_the_stated_bound(values: list[float]) -> None:
    tensor = np.array(values, np.float32)
    one = codec("bf16")
    assert one.encode(tensor).nbytes == tensor.nbytes // 2
    found = there_and_back(one, tensor).astype(np.float64)
    exact = tensor.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(exact))
    np.testing.assert_array_equal(found[np.isinf(exact)], exact[np.isinf(exact)])
    finite = np.isfinite(exact)
    allowed = one.bound * np.maximum(np.abs(exact[finite]), SMALLEST_NORMAL)
    assert np.all(np.abs(found[finite] - exact[finite]) <= allowed)
    np.testing.assert_array_equal(np.signbit(found[finite]), np.signbit(exact[finite]))


@given(st.lists(bits, max_size=20))
def test_rounding_is_that_of_ml_dtypes_for_any_bits_but_never_to_infinity(values: list[int]) -> None:
    tensor = np.array(values, np.uint32).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = tensor.astype(ml_dtypes.bfloat16).astype(np.float32)
    largest = np.float32(float.fromhex("0x1.fep127"))
    rounded_up = np.isinf(expected) & np.isfinite(tensor)
    expected[rounded_up] = np.copysign(largest, tensor[rounded_up])
    np.testing.assert_array_equal(there_and_back(codec("bf16"), tensor), expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_float_stays_finite_as_masks_need(sign: int) -> None:
    tensor = np.array([sign * np.finfo(np.float32).max], np.float32)
    found = there_and_back(codec("bf16"), tensor)
    assert np.isfinite(found).all()
    assert abs(float(found[0]) / float(tensor[0]) - 1) <= codec("bf16").bound


@given(st.lists(floats, max_size=20))
def test_what_was_rounded_once_is_not_rounded_again(values: list[float]) -> None:
    once = there_and_back(codec("bf16"), np.array(values, np.float32))
    np.testing.assert_array_equal(there_and_back(codec("bf16"), once), once)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("size", [0, 1, 7, 11, 13, 23, 25, 48])
def test_bytes_that_do_not_fit_the_shape_are_refused(name: str, size: int) -> None:
    with pytest.raises(CodecError, match=rf"{size} bytes are no .* tensor of shape \[2, 3\]"):
        codec(name).decode(np.zeros(size, np.uint8), "float32", (2, 3))


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("size", [0, 5, 7, 47, 49])
def test_bytes_that_do_not_fit_another_type_are_refused(name: str, size: int) -> None:
    with pytest.raises(CodecError, match=f"{size} bytes are no int64 tensor"):
        codec(name).decode(np.zeros(size, np.uint8), "int64", (2, 3))
