"""Plans over measured channels: who pays for the bytes, which codec that makes worthwhile, what cannot be asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella import documents
from lamella.errors import ConfigError
from lamella.graph.model import Graph
from lamella.machine import this_machine
from lamella.objects import Bucket, bucket
from lamella.plan.document import Plan
from lamella.plan.laws import broken_laws
from lamella.plan.make import make_plan, on_channel
from lamella.plan.planners.registry import planner
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request
from lamella.platforms import Platform, platform
from lamella.profile.channels import CHANNELS_VERSION, channel_price
from lamella.profile.document import ChannelPrice, Profile
from lamella.units import MB
from tests.unit.plan.synthetic import CODED_CHAINS, Made, graph_of, profile_of

LOCAL = platform("openfaas")


def price(hop_mb_ms: float, hop_ms: float = 0.5, channel: str = "http") -> ChannelPrice:
    return ChannelPrice(
        channel=channel,
        machine=this_machine(),
        edge_ms=0.2,
        edge_mb_ms=0.5,
        hop_ms=hop_ms,
        hop_mb_ms=hop_mb_ms,
        fixed_ms=0.25,
    )


UNITS = (Made(weights_mb=20, time_ms=50, out_mb=2.0), Made(weights_mb=400, time_ms=50, out_mb=0.5))


def test_half_of_a_hop_is_in_the_run_of_either_function_and_the_driver_s_part_is_the_hop_s() -> None:
    graph = graph_of(UNITS)
    profile = profile_of(graph, UNITS)
    plain, over = (
        make_plan_over(graph, profile, where) for where in (LOCAL, LOCAL.over(price(hop_mb_ms=3.0, hop_ms=0.5)))
    )
    hop = (0.5 + 3.0 * 2.0) / 2
    edges = [0.1 + 0.5 * 1024 * 4 / MB, 0.1 + 0.5 * 0.5]  # 1024 floats are asked, half a MB is answered
    for before, after, edge in zip(plain.functions, over.functions, edges, strict=True):
        assert after.run_ms - before.run_ms == pytest.approx(hop + edge)
    assert over.hops[0].time_ms - plain.hops[0].time_ms == pytest.approx(0.25)
    assert (plain.channel, over.channel, over.hops[0].channel) == ("shared-memory", "http", "http")


def make_plan_over(graph: Graph, profile: Profile, where: Platform) -> Plan:
    return make_plan(graph, profile, where, "uniform-2", given="made-up")


@given(
    CODED_CHAINS,
    st.sampled_from([0.0, 0.5, 6.0, 80.0]),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from(["uniform", "mopar"]),
)
def test_plans_over_measured_channels_keep_the_laws_and_are_never_quicker_than_in_shared_memory(
    units: tuple[Made, ...], hop_mb_ms: float, vcpu: float, how: str
) -> None:
    graph = graph_of(units)
    profile, where = profile_of(graph, units), LOCAL.over(price(hop_mb_ms))
    name = f"uniform-{len(units)}" if how == "uniform" else "mopar"
    asked = Request(vcpu=vcpu)
    plan = make_plan(graph, profile, where, name, given="made-up", request=asked)
    assert broken_laws(plan, graph, where) == []
    if how == "uniform":
        shared = make_plan(graph, profile, LOCAL, name, given="made-up", request=asked)
        assert plan.predicted.latency_ms >= shared.predicted.latency_ms
    model = SliceModel(graph, profile, where, Request(vcpu=vcpu))
    for hop in plan.hops:
        codings = [c for c in model.codings(hop.position) if c.lossless]
        took = {c.codec: where.transfer_ms(c.bytes) + (c.encode_ms + c.decode_ms) / model.hops.share for c in codings}
        assert took[hop.codec] == min(took.values())


@pytest.mark.parametrize(("hop_mb_ms", "codec"), [(0.0, "none"), (1.0, "none"), (30.0, "shuffle-zstd")])
def test_a_dear_channel_has_a_codec_and_a_cheap_one_none(hop_mb_ms: float, codec: str) -> None:
    units = (Made(out_mb=1.0, ratio=1.6, coding_ms=4.0), Made())
    graph = graph_of(units)
    plan = make_plan_over(graph, profile_of(graph, units), LOCAL.over(price(hop_mb_ms)))
    assert plan.hops[0].codec == codec


def test_a_dear_hop_is_not_taken() -> None:
    graph = graph_of(UNITS)
    profile = profile_of(graph, UNITS)
    for hop_ms, stages in ((0.0, 2), (500.0, 1)):
        model = SliceModel(graph, profile, LOCAL.over(price(0.0, hop_ms)))
        chosen = planner("mopar").decide(model, Request(slo_ms=1000.0)).chosen
        assert len(chosen.choices) <= stages


def test_a_known_price_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path))
    known = price(1.5, channel="socket")
    documents.write(tmp_path / "channels" / f"socket-{this_machine().key}-v{CHANNELS_VERSION}.json", known)
    assert channel_price("socket", None) == known
    graph = graph_of(UNITS)
    plan = make_plan(graph, profile_of(graph, UNITS), LOCAL, "uniform-2-no-shared-memory", given="made-up")
    assert (plan.channel, plan.planner) == ("socket", "uniform-2-no-shared-memory")


def test_what_cannot_be_asked_is_said() -> None:
    with pytest.raises(ConfigError, match="hops of aws-lambda are emulated"):
        on_channel(platform("aws-lambda"), Request(channel="socket"))
    with pytest.raises(ConfigError, match="no channel 'pigeon'; there are shared-memory, socket, http, s3"):
        on_channel(LOCAL, Request(channel="pigeon"))
    with pytest.raises(ConfigError, match="channel s3 needs a bucket"):
        on_channel(LOCAL, Request(channel="s3"))
    assert on_channel(LOCAL, Request(channel="shared-memory")) == LOCAL


@pytest.mark.parametrize(
    ("name", "endpoint", "says"), [("Bad_Name", None, "no name of a bucket"), ("good", "localhost:9000", "no endpoint")]
)
def test_a_bucket_has_a_name_and_an_address(name: str, endpoint: str | None, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        bucket(name, endpoint, {})
    assert bucket("good", "https://s3.example/", {}) == Bucket("good", "https://s3.example")
    assert bucket(None, None, {"LAMELLA_S3_BUCKET": "b-1", "AWS_ENDPOINT_URL": "http://h:1"}) == Bucket(
        "b-1", "http://h:1"
    )
    assert bucket(None, None, {}) is None
