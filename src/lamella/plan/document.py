"""The plan: what to run where, what it is predicted to cost, why each choice was made and why each loser lost."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import msgspec

from lamella import documents
from lamella.documents import Document
from lamella.graph.divide import ShardSpan, shard
from lamella.graph.model import Graph
from lamella.machine import Machine
from lamella.runtime.function import Kind


class ModelRef(msgspec.Struct, frozen=True):
    """Which model, imported how: enough to find it again and to refuse another one."""

    given: str
    """What the user gave: a path or zoo:NAME."""
    name: str
    hash: str
    shapes: dict[str, tuple[int | str, ...]]
    """Request shapes of every input; N where the batch axis is free."""
    outputs: tuple[str, ...]


class FunctionPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One function: operators `first` to `last - 1` of the sharded graph, its resources, predicted needs."""

    name: str
    stage: int
    """Functions of one stage are shards, which run at the same time."""
    first: int
    last: int
    kind: Kind
    memory_mb: int
    """Allocation: what the platform sells and bills."""
    vcpu: float
    threads: int
    prepack: bool
    peak_mb: float
    """Predicted VmHWM."""
    floor_mb: float
    """What law 4 demands: runtime floor, all weights in full (or their prepacked copies, where larger), and the peak of
    live activations."""
    run_ms: float
    """Predicted time of one run."""
    cost_usd: float
    """Predicted cost of one run."""
    package_mb: float
    why: str


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """What goes from one function to the next: all tensors that cross the cut."""

    position: int
    tensors: tuple[str, ...]
    side: tuple[str, ...]
    """Request constants delivered beside them."""
    bytes: int
    encoded_bytes: int
    """What travels, by the codec's ratio as measured."""
    channel: str
    codec: str
    time_ms: float
    """Without the work of encoding and decoding, which is in the functions' runs."""
    cost_usd: float
    why: str


class Predicted(msgspec.Struct, frozen=True):
    """Per request. `memory_mb` is the sum of the functions' allocations."""

    latency_ms: float
    memory_mb: float
    cost_usd_per_million: float


class Loser(msgspec.Struct, frozen=True):
    """A candidate that was not chosen."""

    candidate: str
    stages: int
    latency_ms: float
    cost_usd_per_million: float
    why: str


class Slack(msgspec.Struct, frozen=True):
    """A constraint, what it allows and what the plan uses."""

    constraint: str
    limit: float
    used: float
    unit: str


class Plan(Document, frozen=True, kw_only=True):
    """`plan.json`."""

    model: ModelRef
    machine: Machine
    """Where the profile behind it was measured."""
    platform: str
    planner: str
    slo_ms: float | None
    batch: int
    shards: tuple[ShardSpan, ...]
    """What is divided among shards, in operators of the model; the functions' operators are those after that."""
    at_once: tuple[int, ...]
    """For each stage how many of its shards may be busy at a time."""
    functions: tuple[FunctionPlan, ...]
    hops: tuple[Hop, ...]
    predicted: Predicted
    slack: tuple[Slack, ...]
    losers: tuple[Loser, ...]
    why: str

    @property
    def stages(self) -> int:
        """Length of the chain; the shards of a stage count once."""
        return len({f.stage for f in self.functions})

    def by_stage(self) -> list[list[FunctionPlan]]:
        """The functions of each stage, in order."""
        return [list(group) for _, group in groupby(self.functions, lambda f: f.stage)]

    def graph(self, model: Graph) -> Graph:
        """The graph its functions are operators of: the model's, with the shards made."""
        return shard(model, self.shards).graph if self.shards else model


def model_ref(graph: Graph, given: str) -> ModelRef:
    """How to find this model again."""
    shapes = {n: graph.tensors[n].shape for n in graph.inputs}
    return ModelRef(given=given, name=graph.name, hash=graph.hash, shapes=shapes, outputs=graph.outputs)


def read_plan(path: Path) -> Plan:
    """The plan in `path`; ConfigError where it is none."""
    return documents.read(path, Plan, made_by="lamella plan MODEL --platform openfaas -o plan.json")
