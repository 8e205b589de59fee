"""The learned codec: what it loses is what it leaves out, and what it cannot say travels as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.codecs import Codecs, is_fitted, lossless
from lamella.codecs.linear import Linear, channel_axis, linear, read_linear
from lamella.errors import CodecError, ConfigError
from lamella.profile.fitting import Moments

SHAPES = st.sampled_from([(2, 16, 5, 7), (1, 16, 1, 40), (3, 50, 16), (1, 200, 16), (90, 16), (1, 16, 3, 4, 5)])
SEEDS = st.integers(0, 2**32 - 1)


def fitted(tensor: np.ndarray, components: int) -> tuple[Linear, np.ndarray]:
    """The codec fitted to this tensor, and the eigenvalues of its channels' covariance."""
    rows = np.moveaxis(tensor, channel_axis(tensor.ndim), -1).reshape(-1, 16).astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True))
    found = Linear("pca-4", rows.mean(0).astype(np.float32), vectors.T[::-1][:components].astype(np.float32))
    return found, values[::-1]


def there_and_back(one: Linear, tensor: np.ndarray) -> np.ndarray:
    return one.decode(one.encode(tensor), tensor.dtype.name, tensor.shape)


@given(SHAPES, SEEDS, st.integers(1, 16))
def test_the_squared_error_is_the_energy_of_what_is_left_out(shape: tuple[int, ...], seed: int, kept: int) -> None:
    rng = np.random.default_rng(seed)
    tensor = rng.standard_normal(shape).astype(np.float32)
    tensor *= rng.uniform(0.1, 3, [n if k == channel_axis(len(shape)) else 1 for k, n in enumerate(shape)])
    one, energies = fitted(tensor, kept)
    error = np.mean((there_and_back(one, tensor).astype(np.float64) - tensor) ** 2) * 16
    half = 2e-7 * energies.sum() + 1e-12  # coordinates are rounded to 11 bits: 2**-24 of their squares, at most
    assert error == pytest.approx(energies[kept:].sum(), rel=2e-3, abs=half)
    assert one.encode(tensor).nbytes == tensor.nbytes // 16 * kept // 2


@given(SHAPES, SEEDS)
def test_with_every_component_only_half_precision_is_lost(shape: tuple[int, ...], seed: int) -> None:
    tensor = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    one, _ = fitted(tensor, 16)
    norms = np.linalg.norm(np.moveaxis(tensor - there_and_back(one, tensor), channel_axis(len(shape)), -1), axis=-1)
    lengths = np.linalg.norm(np.moveaxis(tensor, channel_axis(len(shape)), -1), axis=-1)
    assert np.all(norms <= 2.0**-11 * (lengths + np.linalg.norm(one.mean)) + 1e-5)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 3e38])
def test_what_half_precision_cannot_say_travels_as_it_is(odd: float) -> None:
    tensor = np.random.default_rng(0).standard_normal((2, 16, 4, 4)).astype(np.float32)
    one, _ = fitted(tensor, 4)
    tensor[1, 3, 2, 1] = odd
    assert one.encode(tensor).nbytes == tensor.nbytes
    assert there_and_back(one, tensor).tobytes() == tensor.tobytes()


@pytest.mark.parametrize("shape", [(2, 8, 4, 4), (16, 8), (0, 16), ()])
def test_tensors_of_other_channels_or_of_none_travel_as_they_are(shape: tuple[int, ...]) -> None:
    one, _ = fitted(np.random.default_rng(0).standard_normal((9, 16)).astype(np.float32), 4)
    for dtype in ("float32", "int64"):
        tensor = np.ones(shape, dtype)
        assert there_and_back(one, tensor).tobytes() == tensor.tobytes()


@pytest.mark.parametrize("size", [0, 1, 39, 41, 80, 319, 321])
def test_bytes_that_do_not_fit_the_shape_are_refused(size: int) -> None:
    one, _ = fitted(np.random.default_rng(0).standard_normal((9, 16)).astype(np.float32), 4)
    with pytest.raises(CodecError, match=rf"{size} bytes are no pca-4 tensor of shape \[5, 16\]"):
        one.decode(np.zeros(size, np.uint8), "float32", (5, 16))


@given(SHAPES, SEEDS)
def test_moments_of_several_tensors_give_the_components_of_all(shape: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((16, 3))

    def draw() -> np.ndarray:
        axis = channel_axis(len(shape))
        positions = [n for k, n in enumerate(shape) if k != axis]
        return np.moveaxis(rng.standard_normal((*positions, 3)) @ mixing.T + 1, -1, axis).astype(np.float32)

    moments = Moments(16)
    for _ in range(8):
        moments.add(draw())
    basis = moments.basis()
    assert basis is not None
    fresh = draw()  # three directions hold all there is, so four components lose nothing
    assert np.allclose(there_and_back(basis.codec(4), fresh), fresh, atol=0.02)


def test_fewer_positions_than_channels_or_a_nan_fit_nothing() -> None:
    few, odd = Moments(16), Moments(16)
    few.add(np.ones((15, 16), np.float32))
    odd.add(np.full((20, 16), np.nan, np.float32))
    assert few.basis() is None
    assert odd.basis() is None


def test_parameters_in_a_file_are_the_codec_again(tmp_path: Path) -> None:
    tensor = np.random.default_rng(0).standard_normal((30, 16)).astype(np.float32)
    one, _ = fitted(tensor, 4)
    np.save(tmp_path / "p.npy", one.parameters())
    again = read_linear("pca-4", tmp_path / "p.npy")
    assert again.encode(tensor).tobytes() == one.encode(tensor).tobytes()
    (tmp_path / "p.npy").write_bytes((tmp_path / "p.npy").read_bytes()[:-7])
    with pytest.raises(CodecError, match="cannot read the parameters of the codec pca-4"):
        read_linear("pca-4", tmp_path / "p.npy")
    with pytest.raises(CodecError, match="cannot read"):
        read_linear("pca-4", tmp_path / "none.npy")
    for wrong in (
        np.zeros((1, 4), np.float32),
        np.zeros((6, 4), np.float32),
        np.zeros((3, 4)),
        np.zeros(4, np.float32),
    ):
        with pytest.raises(CodecError, match="are no parameters of the codec pca-2"):
            linear("pca-2", wrong)


def test_a_fitted_codec_is_found_by_its_tensor_alone() -> None:
    one, _ = fitted(np.random.default_rng(0).standard_normal((30, 16)).astype(np.float32), 4)
    codecs = Codecs({"t": one})
    assert codecs.of("pca-4", "t") is one
    assert codecs.of("bf16", "t").name == "bf16"
    for name, tensor in (("pca-4", "other"), ("pca-8", "t")):
        with pytest.raises(CodecError, match="is not fitted to the tensor"):
            codecs.of(name, tensor)
    with pytest.raises(ConfigError, match="no codec 'pca'"):
        codecs.of("pca", "t")
    assert [is_fitted(n) for n in ("pca-4", "pca-", "pca-x", "int8")] == [True, False, False, False]
    assert [lossless(n) for n in ("none", "shuffle-zstd", "bf16", "pca-4")] == [True, True, False, False]
