"""Codecs: what comes back, and how far from what was sent."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.codecs import CODECS, Codec, codec, installed
from lamella.codecs.shuffle import AS_IT_IS, PACKED, _zstd
from lamella.errors import CodecError, ConfigError, WireError

SMALLEST_NORMAL = 2.0**-126

floats = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)
bits = st.integers(0, 2**32 - 1)

HERE = installed()
LOSSLESS = [name for name in HERE if codec(name).bound == 0]
needs_zstd = pytest.mark.skipif("shuffle-zstd" not in HERE, reason="needs zstd: pip install 'lamella[zstd]'")
DTYPES = ["float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "uint64", "bool", "complex64"]
SHAPES = st.lists(st.integers(0, 5), max_size=5).map(tuple)


def there_and_back(one: Codec, tensor: np.ndarray) -> np.ndarray:
    data = one.encode(tensor)
    assert data.dtype == np.uint8
    assert data.ndim == 1
    return one.decode(data, tensor.dtype.name, tensor.shape)


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_is_found_by_its_name(name: str) -> None:
    assert codec(name).name == name


def test_an_unknown_codec_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match="no codec 'zip'; there are none, bf16, fp16, int8, shuffle-zstd, bf16-shuffle-zstd"
    ):
        codec("zip")


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint8", "int32", "int64", "bool"])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 3, 5)])
def test_types_a_codec_does_not_shorten_come_back_bit_for_bit(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    tensor = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    found = there_and_back(codec(name), np.asarray(tensor))
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert found.tobytes() == tensor.tobytes()


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("shape", [(), (0,), (1, 1), (3, 4)])
def test_every_shape_comes_back(name: str, shape: tuple[int, ...]) -> None:
    assert there_and_back(codec(name), np.zeros(shape, np.float32)).shape == shape


@pytest.mark.parametrize("name", HERE)
def test_a_tensor_that_is_not_contiguous_comes_back_in_its_own_order(name: str) -> None:
    tensor = np.arange(24, dtype=np.float32).reshape(4, 6)[::2, 1::2].T
    np.testing.assert_array_equal(there_and_back(codec("none"), tensor), tensor)
    found, straight = there_and_back(codec(name), tensor), there_and_back(codec(name), tensor.copy())
    np.testing.assert_array_equal(found, straight)


@pytest.mark.parametrize("name", HERE)
def test_a_tensor_of_the_other_byte_order_comes_back_in_this_machine_s(name: str) -> None:
    tensor = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = there_and_back(codec(name), tensor.astype(tensor.dtype.newbyteorder(">")))
    np.testing.assert_array_equal(found, there_and_back(codec(name), tensor))


@given(st.data(), st.sampled_from(LOSSLESS), st.sampled_from(DTYPES), SHAPES)
def test_without_loss_is_bit_for_bit_for_any_bits_of_any_type_and_shape(
    data: st.DataObject, name: str, dtype: str, shape: tuple[int, ...]
) -> None:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = data.draw(st.one_of(st.binary(min_size=size, max_size=size), st.just(bytes(size))))
    tensor = np.frombuffer(raw, dtype).reshape(shape)
    found = there_and_back(codec(name), tensor)
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert found.tobytes() == tensor.tobytes()


@given(st.data(), st.sampled_from(HERE), SHAPES)
def test_no_codec_is_more_than_a_byte_longer_or_loses_a_nan_or_an_infinity(
    data: st.DataObject, name: str, shape: tuple[int, ...]
) -> None:
    count = int(np.prod(shape))
    tensor = np.array(data.draw(st.lists(floats, min_size=count, max_size=count)), np.float32).reshape(shape)
    assert codec(name).encode(tensor).nbytes <= tensor.nbytes + 1
    found = there_and_back(codec(name), tensor)
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(tensor))
    np.testing.assert_array_equal(np.isposinf(found), np.isposinf(tensor))
    np.testing.assert_array_equal(np.isneginf(found), np.isneginf(tensor))


@given(st.lists(floats, max_size=20))
def test_half_precision_is_ieee_s_or_the_tensor_as_it_was(values: list[float]) -> None:
    tensor = np.array(values, np.float32)
    one = codec("fp16")
    found = there_and_back(one, tensor)
    if (np.abs(tensor[np.isfinite(tensor)]) > 65504).any():
        assert found.tobytes() == tensor.tobytes()
        return
    assert one.encode(tensor).nbytes == tensor.nbytes // 2
    finite = np.isfinite(tensor)
    exact = tensor[finite].astype(np.float64)
    allowed = np.maximum(one.bound * np.abs(exact), 2.0**-25)
    assert np.all(np.abs(found[finite] - exact) <= allowed)


@given(
    st.data(),
    st.sampled_from([(40,), (1, 40), (3, 40), (2, 3, 20), (1, 4, 5, 6), (2, 2, 2, 2, 5)]),
    st.sampled_from([1e-44, 1e-38, 1e-3, 1.0, 1e6, 1e37]),
    st.sampled_from([0.0, 1.0, -1e5, 5e37]),
)
def test_levels_are_within_half_a_step_of_their_channel(
    data: st.DataObject, shape: tuple[int, ...], scale: float, offset: float
) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    tensor = (np.random.default_rng(seed).standard_normal(shape) * scale + offset).astype(np.float32)
    one = codec("int8")
    assert one.encode(tensor).nbytes < tensor.nbytes
    channels = int(np.prod(shape[:2])) if len(shape) > 2 else shape[0] if len(shape) == 2 else 1
    exact = tensor.astype(np.float64).reshape(channels, -1)
    found = there_and_back(one, tensor).astype(np.float64).reshape(channels, -1)
    allowed = one.bound * (1 + 1e-5) * np.ptp(exact, axis=1) + 2.0**-126 + 2.0**-23 * np.abs(exact).max(axis=1)
    assert np.all(np.abs(found - exact) <= allowed[:, None])


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, np.finfo(np.float32).max, np.finfo(np.float32).min])
def test_levels_are_not_used_where_they_could_not_say_it(odd: float) -> None:
    tensor = np.ones((2, 3, 50), np.float32)
    assert codec("int8").encode(tensor).nbytes == 6 * 8 + 300
    tensor[1, 1, 7] = odd
    assert codec("int8").encode(tensor).nbytes == tensor.nbytes
    assert there_and_back(codec("int8"), tensor).tobytes() == tensor.tobytes()


def test_a_channel_of_one_value_comes_back_exactly() -> None:
    tensor = np.full((1, 2, 30), 0.1, np.float32)
    np.testing.assert_array_equal(there_and_back(codec("int8"), tensor), tensor)


@needs_zstd
def test_activations_after_a_relu_are_shorter_shuffled() -> None:
    tensor = np.maximum(np.random.default_rng(0).standard_normal((1, 16, 28, 28)), 0).astype(np.float32)
    plain, half = codec("shuffle-zstd").encode(tensor), codec("bf16-shuffle-zstd").encode(tensor)
    assert plain[0] == half[0] == PACKED
    assert half.nbytes < 0.6 * plain.nbytes < 0.6 * 0.75 * tensor.nbytes
    np.testing.assert_array_equal(
        there_and_back(codec("bf16-shuffle-zstd"), tensor), there_and_back(codec("bf16"), tensor)
    )


@needs_zstd
def test_the_bytes_of_a_shuffled_tensor_are_planes_in_a_frame_others_read() -> None:
    tensor = np.arange(1000, dtype=np.int32)
    data = codec("shuffle-zstd").encode(tensor)
    planes = np.frombuffer(_zstd().decompress(data[1:].tobytes()), np.uint8)
    np.testing.assert_array_equal(planes.reshape(4, 1000).T.tobytes(), tensor.tobytes())


@needs_zstd
def test_what_does_not_compress_goes_as_it_is() -> None:
    tensor = np.random.default_rng(0).integers(0, 256, 4096).astype(np.uint8)
    data = codec("shuffle-zstd").encode(tensor)
    assert data[0] == AS_IT_IS
    assert data[1:].tobytes() == tensor.tobytes()


@needs_zstd
@given(st.data())
def test_damage_to_a_frame_is_noticed(data: st.DataObject) -> None:
    tensor = np.repeat(np.arange(64, dtype=np.float32), 4).reshape(4, 64)
    for name in ("shuffle-zstd", "bf16-shuffle-zstd"):
        good = codec(name).encode(tensor)
        assert good[0] == PACKED
        bad = good.copy()
        bad[data.draw(st.integers(0, len(bad) - 1))] ^= data.draw(st.integers(1, 255))
        cut = good[: data.draw(st.integers(0, len(good) - 1))]
        for wrong in (bad, cut, np.append(good, np.uint8(0))):
            try:
                found = codec(name).decode(wrong, "float32", tensor.shape)
            except WireError:
                continue
            # a frame's header has bits that mean nothing; what comes back is then what was sent
            assert found.tobytes() == codec(name).decode(good, "float32", tensor.shape).tobytes()


@needs_zstd
def test_a_frame_that_says_it_is_huge_takes_no_more_memory_than_the_tensor() -> None:
    bomb = np.frombuffer(b"\x02" + _zstd().compress(bytes(50_000_000)), np.uint8)
    with pytest.raises(CodecError, match="they hold no tensor of 40000 bytes"):
        codec("shuffle-zstd").decode(bomb, "float32", (10000,))


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize(("dtype", "shape"), [("object", (2,)), ("float33", (2,)), ("float32", (-1,))])
def test_what_no_tensor_is_is_refused(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(CodecError, match=r"no tensor has|have no bytes"):
        codec(name).decode(np.zeros(8, np.uint8), dtype, shape)


def test_without_zstd_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> None:
        raise ImportError(name)

    _zstd.cache_clear()
    monkeypatch.setattr("lamella.codecs.shuffle.import_module", gone)
    try:
        assert installed() == ("none", "bf16", "fp16", "int8")
        with pytest.raises(ConfigError, match=r"backports\.zstd") as caught:
            codec("shuffle-zstd").encode(np.zeros(3, np.float32))
        assert caught.value.try_ == "pip install 'lamella[zstd]'"
    finally:
        _zstd.cache_clear()


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


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("size", [0, 1, 7, 11, 13, 23, 25, 48])
def test_bytes_that_do_not_fit_the_shape_are_refused(name: str, size: int) -> None:
    with pytest.raises(CodecError, match=rf"{size} bytes are no .* tensor of shape \[2, 3\]"):
        codec(name).decode(np.zeros(size, np.uint8), "float32", (2, 3))


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("size", [0, 5, 7, 47, 49])
def test_bytes_that_do_not_fit_another_type_are_refused(name: str, size: int) -> None:
    with pytest.raises(CodecError, match=rf"{size} bytes are no (int64|[a-z0-9-]*shuffle-zstd) tensor"):
        codec(name).decode(np.zeros(size, np.uint8), "int64", (2, 3))
