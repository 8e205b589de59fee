"""All channels: the same bits, nothing left, and functions that anybody's client can call."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

from lamella.codecs import codec, installed
from lamella.deploy.local import Deployment, Start, planned_channel
from lamella.errors import ConfigError
from lamella.graph.divide import ShardSpan
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.objects import Bucket, ObjectStore
from lamella.package import build
from lamella.plan.manual import plan_by_hand
from lamella.platforms import platform
from lamella.runtime.tensors import CHANNELS, Channel
from tests.faults import packages
from tests.faults.s3 import bucket, missing

__all__ = ["bucket"]

CUTS = (2, 6)
CODECS = ("none", "int8", *(("shuffle-zstd",) if "shuffle-zstd" in installed() else ()))
"""Plain, one that loses, and one whose sizes depend on the values."""
OTHERS: list[Channel] = [c for c in CHANNELS if c != "shared-memory"]
Answers = list[dict[str, np.ndarray]]


class Coded(NamedTuple):
    """A package whose hops have a codec, requests, and what it answers them over shared memory."""

    package: Path
    inputs: list[dict[str, np.ndarray]]
    exact: Answers


@pytest.fixture(scope="module", autouse=True)
def store_is_there_before_descriptors_are_counted(request: pytest.FixtureRequest) -> None:
    if not missing():
        request.getfixturevalue("bucket")


@pytest.fixture(scope="module")
def coded(cnn: Graph, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Coded]:
    space, rng = tmp_path_factory.mktemp("coded"), np.random.default_rng(5)
    inputs = [request(cnn, rng, batch) for batch in (1, 1, 3, 2)]
    made = {name: packages.package(cnn, space / name, CUTS, codec=name) for name in CODECS}
    return {name: Coded(path, inputs, answers(Deployment(path), inputs)) for name, path in made.items()}


@pytest.fixture(params=OTHERS)
def served(request: pytest.FixtureRequest) -> Callable[[Path], Deployment]:
    """Deploys a package on a channel."""
    channel: Channel = request.param
    if channel == "s3":
        where = request.getfixturevalue("bucket")
        return lambda package: Deployment(package, channel=channel, objects=where)
    return lambda package: Deployment(package, channel=channel)


@pytest.mark.parametrize("start", ["zygote", "forked-session"])
@pytest.mark.parametrize("channel", CHANNELS)
def test_forked_functions_speak_every_channel(
    request: pytest.FixtureRequest, coded: dict[str, Coded], channel: Channel, start: Start
) -> None:
    package, inputs, exact = coded["none"]
    where = request.getfixturevalue("bucket") if channel == "s3" else None
    for found, expected in zip(
        answers(Deployment(package, channel=channel, objects=where, start=start), inputs), exact, strict=True
    ):
        packages.assert_same(found, expected)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Graph, Path]:
    """A transformer with a stage of two shards and one of four, whose parts several later stages read."""
    bert = import_model("zoo:bert-tiny")
    spans = [ShardSpan(10, 31, 2, "channels"), ShardSpan(33, 41, 4, "channels")]
    plan = plan_by_hand(bert, [], platform("openfaas"), given="zoo:bert-tiny", shards=spans, at_once=2)
    directory = tmp_path_factory.mktemp("shards") / "package"
    build(plan, bert, directory)
    return bert, directory


def answers(deployment: Deployment, inputs: list[dict[str, np.ndarray]]) -> Answers:
    with deployment as running:
        return [running.infer(x).outputs for x in inputs]


def assert_bits(found: Answers, exact: Answers) -> None:
    for one, other in zip(found, exact, strict=True):
        assert one.keys() == other.keys()
        for name in other:
            assert (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape)
            assert one[name].tobytes() == other[name].tobytes()


@pytest.mark.parametrize("name", CODECS)
def test_with_codecs_and_batches_answers_are_those_of_shared_memory_bit_for_bit(
    name: str, served: Callable[[Path], Deployment], coded: dict[str, Coded]
) -> None:
    package, inputs, exact = coded[name]
    assert_bits(answers(served(package), inputs), exact)


def test_shards_and_tensors_with_several_readers_answer_the_same_bits(
    served: Callable[[Path], Deployment], shards: tuple[Graph, Path], rng: np.random.Generator
) -> None:
    bert, package = shards
    inputs = [request(bert, rng) for _ in range(2)]
    assert_bits(answers(served(package), inputs), answers(Deployment(package), inputs))


def test_nothing_is_left_in_the_bucket(
    three_slices: Path, cnn: Graph, rng: np.random.Generator, bucket: Bucket
) -> None:
    store = ObjectStore(bucket)
    with Deployment(three_slices, channel="s3", objects=bucket) as deployment:
        for _ in range(2):
            deployment.infer(request(cnn, rng))
            assert store.keys() == []


def test_s3_without_a_bucket_is_refused(three_slices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAMELLA_S3_BUCKET", raising=False)
    with pytest.raises(ConfigError, match="channel s3 needs a bucket") as caught:
        Deployment(three_slices, channel="s3")
    assert "--s3-bucket" in caught.value.try_


@pytest.mark.parametrize(
    ("where", "channel", "runs"),
    [("openfaas", "http", "http"), ("openfaas", "socket", "socket"), ("azure-consumption", "http", "shared-memory")],
)
def test_a_deployment_has_the_plan_s_channel_where_that_is_not_emulated(
    cnn: Graph, where: str, channel: str, runs: str
) -> None:
    plan = plan_by_hand(cnn, CUTS, platform(where), given="zoo:cnn-tiny")
    assert planned_channel(msgspec.structs.replace(plan, channel=channel)) == runs


# --------------------------------------------------------------------------------------------- a function on its own


def test_curl_calls_a_function_with_json_and_with_bytes(
    three_slices: Path, cnn: Graph, rng: np.random.Generator, tmp_path: Path
) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl here")
    x = request(cnn, rng)["x"]
    with Deployment(three_slices, channel="http") as deployment:
        deployment.start()
        url = deployment.instances["stage-1"].url
        told = {"name": "x", "shape": list(x.shape), "datatype": "FP32"}
        (tmp_path / "x.json").write_text(json.dumps({"id": "7", "inputs": [told | {"data": x.ravel().tolist()}]}))

        def called(*options: str) -> bytes:
            return subprocess.run(
                [curl, "-sS", "--fail-with-body", *options, url], capture_output=True, check=True, timeout=30
            ).stdout

        from_json = json.loads(called("--data-binary", f"@{tmp_path / 'x.json'}"))
        header = json.dumps({"inputs": [told | {"parameters": {"binary_data_size": x.nbytes}}]}).encode()
        (tmp_path / "x.bin").write_bytes(header + x.tobytes())
        length = f"Inference-Header-Content-Length: {len(header)}"
        from_bytes = json.loads(
            called("-H", length, "-H", "Expect: 100-continue", "--data-binary", f"@{tmp_path / 'x.bin'}")
        )
        assert from_json["id"] == "7"
        assert from_json["model_name"] == "stage-1"
        assert from_json["outputs"] == from_bytes["outputs"]
        first = deployment.functions[0]
        assert [o["name"] for o in from_json["outputs"]] == [s.name for s in first.outputs]
        assert all(np.prod(o["shape"]) == len(o["data"]) for o in from_json["outputs"])
        packages.assert_same(deployment.infer({"x": x}).outputs, packages.whole(cnn, {"x": x}))


REFUSED: dict[str, tuple[str, str, bytes, dict[str, str], int]] = {
    "another path": ("POST", "/v2/models/other/infer", b"{}", {}, 404),
    "another verb": ("DELETE", "", b"", {}, 405),
    "no JSON": ("POST", "", b"what", {}, 400),
    "no inputs": ("POST", "", b'{"inputs": []}', {}, 400),
    "values that do not fit": (
        "POST",
        "",
        b'{"inputs": [{"name": "x", "shape": [1, 3, 32, 32], "datatype": "FP32", "data": [1, 2]}]}',
        {},
        400,
    ),
    "a shape it does not take": (
        "POST",
        "",
        b'{"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}]}',
        {},
        400,
    ),
    "a body that is said to be huge": ("POST", "", b"", {"Content-Length": "99999999999"}, 413),
    "a length that is none": ("POST", "", b"", {"Content-Length": "-1"}, 400),
    "a chunked body": ("POST", "", b"", {"Transfer-Encoding": "chunked"}, 501),
    "a header longer than the body": ("POST", "", b"{}", {"Inference-Header-Content-Length": "3"}, 400),
    "a head without end": ("POST", "", b"", {"X-Long": "x" * 40_000}, 431),
}


def test_what_a_function_cannot_take_has_a_status_a_reason_and_no_effect_on_others(
    three_slices: Path, cnn: Graph, rng: np.random.Generator
) -> None:
    with Deployment(three_slices, channel="http") as deployment:
        x = request(cnn, rng)
        want = deployment.infer(x).outputs
        url = deployment.instances["stage-1"].url
        host, _, path = url.removeprefix("http://").partition("/")
        for case, (verb, other, body, fields, status) in REFUSED.items():
            client = http.client.HTTPConnection(host, timeout=20)
            client.putrequest(verb, other or f"/{path}", skip_accept_encoding=True)
            for name, value in ({"Content-Length": str(len(body))} if "codi" not in str(fields) else {}).items():
                if name not in fields:
                    client.putheader(name, value)
            for name, value in fields.items():
                client.putheader(name, value)
            client.endheaders(body)
            answer = client.getresponse()
            said = json.loads(answer.read())
            client.close()
            assert answer.status == status, (case, said)
            assert said["error"], case
            packages.assert_same(deployment.infer(x).outputs, want)


def test_a_function_says_what_it_is_and_keeps_connections(three_slices: Path) -> None:
    with Deployment(three_slices, channel="http") as deployment:
        deployment.start()
        host = deployment.instances["stage-2"].url.split("/")[2]
        client = http.client.HTTPConnection(host, timeout=20)
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/stage-2/ready"):
            client.request("GET", path)
            assert json.loads(client.getresponse().read()) == {"ready": True}
        client.request("GET", "/v2/models/stage-2")
        told = json.loads(client.getresponse().read())
        assert [i["name"] for i in told["inputs"]] == [s.name for s in deployment.functions[1].inputs]
        assert told["inputs"][0]["shape"][0] == -1
        client.close()


def test_a_client_may_ask_for_an_encoded_output(three_slices: Path, cnn: Graph, rng: np.random.Generator) -> None:
    x = request(cnn, rng)["x"]
    with Deployment(three_slices, channel="http") as deployment:
        deployment.start()
        spec = deployment.functions[0].outputs[0]
        asked = {
            "inputs": [{"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.tolist()}],
            "outputs": [{"name": spec.name, "parameters": {"binary_data": True, "codec": "bf16"}}],
        }
        host, _, path = deployment.instances["stage-1"].url.removeprefix("http://").partition("/")
        client = http.client.HTTPConnection(host, timeout=20)
        client.request("POST", f"/{path}", json.dumps(asked))
        answer = client.getresponse()
        body = answer.read()
        client.close()
    length = int(answer.headers["Inference-Header-Content-Length"])
    (output,) = json.loads(body[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": len(body) - length, "codec": "bf16"}
    value = codec("bf16").decode(np.frombuffer(body[length:], np.uint8), "float32", tuple(output["shape"]))
    assert value.shape == spec.shape_at(1)
