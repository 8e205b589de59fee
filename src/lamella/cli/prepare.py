"""What every verb that plans does first: import the model for the platform, and measure what is not known yet."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from lamella.cli.options import Planning, parse_precisions, parse_ranges, parse_shapes, progress
from lamella.errors import ConfigError
from lamella.frameworks import load
from lamella.frameworks.attribute import is_attribute
from lamella.graph.model import Graph
from lamella.graph.requests import check_ranges
from lamella.plan.laws import payloads
from lamella.plan.make import BASELINES
from lamella.plan.planners.registry import planner as planner_named
from lamella.plan.request import Request, variant
from lamella.platforms import Platform
from lamella.platforms import platform as platform_named
from lamella.predictor.calibrate import held_calibration
from lamella.predictor.predict import predict
from lamella.profile.document import Profile
from lamella.profile.measure import measure, threads_needed

Profiled = Callable[[Graph, Platform, Planning, Sequence[str]], Profile]
"""Where a profile comes from: `measured` or `foretold`."""


def loaded(model: str, shape: list[str] | None) -> Graph:
    """The model's graph; says so where that takes a while, which an export always does."""
    shapes = parse_shapes(shape)
    if is_attribute(model):
        print(f"exporting {model} to ONNX and comparing it with the original", file=sys.stderr, flush=True)
    return load(model, shapes=shapes)


def imported(model: str, asked: Planning, *, payload: bool = True) -> tuple[Graph, Platform]:
    """The model's graph and the platform's rules.

    Raises:
        ConfigError: there is no such platform, or it does not run functions.
        PlatformLimit: a request or its answer is larger than the platform's payload, where that is asked about; no plan
            could help.
    """
    rules = on_functions(asked.platform)
    ranges = parse_ranges(asked.range_)  # an option that cannot be read is told before minutes of work
    graph = loaded(model, asked.shape)
    check_ranges(graph, ranges)
    for error in payloads(graph, asked.batch, rules) if payload else ():
        raise error
    return graph, rules


def on_functions(name: str) -> Platform:
    """The platform of that name; ConfigError where there is none, or where it does not run functions."""
    rules = platform_named(name)
    if rules.kind == "instance":
        raise ConfigError(
            f"{rules.name} is a machine that is always on and paid by the hour: there is nothing to divide on it",
            try_=f"lamella platforms show {rules.name}",
        )
    return rules


def check_planners(names: Sequence[str], asked: Request) -> None:
    """ConfigError for a planner that there is not, or for none at all: before minutes of work."""
    if not names:
        raise ConfigError("no planner is named", try_="--planners ort,single,mopar")
    for name in names:
        base, _ = variant(name, asked)
        if base not in BASELINES:
            planner_named(base)


def measured(graph: Graph, rules: Platform, asked: Planning, planners: Sequence[str] = ()) -> Profile:
    """The profile that planning for the platform needs, also for planners that ask for more vCPU than the rest."""
    with progress("profile") as move:
        return measure(
            graph,
            batches=sorted({1, asked.batch, asked.max_batch}),
            threads=_threads(rules, asked, planners),
            progress=move,
            ranges=parse_ranges(asked.range_),
            shards=asked.shards,
            at_once=asked.at_once,
            precisions=parse_precisions(asked.precision),
        )


def foretold(graph: Graph, rules: Platform, asked: Planning, planners: Sequence[str] = ()) -> Profile:
    """As `measured`, but predicted by this machine's calibration: the model is not run, and no shards are known.

    Raises:
        ConfigError: this machine is not calibrated; or another precision is asked for, of which it holds nothing.
    """
    if parse_precisions(asked.precision):
        raise ConfigError("--predicted knows fp32 only", try_=f"--precision {asked.precision} without --predicted")
    known = held_calibration()
    with progress("profile") as move:
        counts = _threads(rules, asked, planners)
        return predict(graph, known, batches=sorted({1, asked.batch, asked.max_batch}), threads=counts, progress=move)


def _threads(rules: Platform, asked: Planning, planners: Sequence[str]) -> tuple[int, ...]:
    vcpu = max([asked.vcpu, *(variant(name, asked.request())[1].vcpu for name in planners)])
    return threads_needed(rules.cpu.coupling, vcpu)
