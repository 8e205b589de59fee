"""The plan: what to run where, what it is predicted to cost, why each choice was made and why each loser lost."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from statistics import NormalDist

import msgspec

from lamella import documents
from lamella.documents import Document
from lamella.graph.divide import ShardSpan, shard
from lamella.graph.model import Graph
from lamella.machine import Machine
from lamella.platforms.platform import Architecture
from lamella.runtime.function import Kind, Layout


def deviations(percentile: float | None) -> float:
    """From the mean of a normal distribution to a percentile of it, standard deviations; 0 without one."""
    return NormalDist().inv_cdf(percentile / 100) if percentile else 0.0


class ModelRef(msgspec.Struct, frozen=True):
    """Which model, imported how: enough to find it again and to refuse another one."""

    given: str
    """What the user gave: a path or zoo:NAME. Of a torch or Keras model the exported file."""
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
    layout: Layout
    """Of its products' weights; `lamella package` makes it so."""
    int8: tuple[str, ...] = ()
    """In the layout int8: the tensors that its products on 8-bit integers give. The others keep their precision."""
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


class Loss(msgspec.Struct, frozen=True):
    """What a codec alone, beside the plan's precisions, does to the output, on the requests of its validation."""

    metric: str
    measured: float
    bound: float


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
    """Without what is in the functions' runs: encoding, decoding, and sending over a channel that is not emulated."""
    cost_usd: float
    why: str
    loss: Loss | None = None
    """Of a lossy codec."""


class Predicted(msgspec.Struct, frozen=True):
    """Per request. `memory_mb` is the sum of the functions' allocations."""

    latency_ms: float
    """On average."""
    memory_mb: float
    cost_usd_per_million: float
    deviation_ms: float = 0.0
    """Of latency: by the spread of the units in the profile, each taken as independent."""
    common: float = 0.0
    """Relative deviation that all functions of a request share: the machine's noise, and what predictions are off."""

    def at(self, percentile: float | None) -> float:
        """Latency at a percentile, ms; the mean without one."""
        many = deviations(percentile)
        return self.latency_ms * (1 + many * self.common) + many * self.deviation_ms


class Cold(msgspec.Struct, frozen=True, kw_only=True):
    """What starts add, where requests come now and then and instances do not stay for ever."""

    rate_per_s: float | None
    """At which functions run: with every request, or where rows share a run with every full batch; none: not told."""
    share: float
    """Of requests, that find all functions stopped; 0 without a rate."""
    keep_alive_s: float
    starts: int
    """Functions that such a request has to start, one after the other but for shards,"""
    init_ms: float
    """which takes them so long in all, imports and sessions; beside that the platform's own part,"""
    platform_ms: float | None
    """processes and fetched packages, if it is known."""
    usd_per_million_starts: float
    """What that costs, where the platform bills it; not part of the plan's predicted cost."""
    one_function_below_per_s: float | None
    """Below this rate one function within the SLO is cheaper, starts included; none where there is no such function."""


class Loser(msgspec.Struct, frozen=True):
    """A candidate that was not chosen."""

    candidate: str
    stages: int
    latency_ms: float
    cost_usd_per_million: float
    why: str


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan whose units run in another order could save, within the same latency."""

    one: bool
    """Whether units have one order only, so that there is nothing to save."""
    units: int
    left_out: int = 0
    """Units whose own work and weights the bound does not count, as there are too many orders of all."""
    bound_usd_per_million: float | None = None
    """No plan in any order costs less; none where there is one order only."""
    most_saves: float = 0.0
    """Share of the cheapest plan's cost that no other order saves more than,"""
    found_saves: float = 0.0
    """and that the best order found does save, by the profile; it is not packaged."""

    @property
    def sentence(self) -> str:
        """In words."""
        if self.one:
            return f"one order only: each of the {self.units} units needs all before it"
        found = f"; one was found that saves {self.found_saves:.1%}" if self.found_saves >= 0.001 else ""
        return f"no other order of operators can save more than {self.most_saves:.1%}{found}"


class Slack(msgspec.Struct, frozen=True):
    """A constraint, what it allows and what the plan uses."""

    constraint: str
    limit: float
    used: float
    unit: str


class FittedCodec(msgspec.Struct, frozen=True):
    """A learned codec of one tensor: `components` of its `channels` cross. The cache holds its parameters by hash."""

    tensor: str
    codec: str
    channels: int
    components: int
    sha256: str


class Tried(msgspec.Struct, frozen=True):
    """What was judged: lossy codecs of which hops, by the operator of the model behind them, and what came out."""

    hops: dict[int, str]
    measured: float
    requests: int
    """How many were looked at: it ends with the first that breaks the bound."""
    kept: bool
    """Whether the bound was."""
    int8: tuple[int, ...] = ()
    """Units on 8-bit integers besides, by their first operator."""


class Validation(msgspec.Struct, frozen=True, kw_only=True):
    """How what a plan loses was judged: codecs and precisions together, by the output, on the user's requests."""

    data: str
    sha256: str
    """Of the file."""
    metric: str
    bound: float
    more_is_better: bool
    """Whether the bound is the least or the most."""
    requests: int
    """That were judged on."""
    fitted_on: str
    """Where the learned codecs' requests are from: other ones than those judged on."""
    fitted_requests: int
    measured: float | None
    """Of the plan's hops and functions together; none where none of them loses anything."""
    tried: tuple[Tried, ...]
    int8: tuple[str, ...] = ()
    """What the products that were judged on 8-bit integers give."""

    @property
    def kept(self) -> bool:
        """Whether what was measured is within the bound."""
        return self.measured is not None and self.keeps(self.measured)

    def keeps(self, value: float) -> bool:
        """Whether a value is within the bound; no number is not."""
        return value >= self.bound if self.more_is_better else value <= self.bound

    def sentence(self, value: float | None = None) -> str:
        """What was measured, of which bound, on what; in place of the plan's own a `value`."""
        value = self.measured if value is None else value
        limit = f"{'at least' if self.more_is_better else 'at most'} {self.bound:g}"
        digits = ".5g" if self.more_is_better else ".2g"
        on = f"{limit} on {self.requests} requests of {self.data}"
        return f"{self.metric} {value:{digits}} of {on}" if value is not None else f"{self.metric} of {on}"


class Plan(Document, frozen=True, kw_only=True):
    """`plan.json`."""

    model: ModelRef
    machine: Machine
    """Where the profile behind it was measured."""
    platform: str
    channel: str = "shared-memory"
    """Between functions, and for request and answer."""
    architecture: Architecture = "x86"
    """Whose prices these are; times are those of the machine, whatever it says."""
    planner: str
    slo_ms: float | None
    budget_usd: float | None = None
    """Of a million requests, starts included, within which this is the quickest plan; none where cost was sought."""
    percentile: float | None = None
    """Of latency, that the SLO bounds; none: its mean. Of requests that find their functions ready."""
    asked_percentile: float | None = None
    """Of all requests, that was asked for, where it is told how often they come: `percentile` is higher to make up for
    those that wait for starts, or the same where nothing makes up for them."""
    batch: int
    wait_ms: float = 0.0
    """What the first row of a batch waits for the others, where the planner chose how many share a run."""
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
    cold: Cold | None = None
    """Where the platform's figures are known."""
    orders: Orders | None = None
    """Where the planner looked at all choices: what it did not look at."""
    gap: float | None = None
    """Share of the cheapest plan's cost that another in the same order and bounds may still save, or of a budget that
    it takes to have a quicker one: 0 is a proof; none: the planner does not say."""
    validation: Validation | None = None
    """Where lossy codecs were asked about."""
    fitted: tuple[FittedCodec, ...] = ()

    def __post_init__(self) -> None:
        """What no schema says, of the figures that others are reckoned from."""
        if self.percentile is not None and not 50 <= self.percentile < 100:
            raise ValueError(f"percentile is {self.percentile:g}, it must be from 50 to below 100")
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}, it must be at least 1")
        if self.cold and self.cold.rate_per_s is not None and not self.cold.rate_per_s > 0:
            raise ValueError(f"cold.rate_per_s is {self.cold.rate_per_s:g}, it must be above zero")

    @property
    def charged_usd(self) -> float:
        """What a budget bounds: the price of a million requests with their share of starts, where a rate is told."""
        told = self.cold if self.cold and self.cold.rate_per_s is not None else None
        return self.predicted.cost_usd_per_million + (told.share * told.usd_per_million_starts if told else 0.0)

    @property
    def requests(self) -> int:
        """How many requests a run answers: its rows, where they come one by one and wait for each other."""
        return self.batch if self.wait_ms > 0 else 1

    @property
    def request_usd(self) -> float:
        """Price of a million requests: `charged_usd`, shared by those that share a run."""
        return self.charged_usd / self.requests

    @property
    def bounded_ms(self) -> float:
        """What the SLO bounds: mean latency, or its percentile; what rows wait for each other included."""
        return self.wait_ms + self.predicted.at(self.percentile)

    @property
    def in_time(self) -> float | None:
        """Share of all requests that the SLO holds for at least; None where no rate is told, or no SLO on a percentile.

        Of those that find their functions ready the percentile; of the others as many, or where their start does not
        fit into the SLO, or its time is not known, none.
        """
        if self.slo_ms is None or self.percentile is None or self.cold is None or self.cold.rate_per_s is None:
            return None
        platform_ms = self.cold.platform_ms
        fits = platform_ms is not None and self.bounded_ms + self.cold.init_ms + platform_ms <= self.slo_ms
        return self.percentile / 100 * (1 if fits else 1 - self.cold.share)

    @property
    def at(self) -> str:
        """What of latency that is, in words behind a number."""
        return "" if self.percentile is None else f" at percentile {self.percentile:g}"

    @property
    def lossy(self) -> bool:
        """Whether a hop or a function loses something."""
        return any(hop.loss for hop in self.hops) or any(f.int8 for f in self.functions)

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
