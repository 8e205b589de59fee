"""AMPS-Inf's plans of a real model: compared with the catalogue's hops, and run with hops that are objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from lamella.compare.compare import Settings, compare
from lamella.deploy.local import Deployment
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.objects import Bucket, ObjectStore
from lamella.package import build
from lamella.plan.make import make_plan
from lamella.plan.request import Request
from lamella.platforms import Platform, platform
from lamella.profile.document import Profile
from lamella.profile.measure import measure
from tests.faults.packages import assert_same
from tests.faults.s3 import bucket
from tests.unit.plan.pricing.test_channels import price
from tests.unit.plan.pricing.test_coding import link

__all__ = ["bucket"]
MODEL = "zoo:cnn-tiny"


@pytest.fixture(scope="module")
def graph(cache_dir: Path) -> Graph:
    return import_model(MODEL)


@pytest.fixture(scope="module")
def profile(graph: Graph) -> Profile:
    return measure(graph, budget_s=0.2)


def small(where: Platform) -> Platform:
    """The platform with packages that hold no more than a part of the model: its weights are 0.09 MB."""
    package = replace(where.limits.package_mb, number=1.08)  # a package counts 1 MB beside its weights
    return replace(where, limits=replace(where.limits, package_mb=package))


def test_each_plan_of_a_comparison_has_the_hops_it_was_made_for(graph: Graph, profile: Profile) -> None:
    storage = platform("aws-lambda").channels["s3"]
    where = replace(small(link(100.0)), channels={"s3": storage})
    planners = ("uniform-2", "amps-inf")
    record = compare(graph, profile, where, Settings(given=MODEL, planners=planners, requests=6))
    assert record.failed == {}
    through = {p.planner: p for p in record.plans}
    assert through["amps-inf"].stages == 2
    assert through["amps-inf"].latency_ms.p50 > storage.latency_ms.value > through["uniform-2"].latency_ms.p50
    assert "1 hops, 60." in through["amps-inf"].emulated
    assert "1 hops, 60." not in through["uniform-2"].emulated
    assert through["amps-inf"].cost_usd_per_million > storage.usd.value * 1e6
    assert all(p.output_error.within_tolerance for p in record.plans)


def test_its_functions_leave_what_crosses_in_a_real_bucket(
    graph: Graph, profile: Profile, bucket: Bucket, tmp_path: Path
) -> None:
    where = small(platform("openfaas")).over(price(5.0, 3.0, "s3"))
    asked = Request(channel="s3", objects=bucket)
    plan = make_plan(graph, profile, where, "amps-inf", given=MODEL, request=asked)
    assert (plan.stages, plan.channel) == (2, "s3")
    assert "hops through object storage (s3)" in plan.why
    build(plan, graph, tmp_path / "package")
    whole = make_plan(graph, profile, platform("openfaas"), "single", given=MODEL)
    build(whole, graph, tmp_path / "whole")
    inputs = request(graph, np.random.default_rng(0))
    with (
        Deployment(tmp_path / "package", channel="s3", objects=bucket) as divided,
        Deployment(tmp_path / "whole") as one,
    ):
        assert_same(divided.infer(inputs).outputs, one.infer(inputs).outputs)
    assert ObjectStore(bucket).keys() == []
