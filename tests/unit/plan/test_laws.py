"""Each law, broken by one edit of a good plan, is reported with its number and its place."""

from __future__ import annotations

import msgspec
import pytest

from lamella.errors import LamellaError, LawBroken, PlatformLimit
from lamella.graph.model import Graph
from lamella.plan.document import Plan
from lamella.plan.laws import broken_laws, check, payloads
from lamella.plan.make import make_plan
from lamella.plan.request import Request
from lamella.platforms import platform
from tests.unit.plan.synthetic import Made, graph_of, profile_of

UNITS = (
    Made(weights_mb=20, time_ms=200, out_mb=0.1),
    Made(weights_mb=20, time_ms=200, out_mb=0.2),
    Made(weights_mb=900, time_ms=20),
)
replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def graph() -> Graph:
    return graph_of(UNITS)


def made(graph: Graph, where: str, planner: str = "uniform-3", slo_ms: float | None = None) -> Plan:
    return make_plan(
        graph, profile_of(graph, UNITS), platform(where), planner, given="made-up", request=Request(slo_ms)
    )


@pytest.fixture(scope="module")
def plan(graph: Graph) -> Plan:
    return made(graph, "openfaas")


@pytest.fixture(scope="module")
def on_lambda(graph: Graph) -> Plan:
    return made(graph, "aws-lambda")


def edit_function(plan: Plan, index: int, **fields: object) -> Plan:
    functions = list(plan.functions)
    functions[index] = replace(functions[index], **fields)
    return replace(plan, functions=tuple(functions))


def edit_hop(plan: Plan, index: int, **fields: object) -> Plan:
    hops = list(plan.hops)
    hops[index] = replace(hops[index], **fields)
    return replace(plan, hops=tuple(hops))


def only(plan: Plan, graph: Graph) -> LamellaError:
    """The one law the plan breaks; `check` raises the same."""
    found = broken_laws(plan, graph, platform(plan.platform))
    assert len(found) == 1, found
    with pytest.raises(type(found[0])) as caught:
        check(plan, graph, platform(plan.platform))
    assert caught.value.message == found[0].message
    assert found[0].exit_code == 4
    return found[0]


@pytest.mark.parametrize("where", ["openfaas", "aws-lambda"])
@pytest.mark.parametrize("planner", ["single", "uniform-2", "uniform-3", "mopar"])
def test_what_a_planner_makes_breaks_no_law(graph: Graph, where: str, planner: str) -> None:
    assert broken_laws(made(graph, where, planner), graph, platform(where)) == []


def test_a_plan_of_another_model_is_refused_before_anything_else(plan: Plan, graph: Graph) -> None:
    other = replace(plan, model=replace(plan.model, hash="another"), hops=())
    error = only(other, graph)
    assert isinstance(error, LawBroken)
    assert "the plan is for model another" in error.message
    assert error.try_


def test_law_1_a_gap_between_slices(plan: Plan, graph: Graph) -> None:
    longer = edit_function(plan, 1, first=2, last=3)
    error = only(longer, graph)
    assert error.message == "law 1: stage-2 begins at operator 2, 1 is next"
    assert error.where == "stage-2"


def test_law_1_an_operator_served_twice(plan: Plan, graph: Graph) -> None:
    assert only(edit_function(plan, 2, first=1), graph).message == "law 1: stage-3 begins at operator 1, 2 is next"


def test_law_1_an_empty_slice(plan: Plan, graph: Graph) -> None:
    assert only(edit_function(plan, 0, last=0), graph).where == "stage-1"


def test_law_1_the_last_operator_left_out(plan: Plan, graph: Graph) -> None:
    short = replace(plan, functions=plan.functions[:2], hops=plan.hops[:1])
    messages = [e.message for e in broken_laws(short, graph, platform("openfaas"))]
    assert messages[0] == "law 1: the slices end at operator 2 of 3"


def test_law_2_a_hop_that_lists_other_tensors_than_cross(plan: Plan, graph: Graph) -> None:
    error = only(edit_hop(plan, 1, tensors=("t0",)), graph)
    assert (
        error.message
        == f"law 2: the hop to stage-3 lists {plan.hops[0].tensors[0]}; {plan.hops[1].tensors[0]} cross there"
    )
    assert error.where == "stage-3"
    assert (
        only(edit_hop(plan, 0, tensors=()), graph).message
        == f"law 2: the hop to stage-2 lists nothing; {plan.hops[0].tensors[0]} cross there"
    )


def test_law_2_a_hop_elsewhere_than_the_slice_begins(plan: Plan, graph: Graph) -> None:
    assert only(edit_hop(plan, 0, position=2), graph).message == "law 2: a hop stands at 2, stage-2 begins at 1"


def test_law_2_a_hop_too_few(plan: Plan, graph: Graph) -> None:
    found = broken_laws(replace(plan, hops=plan.hops[:1]), graph, platform("openfaas"))
    assert "law 2: 3 stages have 1 hops" in [e.message for e in found]


@pytest.mark.parametrize("need", ["peak_mb", "floor_mb"])
def test_law_4_memory_below_the_need(plan: Plan, graph: Graph, need: str) -> None:
    error = only(edit_function(plan, 1, **{need: plan.functions[1].memory_mb + 1.0}), graph)
    assert isinstance(error, LawBroken)
    assert error.message == f"law 4: stage-2 is given {plan.functions[1].memory_mb} MB and needs 81 MB"
    assert error.where == "stage-2"


def test_law_4_a_size_nobody_sells(plan: Plan, graph: Graph) -> None:
    found = broken_laws(edit_function(plan, 0, memory_mb=81), graph, platform("openfaas"))
    assert isinstance(found[0], PlatformLimit)
    assert found[0].message == (
        "stage-1: openfaas does not sell 81 MB with 1 vCPU (from 64 to 16384 MB in steps of 16)"
    )
    assert found[0].where == "stage-1"


def test_law_4_a_size_above_the_largest(on_lambda: Plan, graph: Graph) -> None:
    found = broken_laws(edit_function(on_lambda, 0, memory_mb=10241), graph, platform("aws-lambda"))
    assert "aws-lambda does not sell 10241 MB" in found[0].message


def test_law_4_more_cpu_than_the_memory_buys(on_lambda: Plan, graph: Graph) -> None:
    error = only(edit_function(on_lambda, 0, vcpu=5.0), graph)
    assert isinstance(error, PlatformLimit)
    assert "vCPU on aws-lambda, not 5.00" in error.message


def test_law_5_a_payload_that_only_base64_puts_over_the_limit(on_lambda: Plan, graph: Graph) -> None:
    fits, too_much = int(4.5 * 2**20), 5 * 2**20
    assert not broken_laws(edit_hop(on_lambda, 1, bytes=fits, encoded_bytes=fits), graph, platform("aws-lambda"))
    coded = edit_hop(on_lambda, 1, bytes=too_much, encoded_bytes=fits, codec="shuffle-zstd")
    assert not broken_laws(coded, graph, platform("aws-lambda"))
    error = only(edit_hop(on_lambda, 1, bytes=too_much, encoded_bytes=too_much), graph)
    assert isinstance(error, PlatformLimit)
    assert error.message == ("law 5: the hop at operator 2 carries 6.7 MB on the wire, the limit of aws-lambda is 6")


def test_law_5_fewer_bytes_than_the_codec_can_make_of_them(on_lambda: Plan, graph: Graph) -> None:
    size = on_lambda.hops[1].bytes
    error = only(edit_hop(on_lambda, 1, encoded_bytes=size - 1), graph)
    assert error.message == f"law 5: {size} bytes with codec none at operator 2 cannot travel as {size - 1}"
    error = only(edit_hop(on_lambda, 1, encoded_bytes=0, codec="shuffle-zstd"), graph)
    assert error.message == f"law 5: {size} bytes with codec shuffle-zstd at operator 2 cannot travel as 0"


def test_law_2_a_codec_that_nobody_knows(on_lambda: Plan, graph: Graph) -> None:
    error = only(edit_hop(on_lambda, 0, codec="zip"), graph)
    assert error.message.startswith("law 2: no codec 'zip'; there are none, bf16, ")


def test_law_5_a_package_over_the_limit(on_lambda: Plan, graph: Graph) -> None:
    error = only(edit_function(on_lambda, 2, package_mb=10_241.0), graph)
    assert isinstance(error, PlatformLimit)
    assert error.message == "law 5: the package of stage-3 is 10241 MB, the limit 10240"


def test_law_5_a_run_beyond_the_timeout(on_lambda: Plan, graph: Graph) -> None:
    found = broken_laws(edit_function(on_lambda, 0, run_ms=901_000.0), graph, platform("aws-lambda"))
    assert found[0].message == "law 5: stage-1 runs 901.0 s, the timeout is 900 s"
    assert isinstance(found[0], PlatformLimit)


def test_law_5_a_request_or_an_answer_over_the_platform_s_payload(graph: Graph) -> None:
    where = platform("aws-lambda")
    assert payloads(graph, 1, where) == []
    # 4 kB in, 1 MB out per row; 6 MB on the wire, where base64 makes 4 of 3.
    assert payloads(graph, 4, where) == []
    (answer,) = payloads(graph, 5, where)
    assert isinstance(answer, PlatformLimit)
    assert "an answer of 5.0 MB is 6.7 MB on the wire, the limit of aws-lambda is 6 MB" in str(answer)
    both = payloads(graph, 2000, where)
    assert ["a request of 7.8 MB is 10.4 MB" in str(e) for e in both] == [True, False]
    assert payloads(graph, 1000, platform("openfaas")) == []
    large = replace(made(graph, "aws-lambda"), batch=5)
    assert str(answer) in map(str, broken_laws(large, graph, where))


def test_law_6_a_function_cheaper_than_the_price_list(plan: Plan, graph: Graph) -> None:
    found = broken_laws(edit_function(plan, 1, cost_usd=1e-9), graph, platform("openfaas"))
    assert len(found) == 2  # the function's own price, and with it the sum
    assert found[0].message.startswith("law 6: stage-2 costs $")
    assert found[1].message.startswith("law 6: the parts cost $")


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_law_6_a_total_that_is_not_the_sum_of_its_parts(plan: Plan, graph: Graph, factor: float) -> None:
    wrong = replace(plan.predicted, cost_usd_per_million=plan.predicted.cost_usd_per_million * factor)
    assert only(replace(plan, predicted=wrong), graph).message.startswith("law 6: the parts cost $")


def test_law_6_a_hop_s_price_is_part_of_the_sum(plan: Plan, graph: Graph) -> None:
    assert only(edit_hop(plan, 0, cost_usd=1e-6), graph).message.startswith("law 6: the parts cost $")


def test_law_6_a_latency_less_than_its_parts(plan: Plan, graph: Graph) -> None:
    parts = sum(f.run_ms for f in plan.functions) + sum(h.time_ms for h in plan.hops)
    error = only(replace(plan, predicted=replace(plan.predicted, latency_ms=parts - 0.1)), graph)
    assert error.message == f"law 6: functions and hops take {parts:.2f} ms, the plan says {parts - 0.1:.2f}"


def test_a_latency_beyond_the_plan_s_own_slo(plan: Plan, graph: Graph) -> None:
    error = only(replace(plan, slo_ms=100.0), graph)
    assert "its SLO is 100 ms" in error.message


def test_every_broken_law_is_reported_not_only_the_first(plan: Plan, graph: Graph) -> None:
    wrong = edit_hop(edit_function(plan, 1, peak_mb=500.0), 1, tensors=())
    found = [e.message[:5] for e in broken_laws(wrong, graph, platform("openfaas"))]
    assert found == ["law 2", "law 4"]
