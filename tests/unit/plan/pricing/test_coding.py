"""The codec of a hop: against brute force over links, and where there can be none."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.codecs import CODECS
from lamella.plan.document import Plan
from lamella.plan.laws import broken_laws
from lamella.plan.layout import lay_out
from lamella.plan.make import make_plan
from lamella.plan.pricing.coding import codings, plain, quickest
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.pricing.throttle import throttled_ms
from lamella.plan.request import Request
from lamella.platforms import Platform, platform
from lamella.profile.document import CodecResult, CutProfile, ShardPart, ShardProfile
from lamella.units import MB
from tests.unit.plan.pricing.test_shards import SPAN
from tests.unit.plan.synthetic import CODED_CHAINS, Made, graph_of, profile_of

replace = msgspec.structs.replace

RESULTS = st.lists(
    st.builds(
        CodecResult,
        st.sampled_from(list(CODECS)),
        st.sampled_from([1, 4]),
        st.sampled_from([0.99, 1.1, 1.8, 4.0]),
        st.floats(0, 50),
        st.floats(0, 50),
        st.just(0.0),
    ),
    unique_by=lambda r: (r.codec, r.batch),
)
MBIT_PER_S = [10, 100, 1000, 10_000]


def link(mbit_per_s: float, latency_ms: float = 1.0, where: str = "openfaas") -> Platform:
    """A platform whose hops go over such a link, emulated."""
    made = platform(where)
    rate = replace(made.hop.mb_per_s, number=mbit_per_s * 1e6 / 8 / MB)
    wait = replace(made.hop.latency_ms, number=latency_ms)
    return replace(made, hop=replace(made.hop, channel="link", emulated=True, mb_per_s=rate, latency_ms=wait))


def model_on(units: tuple[Made, ...], where: Platform, vcpu: float = 1.0) -> SliceModel:
    graph = graph_of(units)
    return SliceModel(graph, profile_of(graph, units), where, Request(vcpu=vcpu))


@given(RESULTS, st.integers(1, 30_000_000), st.sampled_from([1, 4]), st.floats(10, 10_000), st.floats(0.1, 1))
def test_the_codec_is_the_quickest_without_loss_by_brute_force(
    results: list[CodecResult], size: int, batch: int, mbit_per_s: float, share: float
) -> None:
    cut = CutProfile(position=1, tensors=("t",), side=(), bytes=size, codecs=tuple(results))
    chosen = quickest(codings(cut, batch), link(mbit_per_s), share)
    measured = max((r.batch for r in results if r.batch in (1, batch)), default=None)
    by_name = {r.codec: r for r in results if r.batch == measured}
    none = by_name.get("none")
    times = {"none": 1.0 + size * batch / (mbit_per_s * 1e6 / 8) * 1000}
    for name in ("shuffle-zstd",):  # the only one that keeps every bit
        if name in by_name and measured:
            one = by_name[name]
            work = max(0.0, one.encode_ms - (none.encode_ms if none else 0))
            work += max(0.0, one.decode_ms - (none.decode_ms if none else 0))
            sent = math.ceil(size * batch / one.ratio)
            times[name] = 1.0 + sent / (mbit_per_s * 1e6 / 8) * 1000 + work * batch / measured / share
    assert times[chosen.codec] <= min(times.values()) * (1 + 1e-9)
    assert chosen.codec == "none" or times[chosen.codec] < times["none"] * (1 + 1e-9)


@given(RESULTS, st.integers(1, 30_000_000))
def test_in_shared_memory_nothing_beats_plain(results: list[CodecResult], size: int) -> None:
    cut = CutProfile(position=1, tensors=("t",), side=(), bytes=size, codecs=tuple(results))
    assert quickest(codings(cut, 1), platform("openfaas"), 1.0) == plain(size)


UNITS = (Made(weights_mb=20, time_ms=50, out_mb=1.0, ratio=1.6, coding_ms=4.0), Made(weights_mb=400, time_ms=50))


@pytest.mark.parametrize(("mbit_per_s", "codec"), [(10, "shuffle-zstd"), (100, "shuffle-zstd"), (1000, "none")])
def test_a_slow_link_has_a_codec_and_a_quick_one_none(mbit_per_s: float, codec: str) -> None:
    assert model_on(UNITS, link(mbit_per_s)).coding(1).codec == codec


def test_half_a_vcpu_takes_twice_as_long_to_encode() -> None:
    units = (Made(out_mb=1.0, ratio=2.0, coding_ms=15.0), Made())
    assert model_on(units, link(100), 1.0).coding(1).codec == "shuffle-zstd"  # 42 ms of transfer for 30 of work
    assert model_on(units, link(100), 0.5).coding(1).codec == "none"


def plan_on(where: Platform, vcpu: float = 1.0) -> Plan:
    graph = graph_of(UNITS)
    profile = profile_of(graph, UNITS)
    plan = make_plan(graph, profile, where, "uniform-2", given="made-up", request=Request(vcpu=vcpu))
    assert broken_laws(plan, graph, where) == []
    return plan


def test_the_hop_takes_its_encoded_bytes_and_the_functions_their_work() -> None:
    (hop,) = plan_on(link(100)).hops
    assert (hop.codec, hop.bytes, hop.encoded_bytes) == ("shuffle-zstd", MB, math.ceil(MB / 1.6))
    assert hop.time_ms == pytest.approx(1.0 + hop.encoded_bytes / 12.5e6 * 1000 + 0.2)
    for function in plan_on(link(100)).functions:
        assert function.run_ms == pytest.approx(50 + 0.05 + 4.0)
    for function in plan_on(link(100), 0.5).functions:
        assert function.run_ms == pytest.approx(throttled_ms(54.05, 0.5, 100.0), rel=0.2)
    assert hop.why.startswith(
        "codec shuffle-zstd: saves 31.46 ms of transfer for 8.00 ms of work; bf16 would save 41.94"
    )
    assert hop.why.endswith("is lossy")


def test_without_a_codec_the_plan_says_what_the_best_would_have_done() -> None:
    (hop,) = plan_on(link(1000)).hops
    assert (hop.codec, hop.encoded_bytes) == ("none", hop.bytes)
    assert "shuffle-zstd would save 3.15 ms of transfer for 8.00 ms of work; bf16 would" in hop.why
    assert [f.run_ms for f in plan_on(link(1000)).functions] == pytest.approx([50.05, 50.05])


def test_buffers_of_the_codec_are_in_the_memory_of_both_functions() -> None:
    slow, quick = plan_on(link(100)), plan_on(link(1000))
    for coded, bare in zip(slow.functions, quick.functions, strict=True):
        assert coded.peak_mb > bare.peak_mb + 1


def test_a_payload_fits_by_its_encoded_bytes() -> None:
    units = (Made(out_mb=7.0, ratio=2.0, coding_ms=1.0), Made())
    assert model_on(units, platform("aws-lambda")).coding(1).codec == "shuffle-zstd"
    assert model_on(units, platform("aws-lambda")).fits_payload(1)
    assert not model_on((Made(out_mb=7.0), Made()), platform("aws-lambda")).fits_payload(1)


def test_where_shards_may_begin_or_end_tensors_go_as_they_are() -> None:
    graph = graph_of(UNITS)
    shards = ShardProfile(1, 2, SPAN, 1, 1, (ShardPart(1.0, 1e6, 10.0),) * 2, 9.0, 0.0, 0.0)
    profile = replace(profile_of(graph, UNITS), shards=(shards,))
    model = SliceModel(graph, profile, link(10))
    assert model.coding(1).codec == "none"
    (hop,) = lay_out(model, [model.choices(0, 1)[0], model.choices(1, 2)[0]]).hops
    assert hop.why == "codec none: shards may begin or end here, and their parts go as they are"
    (hop,) = make_plan(graph, profile, link(10), "uniform-2", given="made-up").hops  # takes no shards
    assert hop.codec == "shuffle-zstd"
    (hop,) = make_plan(graph, profile, link(10), "uniform-2-no-shards", given="made-up").hops
    assert hop.codec == "shuffle-zstd"


@given(CODED_CHAINS, st.sampled_from(MBIT_PER_S), st.sampled_from([0.5, 1.0, 2.0]))
def test_plans_over_links_keep_the_laws(units: tuple[Made, ...], mbit_per_s: float, vcpu: float) -> None:
    graph = graph_of(units)
    where = link(mbit_per_s)
    plan = make_plan(
        graph, profile_of(graph, units), where, f"uniform-{len(units)}", given="made-up", request=Request(vcpu=vcpu)
    )
    assert broken_laws(plan, graph, where) == []
    model = SliceModel(graph, profile_of(graph, units), where, Request(vcpu=vcpu))
    for hop in plan.hops:
        assert hop.codec == model.coding(hop.position).codec
        assert hop.codec == "none" or hop.time_ms < where.hop_ms(hop.bytes) + model.hops.cost.fixed_ms


def test_a_hop_may_be_encoded_once_it_is_known_that_no_shards_begin_or_end_there() -> None:
    graph = graph_of(UNITS)
    shards = ShardProfile(1, 2, SPAN, 1, 1, (ShardPart(1.0, 1e6, 10.0),) * 2, 9.0, 0.0, 0.0)
    model = SliceModel(graph, replace(profile_of(graph, UNITS), shards=(shards,)), link(10))
    assert model.codes_less
    assert model.with_shards({(1, 2, SPAN)}).coding(1).codec == "none"
    left = model.with_shards(())
    assert left.coding(1).codec == "shuffle-zstd"
    assert not left.codes_less
