"""The run record: what `lamella compare` measured, as one document. Times in ms, memory in MB (MiB)."""

from __future__ import annotations

import msgspec

from lamella.documents import Document
from lamella.errors import LawBroken
from lamella.machine import Machine
from lamella.plan.document import Loss, Predicted
from lamella.platforms.packing import Packing


class UnitRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Operators `first` to `last - 1` of the model as they were profiled, at the comparison's batch."""

    first: int
    last: int
    kinds: str
    weight_mb: float
    live_mb: float
    """Peak of live activations."""
    ms: float
    """By itself, on the fewest threads that were measured."""


class Use(msgspec.Struct, frozen=True):
    """What a function must hold while one of its units runs."""

    share: float
    """Of the function's time."""
    mb: float
    """Weights and live tensors, beside the runtime floor."""


class FunctionRecord(msgspec.Struct, frozen=True):
    """A function as it was deployed: the measured allocation, its CPU, and what was seen."""

    name: str
    memory_mb: int
    cpu: float
    peak_mb: float
    predicted_peak_mb: float
    planned_mb: int
    run_ms: float
    predicted_run_ms: float
    stage: int = -1
    """The functions of one stage are shards. This and what follows have defaults for older documents, which lack it."""
    first: int = 0
    """Operators `first` to `last - 1` of the model: for a shard all that is divided, for a join alone none."""
    last: int = 0
    uses: tuple[Use, ...] = ()


class Latency(msgspec.Struct, frozen=True):
    """From the intended send time. `cold` is the first request with no instance running."""

    p50: float
    p95: float
    cold: float
    p50_low: float
    """95 % interval of the median."""
    p50_high: float


class ColdSplit(msgspec.Struct, frozen=True):
    """The slowest function's start, ms."""

    spawn: float
    imports: float
    map: float
    session: float
    first_run: float


class MemoryTime(msgspec.Struct, frozen=True):
    """MB-seconds per request."""

    billed: float
    resident: float
    used: float
    used_without_floor: float


class Efficiency(msgspec.Struct, frozen=True):
    """Used over billed, and used over resident memory-time."""

    billed: float
    resident: float


OUTPUT_TOLERANCE = 1e-4
"""Law 3: what a plan's answers may differ from the whole model's by, relative to the output's range."""


class OutputError(msgspec.Struct, frozen=True):
    """Against the whole model unoptimised: largest difference, and relative to the output's range.

    The largest finite number where the two cannot be compared (another shape, or no number): JSON has no infinity.
    """

    max_abs: float
    max_rel: float
    within_tolerance: bool = True
    """Whether law 3 is kept: `max_rel` is at most 1e-4; of a plan with lossy codecs, `judged` is within its bound."""
    judged: Loss | None = None
    """Of a plan with lossy codecs: what its metric says of its answers to requests of its validation."""


class Turn(msgspec.Struct, frozen=True):
    """A plan's requests of one round, on average."""

    cost_usd_per_million: float
    latency_ms: float


class PlanRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One plan's row."""

    planner: str
    stages: int
    functions: tuple[FunctionRecord, ...]
    latency_ms: Latency
    cold_split_ms: ColdSplit
    cost_usd_per_million: float
    cost_low: float
    """95 % interval of the cost."""
    cost_high: float
    vcpu_s: float
    memory_time_mb_s: MemoryTime
    efficiency: Efficiency
    peak_memory_mb: float
    """Sum over the functions of VmHWM."""
    major_faults: int
    output_error: OutputError
    limits: str
    """`enforced` or `unlimited`."""
    emulated: str
    """What was added from the catalogue instead of measured; empty where nothing was."""
    predicted: Predicted
    why: str
    packing: Packing | None = None
    """On nodes of one's own cluster, by the measured runs; None on other platforms, or where a function is larger."""
    rounds: int
    """Rounds its samples come from."""
    rounds_rejected: int
    """Noisy rounds thrown away and run again."""
    rounds_noisy_kept: int = 0
    """Of `rounds` those that were noisy too, kept when too many had been rejected: the figures carry their noise."""
    turns: tuple[Turn, ...] = ()
    """By round; all plans of a comparison took theirs in the same ones. Empty in older documents."""
    at_once: tuple[int, ...] = ()
    """For each stage how many of its shards were busy at a time."""
    refused: dict[str, str] = msgspec.field(default_factory=dict)
    """Functions that are planned blocked and ran plain, and why."""
    slowdown: float | None = None
    """How much longer than at the pace of the profile the plan would take in its turns, by known loads beside them."""


class Comparison(Document, frozen=True, kw_only=True):
    """`lamella compare --json`."""

    model: str
    platform: str
    machine: Machine
    limits_reason: str
    """Why limits are not enforced; empty where they are."""
    date: str
    slo_ms: float | None
    batch: int = 1
    """Rows per request."""
    plans: tuple[PlanRecord, ...]
    failed: dict[str, str] = msgspec.field(default_factory=dict)
    """Planners whose plan failed, and why: it could not be made, packaged, allocated or started, or was lost."""
    model_hash: str = ""
    version: str = ""
    """Of lamella."""
    command: tuple[str, ...] = ()
    """Arguments of the program that measured it; empty where it was called as a library."""
    floor_mb: float = 0.0
    """A function without a model: the runtime floor."""
    units: tuple[UnitRecord, ...] = ()
    """What the model is made of, in order."""


def check_answers(record: Comparison) -> None:
    """Raise LawBroken where a plan's answers are not the model's (law 3)."""
    broken = [p for p in record.plans if not p.output_error.within_tolerance]
    if broken:
        found = "; ".join(f"the answers of {p.planner} {_broken(p.output_error)}" for p in broken)
        raise LawBroken(
            f"law 3: {found}",
            where=record.model,
            try_=f"--planners without {', '.join(p.planner for p in broken)}",
        )


def _broken(error: OutputError) -> str:
    if error.judged:
        one = error.judged
        return f"have a {one.metric} of {one.measured:.4g} on the validation's requests, the bound is {one.bound:g}"
    allowed = f"at most {OUTPUT_TOLERANCE:.0e} is allowed"
    return f"differ by {error.max_rel:.0e} of the output's range from the whole model's; {allowed}"
