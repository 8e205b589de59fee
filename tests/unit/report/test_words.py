"""The finding in a sentence: who is cheapest, by how much, and never more than the intervals allow."""

from __future__ import annotations

import shlex

from lamella.report.words import command, finding
from tests.unit.report.made import comparison, function, plan, sample, sharded, whole


def said(*plans: object) -> str:
    return " ".join(finding(comparison(plans)))  # type: ignore[arg-type]


def test_the_cheapest_is_told_against_the_baselines_only() -> None:
    uniform = plan("uniform-2", [function("a", 0, (0, 3)), function("b", 1, (3, 6))], cost=4.0)
    text = said(
        plan("ort", [function("w", 0, (0, 6))], cost=10.0, latency_ms=30),
        plan("single", [function("w", 0, (0, 6))], cost=5.0, latency_ms=30),
        uniform,
        plan("mopar", sharded().functions, cost=2.0, latency_ms=33),
    )
    assert text == (
        "mopar is cheapest: 6 functions, $2.000 per million requests. "
        "mopar costs 5.00 times less than ort and 2.50 times less than single. "
        "The median latency of mopar is 33.0 ms, 10.0% longer than that of single."
    )


def test_one_function_is_a_finding_too() -> None:
    assert said(whole("ort", memory_mb=1008), whole("mopar")).startswith("One function is cheapest: mopar, $1.536")


def test_plans_within_each_other_s_noise_are_not_told_apart() -> None:
    one, two = (plan(n, [function("w", 0, (0, 6))], cost=c, noise=0.05) for n, c in (("single", 1.0), ("mopar", 0.98)))
    text = said(one, two)
    assert text.startswith("mopar and single cost the same within their noise")
    assert "neither is cheaper" in text
    assert "times less" not in text
    assert "median latency is that of single" in text


def test_a_latency_within_the_noise_is_called_so() -> None:
    text = said(
        plan("single", [function("w", 0, (0, 6))], cost=5.0, latency_ms=100, noise=0.1),
        plan("mopar", sharded().functions, cost=2.0, latency_ms=104, noise=0.1),
    )
    assert text.endswith("4.0% longer than that of single, which is within the noise.")


def test_a_single_plan_has_nothing_to_be_compared_with() -> None:
    assert "nothing to compare with" in said(whole())


def test_a_plan_that_costs_nothing_divides_by_nothing() -> None:
    free = plan("mopar", [function("w", 0, (0, 6))], cost=0.0)
    assert said(free, whole()).startswith("One function is cheapest: mopar, $0.000")


def test_the_command_is_quoted_for_a_shell() -> None:
    words = ("compare", "my model's.onnx", "--range", "ids=0:10")
    assert shlex.split(command(sample(command=words))) == ["lamella", *words]
    assert command(sample(command=())) == ""
