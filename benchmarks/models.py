"""The twelve models that plans are judged on, and what the pages about them say alike."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lamella.compare.record import PlanRecord
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.plan.document import Plan, Predicted
from lamella.platforms import Platform, platform
from lamella.profile.document import Profile
from lamella.profile.measure import cache_path, measure, threads_needed

KINDS = {
    "convolutional": ("vgg19", "resnet50", "inception-v3"),
    "transformer": ("bert-base", "vit-large", "gpt2-medium"),
    "recurrent": ("lstm-2048", "bilstm", "gru-seq2seq"),
    "graph, recommendation": ("gcn", "dlrm", "deepfm"),
}
MODELS = tuple(name for names in KINDS.values() for name in names)


class Subject(NamedTuple):
    """A model with its profile, on a platform's rules."""

    name: str
    graph: Graph
    profile: Profile
    platform: Platform

    @property
    def given(self) -> str:
        """What it is called on the command line."""
        return f"zoo:{self.name}"


def subject(name: str, rules: str, oldest_s: float = math.inf) -> Subject:
    """A model of the zoo; what its profile lacks is measured now, for up to 2 vCPU where CPU is chosen.

    All of it, where what is known of it was measured longer than `oldest_s` ago: a shared machine is not as fast at
    every hour.
    """
    rule = platform(rules)
    graph = import_model(f"zoo:{name}")
    known = cache_path(graph)
    if known.exists() and time.time() - known.stat().st_mtime > oldest_s:
        known.unlink()
    profile = measure(graph, threads=threads_needed(rule.cpu.coupling, 2.0), shards=True)
    return Subject(name, graph, profile, rule)


def decided(plan: Plan) -> object:
    """What a plan decides, without its reasons and predictions: plans that decide the same are one deployment."""
    return (
        plan.channel if len(plan.functions) > 1 else "",
        tuple((f.stage, f.first, f.last, f.kind, f.memory_mb, f.vcpu, f.threads, f.layout) for f in plan.functions),
        tuple((h.position, h.tensors, h.codec, h.channel) for h in plan.hops),
        plan.shards,
        plan.at_once,
    )


def p95_ms(predicted: Predicted) -> float:
    """The 95th percentile of latency by its predicted mean and deviation, as `exact` holds it to an SLO."""
    return predicted.at(95.0)


class Error(NamedTuple):
    """Predicted over measured, less one."""

    latency: float
    memory: float
    """Of the functions' peaks, on average."""


def prediction_error(plan: PlanRecord) -> Error:
    """How far a plan's prediction was off: its latency against p50, its functions' peaks against VmHWM."""
    peaks = [f.predicted_peak_mb / f.peak_mb - 1 for f in plan.functions]
    return Error(plan.predicted.latency_ms / plan.latency_ms.p50 - 1, sum(peaks) / len(peaks))


def mean_errors(errors: Sequence[Error]) -> Error:
    """Mean absolute errors."""
    return Error(*(sum(abs(e[k]) for e in errors) / len(errors) for k in (0, 1)))


def geometric(values: Iterable[float]) -> float:
    """The geometric mean of values above nought."""
    known = list(values)
    return math.exp(sum(map(math.log, known)) / len(known))


def between(dates: Iterable[str]) -> str:
    """From the first to the last date, or the only one."""
    known = sorted(set(dates))
    return " to ".join(dict.fromkeys([known[0], known[-1]]))
