"""Hops with a codec: the same answers where nothing is lost, fewer bytes, and faults that say what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lamella.codecs import codec, installed
from lamella.codecs.shuffle import _zstd
from lamella.deploy.local import Channel, Deployment
from lamella.deploy.sizing import _Bench, allocate
from lamella.errors import CodecError, ConfigError, LawBroken
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.limits.unlimited import Unlimited
from lamella.platforms import platform
from lamella.runtime.chain import Answer
from lamella.runtime.tensors import Tensors
from tests.faults import packages

CUTS = (2, 6)
CODED = [name for name in installed() if name != "none"]
LOSSLESS = [name for name in CODED if codec(name).bound == 0]


@pytest.fixture(scope="module")
def coded(cnn: Graph, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three slices of `three_slices`, once by each codec."""
    space = tmp_path_factory.mktemp("coded")
    return {name: packages.package(cnn, space / name, CUTS, codec=name) for name in CODED}


@pytest.fixture(params=["shared-memory", "socket"])
def channel(request: pytest.FixtureRequest) -> Channel:
    chosen: Channel = request.param
    return chosen


@pytest.mark.parametrize("name", LOSSLESS)
def test_without_loss_answers_are_bit_for_bit_those_without_a_codec(
    name: str, coded: dict[str, Path], three_slices: Path, cnn: Graph, rng: np.random.Generator, channel: Channel
) -> None:
    inputs = [request(cnn, rng, batch) for batch in (1, 1, 3, 2, 3, 1)]

    def answers(package: Path) -> list[Answer]:
        with Deployment(package, channel=channel) as deployment:
            return [deployment.infer(x) for x in inputs]

    for found, exact in zip(answers(coded[name]), answers(three_slices), strict=True):
        assert found.outputs.keys() == exact.outputs.keys()
        for output in exact.outputs:
            assert found.outputs[output].tobytes() == exact.outputs[output].tobytes()


@pytest.mark.parametrize("name", CODED)
def test_what_crosses_is_encoded_and_its_size_is_that_of_the_encoding(
    name: str, coded: dict[str, Path], cnn: Graph, rng: np.random.Generator, channel: Channel
) -> None:
    with Deployment(coded[name], channel=channel) as deployment:
        inputs = request(cnn, rng)
        deployment.infer(inputs)
        first = deployment.functions[0]
        tensors = Tensors(1, dict(inputs))
        deployment._finish(first, deployment._begin(first, tensors), tensors)
        for spec in first.outputs:
            ref, sent = tensors.coded[spec.name], tensors.values[spec.name]
            assert (ref.codec, ref.dtype, ref.shape) == (name, spec.dtype, spec.shape_at(1))
            value = tensors.decoded(spec.name)
            assert ref.size == sent.nbytes == codec(name).encode(value).nbytes
            assert sent.nbytes <= value.nbytes


@pytest.mark.parametrize("name", CODED)
def test_a_loss_stays_small_and_in_the_answer_s_type(
    name: str, coded: dict[str, Path], cnn: Graph, rng: np.random.Generator
) -> None:
    x = request(cnn, rng)
    with Deployment(coded[name]) as deployment:
        found = deployment.infer(x).outputs
    for output, exact in packages.whole(cnn, x).items():
        assert (found[output].dtype, found[output].shape) == (exact.dtype, exact.shape)
        np.testing.assert_allclose(found[output], exact, atol=0.05)


def test_damaged_bytes_are_the_codec_s_error_and_the_next_request_is_answered(
    coded: dict[str, Path], cnn: Graph, rng: np.random.Generator, channel: Channel
) -> None:
    x = request(cnn, rng)
    with Deployment(coded["bf16"], channel=channel) as deployment:
        answer = deployment.infer(x)
        first, second = deployment.functions[:2]
        tensors = Tensors(1, dict(x))
        deployment._finish(first, deployment._begin(first, tensors), tensors)
        name = second.inputs[0].name
        tensors.values[name] = tensors.values[name][:-2]
        with pytest.raises(CodecError, match="bytes are no bf16 tensor") as caught:
            deployment._finish(second, deployment._begin(second, tensors), tensors)
        assert caught.value.where == f"function {second.name}"
        packages.assert_same(deployment.infer(x).outputs, answer.outputs)


def test_an_unknown_codec_is_refused_before_anything_is_built(cnn: Graph, tmp_path: Path) -> None:
    with pytest.raises(LawBroken, match="no codec 'zip'"):
        packages.package(cnn, tmp_path / "package", CUTS, codec="zip")


@pytest.mark.skipif("shuffle-zstd" not in CODED, reason="needs zstd to be built")
def test_a_codec_that_cannot_run_here_is_refused_before_anything_starts(
    coded: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(name: str) -> None:
        raise ImportError(name)

    _zstd.cache_clear()
    monkeypatch.setattr("lamella.codecs.shuffle.import_module", gone)
    try:
        with pytest.raises(ConfigError, match="need Python") as caught:
            Deployment(coded["shuffle-zstd"])
        assert caught.value.try_ == "pip install 'lamella[zstd]'"
    finally:
        _zstd.cache_clear()


@pytest.mark.parametrize("name", ["bf16", *CODED[4:]])
def test_an_allocation_is_measured_with_the_codec_at_work(
    name: str, coded: dict[str, Path], cnn: Graph, rng: np.random.Generator
) -> None:
    found = allocate(coded[name], request(cnn, rng), platform("openfaas"), Unlimited("a test"), runs=1)
    assert set(found) == {"stage-1", "stage-2", "stage-3"}
    x = request(cnn, rng)
    names = {s.name: name for s in Deployment(coded[name]).functions[0].outputs}
    where, limiter = platform("openfaas"), Unlimited("a test")
    with _Bench(coded[name] / "stage-1", x, names, where, limiter, 1.0, 1) as bench:
        outputs = bench.outputs()
        refs = bench._gives
    assert [ref.codec for ref in refs] == [name] * len(outputs)
    for value in outputs.values():
        again = codec(name).decode(codec(name).encode(value), value.dtype.name, value.shape)
        np.testing.assert_array_equal(again, value)  # what was rounded once is not rounded again
