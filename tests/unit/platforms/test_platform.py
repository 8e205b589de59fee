"""The catalogue: strict, sourced, and its arithmetic by hand."""

from __future__ import annotations

import datetime
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.platforms import Platform, names, platform
from lamella.platforms.figures import Figure, figures
from lamella.platforms.platform import threads
from lamella.platforms.reading import text

EVERY = (
    "aws-lambda", "aws-lambda-2021", "azure-consumption", "azure-flex", "cloud-run", "hosted", "knative", "openfaas",
    "ray",
)  # fmt: skip
LAMBDA, AZURE, FLEX, RUN, OPENFAAS = (
    platform(n) for n in ("aws-lambda", "azure-consumption", "azure-flex", "cloud-run", "openfaas")
)


def test_the_catalogue_holds_these_platforms() -> None:
    assert names() == EVERY


@pytest.mark.parametrize("name", EVERY)
def test_a_platform_is_called_as_its_file(name: str) -> None:
    assert platform(name).name == name
    assert platform(name).title


@pytest.mark.parametrize("name", EVERY)
def test_every_figure_has_a_source_a_date_and_what_it_is(name: str) -> None:
    found = dict(figures(platform(name)))
    assert len(found) >= 14
    for path, figure in found.items():
        assert len(figure.source) > 6, path
        assert datetime.date.fromisoformat(figure.date).year >= 2025, path
        assert figure.what == f"{name}: {path}"
        if isinstance(figure, Figure) and figure.known:
            assert 0 <= figure.value < math.inf, path


def test_every_figure_of_the_files_is_read() -> None:
    for name in EVERY:
        assert text(name).count("source =") == len(dict(figures(platform(name))))


@pytest.mark.parametrize("name", EVERY)
def test_what_every_plan_needs_is_known(name: str) -> None:
    one = platform(name)
    for figure in (one.memory.max_mb, one.limits.payload_mb, one.limits.timeout_s, one.billing.usd_per_gb_s):
        assert figure.known, figure.what


@given(
    st.sampled_from(EVERY), st.one_of(st.floats(0, 40_000), st.integers(0, 40_000)), st.sampled_from([0.5, 1.0, 2.0])
)
def test_an_allocation_is_the_smallest_size_sold_that_holds_the_need(name: str, need: float, vcpu: float) -> None:
    rules = platform(name)
    sold = rules.sizes_mb(vcpu)
    assert rules.allocation_mb(need, vcpu) == next((size for size in sold if size >= need - 1e-6), None)
    assert sold[-1] == rules.most_mb(vcpu) == max(sold)


@given(st.sampled_from(EVERY), st.integers(0, 1000))
def test_a_size_sold_is_its_own_allocation(name: str, number: int) -> None:
    sold = platform(name).sizes_mb(1.0)
    assert platform(name).allocation_mb(sold[number % len(sold)], 1.0) == sold[number % len(sold)]


def test_sizes_by_hand() -> None:
    assert platform("aws-lambda-2021").sizes_mb(1.0) == tuple(range(128, 3009, 64))
    assert len(platform("aws-lambda-2021").sizes_mb(1.0)) == 46
    assert FLEX.sizes_mb(1.0) == (512, 2048, 4096)
    assert FLEX.step_mb == 1536
    assert RUN.sizes_mb(1.0)[-1] == 4096
    assert (RUN.sizes_mb(4.0)[0], RUN.sizes_mb(3.0)[-1]) == (2048, 16384)
    assert RUN.allocation_mb(5000, 1.0) is None
    assert RUN.allocation_mb(5000, 2.0) == 5000
    assert RUN.allocation_mb(100, 8.0) == 4096


@pytest.mark.parametrize(
    ("rules", "need", "size"),
    [
        (OPENFAAS, 0, 64),
        (OPENFAAS, 64, 64),
        (OPENFAAS, 64.1, 80),
        (OPENFAAS, 16384, 16384),
        (OPENFAAS, 16384.5, None),
        (LAMBDA, 1, 128),
        (LAMBDA, 128.2, 129),
        (LAMBDA, 10240, 10240),
        (LAMBDA, 10241, None),
    ],
)
def test_allocations_by_hand(rules: Platform, need: float, size: int | None) -> None:
    assert rules.allocation_mb(need, 1.0) == size


@pytest.mark.parametrize(
    ("run_ms", "billed_ms"), [(103.2, 104), (104.0, 104), (103.99999999999999, 104), (0.1, 1), (0.0, 0)]
)
def test_lambda_bills_whole_milliseconds_rounded_up(run_ms: float, billed_ms: float) -> None:
    assert LAMBDA.billed_ms(run_ms) == billed_ms


def test_a_run_on_lambda_by_hand() -> None:
    # 512 MB = 0.5 GB for 104 ms at $0.0000166667 per GB-s, and $0.20 per million requests.
    assert LAMBDA.cost_usd(512, 103.2, 1.0) == pytest.approx(0.5 * 0.104 * 0.0000166667 + 0.0000002, rel=1e-12)
    assert LAMBDA.cost_usd(512, 103.2, 1.0) * 1e6 == pytest.approx(1.0666684, rel=1e-9)


def test_a_run_on_one_s_own_cluster_by_hand() -> None:
    assert OPENFAAS.billed_ms(103.2) == 103.2
    assert OPENFAAS.cost_usd(2048, 103.2, 1.0) == pytest.approx(2 * 0.1032 * 0.0000166667, rel=1e-12)


@given(st.sampled_from(EVERY), st.floats(0, 1e6), st.floats(0, 1e6), st.integers(128, 10240))
def test_a_longer_run_never_costs_less(name: str, a: float, b: float, memory_mb: int) -> None:
    short, long = (platform(name).cost_usd(memory_mb, t, 1.0) for t in sorted((a, b)))
    assert short <= long


def test_base64_makes_a_payload_a_third_heavier() -> None:
    assert LAMBDA.payload_mb(3 * 2**20) == pytest.approx(4.0)
    assert OPENFAAS.payload_mb(3 * 2**20) == 3.0


def test_an_emulated_hop_takes_its_latency_and_its_transfer() -> None:
    assert LAMBDA.hop_ms(0) == 31.6
    assert LAMBDA.hop_ms(3 * 2**20) == pytest.approx(31.6 + 4 / 90 * 1000)
    assert OPENFAAS.hop_ms(3 * 2**20) == 0.0


def test_on_lambda_memory_buys_cpu_and_elsewhere_it_is_asked_for() -> None:
    assert LAMBDA.vcpu(1769, asked=4.0) == 1.0
    assert LAMBDA.vcpu(10240, asked=1.0) == pytest.approx(5.79, rel=1e-3)
    assert OPENFAAS.vcpu(64, asked=2.5) == 2.5
    assert OPENFAAS.vcpu(64, asked=99.0) == 4.0


@pytest.mark.parametrize(("vcpu", "count"), [(0.1, 1), (1.0, 1), (1.0000000000001, 1), (1.01, 2), (2.0, 2), (5.79, 6)])
def test_one_thread_below_one_vcpu_else_one_for_each_begun(vcpu: float, count: int) -> None:
    assert threads(vcpu) == count


def test_azure_bills_used_memory_in_steps_of_128_mb_and_at_least_100_ms() -> None:
    assert AZURE.allocation_mb(129, 1.0) == 256
    assert AZURE.allocation_mb(1537, 1.0) is None
    assert AZURE.vcpu(128, 4.0) == AZURE.vcpu(1536, 4.0) == 1.0
    assert AZURE.cost_usd(256, 30.0, 1.0) == pytest.approx(0.25 * 0.1 * 0.000016 + 0.0000002, rel=1e-12)
    assert AZURE.cost_usd(256, 100.4, 1.0) == pytest.approx(0.25 * 0.101 * 0.000016 + 0.0000002, rel=1e-12)


def test_cloud_run_bills_cpu_and_memory_apart_in_steps_of_100_ms() -> None:
    expected = 0.2 * (2 * 0.000024 + 0.5 * 0.0000025) + 0.0000004
    assert RUN.cost_usd(512, 101.0, 2.0) == pytest.approx(expected, rel=1e-12)
    assert RUN.cost_usd(512, 101.0, 1.0) < RUN.cost_usd(512, 101.0, 2.0)


def test_flex_sells_cpu_with_memory_and_bills_at_least_a_second() -> None:
    assert [FLEX.vcpu(size, 4.0) for size in FLEX.sizes_mb(1.0)] == [0.25, 1.0, 2.0]
    assert FLEX.cost_usd(2048, 30.0, 1.0) == pytest.approx(2 * 1.0 * 0.000026 + 0.0000004, rel=1e-12)
    assert FLEX.cost_usd(2048, 1001.0, 1.0) == pytest.approx(2 * 1.1 * 0.000026 + 0.0000004, rel=1e-12)


def test_the_platform_of_amps_inf_rounds_to_tenths_of_a_second_and_hops_through_s3() -> None:
    old = platform("aws-lambda-2021")
    assert old.billed_ms(100.1) == 200.0
    assert old.hop.channel == "s3"
    assert old.limits.package_mb.value == 250
