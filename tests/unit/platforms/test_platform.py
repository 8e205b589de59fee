"""The catalogue: strict, sourced, and its arithmetic by hand."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator
from importlib import resources

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.errors import ConfigError
from lamella.platforms import Platform, names, platform
from lamella.platforms.platform import Figure, threads

EVERY = ("aws-lambda", "azure-consumption", "cloud-run", "openfaas")
LAMBDA, AZURE, RUN, OPENFAAS = (platform(n) for n in EVERY)


def text_of(name: str) -> str:
    return (resources.files("lamella.platforms") / "catalogue" / f"{name}.toml").read_text()


def figures(value: object, path: str = "") -> Iterator[tuple[str, Figure]]:
    if isinstance(value, Figure):
        yield path, value
    elif isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            yield from figures(getattr(value, field), f"{path}.{field}")


def test_the_catalogue_holds_these_platforms() -> None:
    assert names() == EVERY


@pytest.mark.parametrize("name", EVERY)
def test_a_platform_is_called_as_its_file(name: str) -> None:
    assert platform(name).name == name
    assert platform(name).title


@pytest.mark.parametrize("name", EVERY)
def test_every_figure_has_a_source_and_an_iso_date(name: str) -> None:
    found = dict(figures(platform(name)))
    assert len(found) >= 14
    for path, figure in found.items():
        assert len(figure.source) > 10, path
        assert datetime.date.fromisoformat(figure.date).year >= 2025, path
        assert math.isfinite(figure.value), path
        assert figure.value >= 0, path


def test_every_figure_of_the_files_is_read() -> None:
    for name in EVERY:
        assert text_of(name).count("source =") == len(dict(figures(platform(name))))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[billing]", '[billing]\ncurrency = "USD"', "unknown field `currency`"),
        ('name = "openfaas"', 'name = "openfaas"\ncolour = "red"', "unknown field `colour`"),
        ("{ value = 64, source", '{ value = 64, unit = "MB", source', "unknown field `unit`"),
        ('source = "Kubernetes default cpu-cfs-quota-period", ', "", "missing required field `source`"),
        (', date = "2026-11-21" }', " }", "missing required field `date`"),
        ("value = 64,", 'value = "64",', "Expected `float`, got `str`"),
        ('coupling = "free"', 'coupling = "loose"', "Invalid enum value 'loose'"),
        ("base64 = false", "", "missing required field `base64`"),
    ],
)  # fmt: skip
def test_a_file_with_an_unknown_key_or_a_figure_without_its_source_is_refused(old: str, new: str, said: str) -> None:
    text = text_of("openfaas")
    assert old in text
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.toml.decode(text.replace(old, new, 1), type=Platform)


def test_an_unknown_platform_is_a_config_error_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        platform("azure")
    assert caught.value.message == "no platform 'azure'; there are aws-lambda, azure-consumption, cloud-run, openfaas"
    assert caught.value.try_ == "--platform aws-lambda"


@given(st.sampled_from(EVERY), st.one_of(st.floats(0, 17_000), st.integers(0, 17_000)))
def test_an_allocation_is_the_smallest_size_sold_that_holds_the_need(name: str, need: float) -> None:
    rules = platform(name)
    low, high, step = (int(f.value) for f in (rules.memory.min_mb, rules.memory.max_mb, rules.memory.step_mb))
    sold = range(low, high + 1, step)
    assert rules.allocation_mb(need) == next((size for size in sold if size >= need - 1e-6), None)


@given(st.sampled_from(EVERY), st.integers(0, 1000))
def test_a_size_sold_is_its_own_allocation(name: str, steps: int) -> None:
    rules = platform(name)
    low, high, step = (int(f.value) for f in (rules.memory.min_mb, rules.memory.max_mb, rules.memory.step_mb))
    size = low + steps % ((high - low) // step + 1) * step
    assert rules.allocation_mb(size) == size


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
    assert rules.allocation_mb(need) == size


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
    assert AZURE.allocation_mb(129) == 256
    assert AZURE.allocation_mb(1537) is None
    assert AZURE.vcpu(128, 4.0) == AZURE.vcpu(1536, 4.0) == 1.0
    assert AZURE.cost_usd(256, 30.0, 1.0) == pytest.approx(0.25 * 0.1 * 0.000016 + 0.0000002, rel=1e-12)
    assert AZURE.cost_usd(256, 100.4, 1.0) == pytest.approx(0.25 * 0.101 * 0.000016 + 0.0000002, rel=1e-12)


def test_cloud_run_bills_cpu_and_memory_apart_in_steps_of_100_ms() -> None:
    expected = 0.2 * (2 * 0.000024 + 0.5 * 0.0000025) + 0.0000004
    assert RUN.cost_usd(512, 101.0, 2.0) == pytest.approx(expected, rel=1e-12)
    assert RUN.cost_usd(512, 101.0, 1.0) < RUN.cost_usd(512, 101.0, 2.0)
