"""The laws a plan must keep (docs/architecture.md), checked after every planning and by `lamella check`."""

from __future__ import annotations

import math
import re
from itertools import pairwise

from lamella.codecs import CODECS, is_fitted, lossless
from lamella.errors import LamellaError, LawBroken, PlatformLimit, ShardRefused
from lamella.graph.model import Graph
from lamella.plan.document import Plan
from lamella.plan.layout import crossing
from lamella.platforms import Platform
from lamella.runtime.lanes import makespan
from lamella.units import MB, digits

TOLERANCE = 1e-6
LEAST_INT8 = 0.25
"""What is left at least of float32 weights as 8-bit integers."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")


def broken_laws(plan: Plan, graph: Graph, platform: Platform) -> list[LamellaError]:
    """Everything the plan breaks, in the order of the laws; empty for a plan that may run."""
    found: list[LamellaError] = []
    platform = platform.on(plan.architecture).through(plan.channel)
    if plan.model.hash != graph.hash:
        found.append(
            LawBroken(
                f"the plan is for model {plan.model.hash[:12]}, {graph.name} is {graph.hash[:12]}: the file or its "
                "shapes changed",
                try_="lamella plan again",
            )
        )
        return found
    found += structure(plan, graph)
    if not found:
        graph = plan.graph(graph)
        found += _hops(plan, graph)
        found += _truth(plan, graph)
    found += _losses(plan)
    found += _memory(plan, platform)
    found += _limits(plan, platform)
    found += payloads(graph, plan.batch, platform)
    found += _sums(plan, platform)
    return found


def structure(plan: Plan, graph: Graph) -> list[LamellaError]:
    """Laws 1 and 2: what has to hold before anything is built from the plan."""
    names = [f.name for f in plan.functions]
    bad = [n for n in names if not NAME.fullmatch(n)]
    if bad or len(set(names)) < len(names):
        return [LawBroken(f"law 1: functions need different names of letters, digits and -, not {bad or names}")]
    if plan.model.outputs != graph.outputs:
        return [LawBroken(f"law 2: the plan gives {list(plan.model.outputs)}, the model {list(graph.outputs)}")]
    try:
        graph = plan.graph(graph)
    except ShardRefused as error:
        return [LawBroken(f"law 1: the plan's shards cannot be made: {error.message}", try_="lamella plan again")]
    return _covers(plan, graph) or _stages(plan) or _borders(plan, graph) or _codecs(plan)


def _stages(plan: Plan) -> list[LamellaError]:
    """Law 1: stages are numbered in order, and shards may be busy at the same time in a number above zero."""
    numbers = [f.stage for f in plan.functions]
    if numbers != sorted(numbers) or set(numbers) != set(range(len(set(numbers)))):
        return [LawBroken(f"law 1: the functions' stages are {numbers}, not in order from 0")]
    if len(plan.at_once) != plan.stages or min(plan.at_once, default=1) < 1:
        return [LawBroken(f"law 1: {plan.stages} stages, of whose shards {list(plan.at_once)} are busy at a time")]
    return []


def _truth(plan: Plan, graph: Graph) -> list[LamellaError]:
    """What the graph alone says of law 4 and 5: a plan may not claim less."""
    found: list[LamellaError] = []
    for f in plan.functions:
        weights = graph.weight_bytes(f.first, f.last) / MB * (LEAST_INT8 if f.int8 else 1.0)
        least = weights + graph.live_bytes(f.first, f.last, plan.batch) / MB
        if max(f.peak_mb, f.floor_mb) < least - 0.5:
            found.append(LawBroken(f"law 4: {f.name} holds {least:.0f} MB of weights and tensors alone", where=f.name))
        if f.package_mb < weights * 0.99 - 0.5 and f.kind == "packaged":
            found.append(LawBroken(f"law 5: the package of {f.name} holds {weights:.0f} MB of weights", where=f.name))
        if min(f.run_ms, f.cost_usd, f.vcpu) < 0 or f.threads < 1:
            found.append(LawBroken(f"{f.name} has a negative time, cost or CPU, or no thread", where=f.name))
    for hop in plan.hops:
        size = sum(graph.tensors[n].bytes_at(plan.batch) for n in (*hop.tensors, *hop.side))
        if hop.bytes < size:
            found.append(LawBroken(f"law 5: {size} bytes cross at operator {hop.position}, the plan says {hop.bytes}"))
        if hop.encoded_bytes < (hop.bytes if hop.codec == "none" else min(1, hop.bytes)):
            found.append(
                LawBroken(
                    f"law 5: {hop.bytes} bytes with codec {hop.codec} at operator {hop.position} cannot travel as "
                    f"{hop.encoded_bytes}"
                )
            )
    return found


def check(plan: Plan, graph: Graph, platform: Platform) -> None:
    """Raise the first broken law."""
    for error in broken_laws(plan, graph, platform):
        raise error


def _covers(plan: Plan, graph: Graph) -> list[LamellaError]:
    """Law 1: the slices cover every operator exactly once, in order."""
    at = 0
    for f in plan.functions:
        if f.first != at or f.last <= f.first:
            return [LawBroken(f"law 1: {f.name} begins at operator {f.first}, {at} is next", where=f.name)]
        at = f.last
    if at != len(graph.operators):
        return [LawBroken(f"law 1: the slices end at operator {at} of {len(graph.operators)}")]
    return []


def _borders(plan: Plan, graph: Graph) -> list[LamellaError]:
    """Law 2: what a function takes was given by a stage before its own or comes with the request."""
    known = set(graph.inputs)
    found: list[LamellaError] = []
    for stage in plan.by_stage():
        made: set[str] = set()
        for f in stage:
            takes, gives = graph.border(f.first, f.last)
            found += [
                LawBroken(f"law 2: {f.name} takes {name!r}, which no stage before it gives", where=f.name)
                for name in takes
                if name not in known
            ]
            made.update(gives)
        known |= made
    return found


def _codecs(plan: Plan) -> list[LamellaError]:
    """Law 2: what a stage encodes the next one can decode; the parts of a sharded stage go as they are."""
    found: list[LamellaError] = []
    for hop, (before, stage) in zip(plan.hops, pairwise(plan.by_stage()), strict=False):
        if is_fitted(hop.codec):
            fitted = {f.tensor for f in plan.fitted if f.codec == hop.codec}
            if not fitted & {*hop.tensors, *hop.side}:
                found.append(
                    LawBroken(
                        f"law 2: {hop.codec} at operator {hop.position} is fitted to no tensor that crosses there"
                    )
                )
        elif hop.codec not in CODECS:
            found.append(LawBroken(f"law 2: no codec {hop.codec!r}; there are {', '.join(CODECS)}, and fitted ones"))
            continue
        if hop.codec != "none" and max(len(before), len(stage)) > 1:
            found.append(LawBroken(f"law 2: shards give or take what codec {hop.codec} encodes at {hop.position}"))
    return found


def _losses(plan: Plan) -> list[LamellaError]:
    """Law 3: what loses something was judged on the model's output, and kept the bound, alone and together."""
    found: list[LamellaError] = []
    judged = plan.validation
    again = "lamella plan MODEL --validate data.npz"
    for hop in plan.hops:
        if hop.codec not in CODECS and not is_fitted(hop.codec):
            continue  # law 2 has said so
        if lossless(hop.codec):
            continue
        what = f"law 3: codec {hop.codec} at operator {hop.position} loses something"
        if judged is None or hop.loss is None:
            found.append(LawBroken(f"{what} and was not judged on the model's output", try_=again))
        elif (hop.loss.metric, hop.loss.bound) != (judged.metric, judged.bound):
            found.append(LawBroken(f"{what} and was judged by another bound than the plan", try_=again))
        elif not judged.keeps(hop.loss.measured):
            found.append(LawBroken(f"{what}: {judged.sentence(hop.loss.measured)}", try_=again))
    found += _precisions(plan)
    if plan.lossy and judged and not judged.kept:
        found.append(LawBroken(f"law 3: what the plan loses breaks its bound: {judged.sentence()}", try_=again))
    return found


def _precisions(plan: Plan) -> list[LamellaError]:
    """Law 3: the products on 8-bit integers are those that were judged, and functions say which they are."""
    again = "lamella plan MODEL --precision int8 --validate data.npz"
    for f in plan.functions:
        if bool(f.int8) != (f.layout == "int8"):
            what = f"law 3: {f.name} has weights {f.layout} and names {len(f.int8)} products on 8-bit integers"
            return [LawBroken(what, where=f.name, try_=again)]
    chosen = {name for f in plan.functions for name in f.int8}
    judged = set(plan.validation.int8) if plan.validation else set()
    if chosen == judged:
        return []
    odd = ", ".join(sorted(chosen ^ judged)[:3])
    what = (
        f"law 3: {len(chosen)} products run on 8-bit integers, {len(judged)} were judged so on the output ({odd} ...)"
    )
    return [LawBroken(what, try_=again)]


def _hops(plan: Plan, graph: Graph) -> list[LamellaError]:
    """Law 2: each hop lists exactly what crosses."""
    found: list[LamellaError] = []
    heads = [stage[0] for stage in plan.by_stage()]
    for hop, f in zip(plan.hops, heads[1:], strict=False):
        if hop.position != f.first:
            found.append(
                LawBroken(f"law 2: a hop stands at {hop.position}, {f.name} begins at {f.first}", where=f.name)
            )
            continue
        tensors, side = crossing(graph, hop.position)
        if {*tensors, *side} != {*hop.tensors, *hop.side}:
            found.append(
                LawBroken(
                    f"law 2: the hop to {f.name} lists {', '.join(sorted({*hop.tensors, *hop.side})) or 'nothing'}; "
                    f"{', '.join(sorted((*tensors, *side)))} cross there",
                    where=f.name,
                )
            )
    if len(plan.hops) != len(heads) - 1:
        found.append(LawBroken(f"law 2: {len(heads)} stages have {len(plan.hops)} hops"))
    return found


def _memory(plan: Plan, platform: Platform) -> list[LamellaError]:
    """Law 4: the allocation is a size the platform sells, and holds what the function needs."""
    found: list[LamellaError] = []
    for f in plan.functions:
        need = max(f.peak_mb, f.floor_mb)
        if f.memory_mb < need - 0.5:
            found.append(LawBroken(f"law 4: {f.name} is given {f.memory_mb} MB and needs {need:.0f} MB", where=f.name))
        if platform.allocation_mb(f.memory_mb, f.vcpu) != f.memory_mb:
            sizes = platform.sizes_mb(f.vcpu)
            found.append(
                PlatformLimit(
                    f"{f.name}: {platform.name} does not sell {f.memory_mb} MB with {f.vcpu:g} vCPU (from "
                    f"{sizes[0]:g} to {sizes[-1]:g} MB in steps of {platform.step_mb:g})",
                    where=f.name,
                )
            )
        sold = platform.vcpu(f.memory_mb, f.vcpu)
        if not math.isclose(sold, f.vcpu, rel_tol=1e-3):
            found.append(
                PlatformLimit(f"{f.name}: {f.memory_mb} MB buy {sold:.2f} vCPU on {platform.name}, not {f.vcpu:.2f}")
            )
    return found


def _limits(plan: Plan, platform: Platform) -> list[LamellaError]:
    """Law 5: payloads, packages and run times within the platform's limits."""
    found: list[LamellaError] = []
    limits = platform.limits
    for f in plan.functions:
        if f.package_mb > limits.package_mb.value:
            found.append(
                PlatformLimit(
                    f"law 5: the package of {f.name} is {f.package_mb:.0f} MB, the limit {limits.package_mb.value:g}"
                )
            )
        if f.run_ms / 1000 > limits.timeout_s.value:
            found.append(
                PlatformLimit(
                    f"law 5: {f.name} runs {f.run_ms / 1000:.1f} s, the timeout is {limits.timeout_s.value:g} s"
                )
            )
    for hop in plan.hops:
        way = platform.through(hop.channel)
        payload = way.hop_mb(hop.encoded_bytes)
        if payload > way.hop_limit_mb:
            found.append(
                PlatformLimit(
                    f"law 5: the hop at operator {hop.position} carries {digits(payload, 1)} MB on the wire, "
                    f"the limit of {platform.name} is {way.hop_limit_mb:g}"
                )
            )
    return found


def payloads(graph: Graph, batch: int, platform: Platform) -> list[LamellaError]:
    """Law 5 for a request and its answer, which pass the platform too; it can be known before there is a plan."""
    found: list[LamellaError] = []
    for what, names in (("a request", graph.inputs), ("an answer", graph.outputs)):
        found += payload(what, sum(graph.tensors[n].bytes_at(batch) for n in names), platform)
    return found


def payload(what: str, size: int, platform: Platform) -> list[LamellaError]:
    """Law 5 for one message of `size` bytes."""
    on_wire, limit = platform.payload_mb(size), platform.limits.payload_mb.value
    if on_wire <= limit:
        return []
    return [
        PlatformLimit(
            f"law 5: {what} of {digits(size / MB, 1)} MB is {digits(on_wire, 1)} MB on the wire, the "
            f"limit of {platform.name} is {limit:g} MB",
            try_="a smaller --batch or --shape, or another --platform",
        )
    ]


def _sums(plan: Plan, platform: Platform) -> list[LamellaError]:
    """Law 6: cost is the sum of its parts, each by the platform's own prices; latency covers every function and hop."""
    found: list[LamellaError] = []
    for f in plan.functions:
        cost = platform.cost_usd(f.memory_mb, f.run_ms, f.vcpu)
        if not math.isclose(cost, f.cost_usd, rel_tol=1e-4):
            found.append(
                LawBroken(f"law 6: {f.name} costs ${cost:.3g} a run by the price list, the plan says ${f.cost_usd:.3g}")
            )
    cost = sum(f.cost_usd for f in plan.functions) + sum(h.cost_usd for h in plan.hops)
    if not math.isclose(cost * 1e6, plan.predicted.cost_usd_per_million, rel_tol=1e-4):
        found.append(
            LawBroken(
                f"law 6: the parts cost ${cost * 1e6:.4f} per million, the plan says "
                f"${plan.predicted.cost_usd_per_million:.4f}"
            )
        )
    stages = zip(plan.by_stage(), plan.at_once, strict=False)
    least = sum(makespan([f.run_ms for f in stage], many) for stage, many in stages)
    least += sum(h.time_ms for h in plan.hops)
    if plan.predicted.latency_ms < least - TOLERANCE * max(1.0, least):
        found.append(
            LawBroken(f"law 6: functions and hops take {least:.2f} ms, the plan says {plan.predicted.latency_ms:.2f}")
        )
    bounded = plan.bounded_ms
    if plan.budget_usd is not None and plan.charged_usd > plan.budget_usd * (1 + TOLERANCE):
        found.append(
            LawBroken(f"the plan costs ${plan.charged_usd:.4g} per million, its budget is ${plan.budget_usd:g}")
        )
    if plan.slo_ms is not None and bounded > plan.slo_ms * (1 + TOLERANCE):
        found.append(LawBroken(f"the plan takes {bounded:.1f} ms{plan.at}, its SLO is {plan.slo_ms:g} ms"))
    return found
