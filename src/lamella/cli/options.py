"""Options that several verbs share, and how their text becomes values."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from lamella import documents
from lamella.errors import ConfigError
from lamella.graph.model import Graph
from lamella.objects import bucket
from lamella.plan.pricing.batching import MOST_ROWS
from lamella.plan.request import LEAST_VCPU, MOST_VCPU, Request
from lamella.plan.validation.judge import Judge, unasked, validation
from lamella.plan.validation.metrics import metric as metric_named
from lamella.profile.measure import Precision
from lamella.runtime.starts import Start
from lamella.runtime.tensors import Channel

arguments: ContextVar[tuple[str, ...]] = ContextVar("arguments", default=())
"""The command line that is running, without the program's name."""

Model = Annotated[
    str, Parameter(help="Path to an .onnx file, zoo:NAME, or package.module:attribute of a torch or Keras model.")
]
Shape = Annotated[
    list[str] | None,
    Parameter(name="--shape", negative="", help="Request shape of an input, NAME=1,3,224,224; N keeps the batch free."),
]
Range = Annotated[
    list[str] | None,
    Parameter(name="--range", negative="", help="Valid values of an input, NAME=LOW:HIGH (HIGH excluded)."),
]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON document instead of a table.")]
Output = Annotated[Path | None, Parameter(name=["-o", "--output"], help="Where to write the document.")]
PlatformName = Annotated[
    str,
    Parameter(
        name="--platform", help="Whose sizes, prices and limits apply: a name of `lamella platforms`, or FILE.toml."
    ),
]
Slo = Annotated[float | None, Parameter(name="--slo-ms", help="Latency bound of a request, ms.")]
Percentile = Annotated[
    float | None,
    Parameter(
        name="--percentile",
        help="Of latency, that --slo-ms bounds; 50 for the middle.",
    ),
]
Budget = Annotated[
    float | None,
    Parameter(
        name="--budget-usd",
        help="Of a million requests, in place of --slo-ms: the quickest plan within it, by planner exact.",
    ),
]
Rate = Annotated[
    float | None,
    Parameter(
        name="--rate-per-s",
        help="Requests per second, one by one: then starts after idle times count. Without it functions are ready.",
    ),
]
ArchitectureName = Annotated[
    Literal["x86", "arm", "any"],
    Parameter(
        name="--architecture",
        help="Whose price is taken, where there are several: any is the cheaper. Times are those of this machine.",
    ),
]
MaxBatch = Annotated[
    int,
    Parameter(
        name="--max-batch",
        help="Rows that come one by one may share a run, at most so many; needs --rate-per-s and --slo-ms.",
    ),
]
MaxStages = Annotated[int, Parameter(name="--max-stages", help="At most so many stages, one after the other.")]
Vcpu = Annotated[float, Parameter(name="--vcpu", help="vCPU per function, where the platform lets one choose.")]
Batch = Annotated[int, Parameter(name="--batch", help="Rows per request.")]

S3Endpoint = Annotated[str | None, Parameter(name="--s3-endpoint", help="Of an S3-compatible store, http://HOST:PORT.")]
S3Bucket = Annotated[str | None, Parameter(name="--s3-bucket", help="Where channel s3 keeps tensors for a request.")]


LARGEST = 2.0**62
DIGITS = 9


def parse_shapes(options: list[str] | None) -> dict[str, tuple[int | str, ...]]:
    """`NAME=1,3,224,224` -> dimensions; ConfigError where the text is something else."""
    found: dict[str, tuple[int | str, ...]] = {}
    for text in options or []:
        name, _, dims = text.rpartition("=")
        parts = [d.strip() for d in dims.split(",")] if dims else []
        if not name or not all(d == "N" or d.isdecimal() for d in parts):
            raise ConfigError(f"--shape {text!r} is not NAME=1,3,224,224", try_="--shape input=N,3,224,224")
        if any(len(d) > DIGITS for d in parts):
            raise ConfigError(
                f"--shape {text!r}: a dimension has at most {DIGITS} digits", try_="--shape input=N,3,224,224"
            )
        _once("--shape", name, found)
        found[name] = tuple(d if d == "N" else int(d) for d in parts)
    return found


def parse_precisions(text: str | None) -> tuple[Precision, ...]:
    """`fp32,int8` -> those beside the model's own; ConfigError for another one."""
    names = [name.strip() for name in text.split(",")] if text is not None else []
    for name in names:
        if name == "fp16":
            raise ConfigError(
                "--precision fp16: onnxruntime has next to no kernels for it on CPUs, it casts weights to fp32 anew",
                try_="--precision int8, or an fp16 model as MODEL",
            )
        if name not in ("fp32", "int8"):
            raise ConfigError(f"--precision {text!r}: there are fp32 and int8", try_="--precision fp32,int8")
    return ("int8",) if "int8" in names else ()


def parse_ranges(options: list[str] | None) -> dict[str, tuple[float, float]]:
    """`NAME=LOW:HIGH` -> bounds; ConfigError where the text is something else, or no value lies between them."""
    found: dict[str, tuple[float, float]] = {}
    hint = "--range input_ids=0:30522"
    for text in options or []:
        name, _, bounds = text.rpartition("=")
        low_text, _, high_text = bounds.partition(":")
        try:
            low, high = float(low_text), float(high_text)
        except ValueError:
            raise ConfigError(f"--range {text!r} is not NAME=LOW:HIGH", try_=hint) from None
        if not name:
            raise ConfigError(f"--range {text!r} is not NAME=LOW:HIGH", try_=hint)
        if not (abs(low) < LARGEST and abs(high) < LARGEST):
            raise ConfigError(
                f"--range {text!r}: LOW and HIGH must be finite, between {-LARGEST:.2g} and {LARGEST:.2g}", try_=hint
            )
        if low >= high:
            raise ConfigError(f"--range {text!r}: LOW must be below HIGH, which is excluded", try_=hint)
        _once("--range", name, found)
        found[name] = (low, high)
    return found


def _once(option: str, name: str, found: Mapping[str, object]) -> None:
    if name in found:
        raise ConfigError(f"{option} is given twice for {name!r}", try_=f"one {option} per input")


def positive(**values: float | None) -> None:
    """ConfigError for the first value that is not above zero."""
    for name, value in values.items():
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')} is {value:g}, it must be a finite number above zero")
        if name == "vcpu" and value is not None and not LEAST_VCPU <= value <= MOST_VCPU:
            raise ConfigError(f"--vcpu is {value:g}, it must be between {LEAST_VCPU:g} and {MOST_VCPU:g}")


def check_outputs(*paths: Path | None) -> None:
    """Refuse places that cannot be written before minutes of work, not after.

    Raises:
        ConfigError: two of them are the same file.
        StorageError: one of them cannot be written.
    """
    given = [p for p in paths if p]
    for k, path in enumerate(given):
        documents.check_writable(path)
        if path.is_char_device():
            continue
        if any(path.absolute() == other.absolute() for other in given[:k]):
            raise ConfigError(f"two outputs would be written to {path}", try_="another name for one of them")


@contextmanager
def progress(label: str) -> Iterator[Callable[[float, str], None]]:
    """A line on standard error with what is going on and the time left; a callback (share, what) to move it.

    On a terminal one line is rewritten; elsewhere a line is printed when the work changes, at most every two seconds.
    """
    begun = shown = time.monotonic()
    terminal = sys.stderr.isatty()
    last = ""

    def move(share: float, what: str) -> None:
        nonlocal shown, last
        now = time.monotonic()
        if now - begun < 1 or (now - shown < (0.1 if terminal else 2.0)) or share >= 1:
            return
        left = (now - begun) * (1 - share) / share if share > 0.02 else None
        line = f"{label}: {share:4.0%}  {what}" + (f", about {left:.0f} s left" if left is not None else "")
        if terminal:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        elif what != last:
            print(line, file=sys.stderr, flush=True)
        shown, last = now, what

    try:
        yield move
    finally:
        if terminal and last:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


ChannelName = Annotated[
    Channel | None,
    Parameter(
        name="--channel", help="How tensors travel between functions; where that is emulated, as the catalogue has it."
    ),
]
StartName = Annotated[
    Start,
    Parameter(
        name="--start",
        help="How processes come to be: fresh, as on platforms; forked by a zygote that has imported the runtime; or "
        "forked with the session open, at the price of isolation: they share their parent's addresses and secrets.",
    ),
]
SharedMemory = Annotated[bool, Parameter(help="Let tensors lie in shared memory; without, they go over sockets.")]
Shards = Annotated[bool, Parameter(help="Try dividing dominant operators among parallel shards.")]
AtOnce = Annotated[
    int | None,
    Parameter(help="How many shards may be busy at a time; the cores by default, what exceeds them is emulated."),
]
Codec = Annotated[bool, Parameter(help="Encode hops where that pays.")]
SolverS = Annotated[float, Parameter(help="Seconds that the solver of amps-inf may take.")]
Validate = Annotated[
    Path | None,
    Parameter(name="--validate", help="Real requests, .npz: codecs that lose are judged on them, and allowed."),
]
MetricName = Annotated[
    str | None, Parameter(name="--metric", help="How they are judged: max_rel, top1, cosine or module:function.")
]
Tolerance = Annotated[
    float | None,
    Parameter(
        name="--tolerance", help="Bound of the metric: 0.01 of max_rel and functions, 0.99 of top1, 0.999 of cosine."
    ),
]
Calibrate = Annotated[
    Path | None,
    Parameter(name="--calibrate", help="Requests to fit the learned codec on; half of --validate's by default."),
]
Predicted = Annotated[
    bool, Parameter(negative="", help="Predict times and memory from `lamella calibrate` instead of running the model.")
]
Precisions = Annotated[
    str | None,
    Parameter(
        name="--precision",
        help="fp32,int8: units may run their products on 8-bit integers, where --validate allows; fp32 by default.",
    ),
]
Similarity = Annotated[bool, Parameter(help="Count similar neighbours as one before dividing.")]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Planning:
    """What every verb that plans is asked."""

    platform: PlatformName
    slo_ms: Slo = None
    budget_usd: Budget = None
    percentile: Percentile = 95.0
    rate_per_s: Rate = None
    architecture: ArchitectureName = "x86"
    max_batch: MaxBatch = 1
    max_stages: MaxStages = 16
    shards: Shards = True
    codec: Codec = True
    similarity: Similarity = True
    channel: ChannelName = None
    shared_memory: SharedMemory = True
    s3_endpoint: S3Endpoint = None
    s3_bucket: S3Bucket = None
    vcpu: Vcpu = 1.0
    batch: Batch = 1
    at_once: AtOnce = None
    shape: Shape = None
    range_: Range = None
    solver_s: SolverS = 60.0
    validate: Validate = None
    metric: MetricName = None
    tolerance: Tolerance = None
    calibrate: Calibrate = None
    precision: Precisions = None

    def __post_init__(self) -> None:
        """ConfigError where a number is not above zero, or options contradict each other or ask for nothing."""
        if self.channel == "shared-memory" and not self.shared_memory:
            raise ConfigError("--channel shared-memory and --no-shared-memory", try_="one of the two")
        positive(slo_ms=self.slo_ms, max_stages=self.max_stages, vcpu=self.vcpu, batch=self.batch, at_once=self.at_once)
        if self.slo_ms is not None and self.budget_usd is not None:
            raise ConfigError("--slo-ms is held at least cost, --budget-usd at least latency", try_="one of the two")
        positive(budget_usd=self.budget_usd, rate_per_s=self.rate_per_s, solver_s=self.solver_s)
        if self.percentile is not None and not 50 <= self.percentile < 100:
            raise ConfigError(f"--percentile is {self.percentile:g}, it must be from 50 to below 100")
        if not 1 <= self.max_batch <= MOST_ROWS:
            raise ConfigError(f"--max-batch is {self.max_batch}, it must be from 1 to {MOST_ROWS}")
        if self.max_batch > 1 and (self.batch > 1 or self.validate):
            raise ConfigError(
                "--max-batch chooses the batch, and codecs that lose are judged at one", try_="one of the two"
            )
        if self.tolerance is not None and not isfinite(self.tolerance):
            raise ConfigError(f"--tolerance is {self.tolerance:g}, it must be a finite number")
        precisions = parse_precisions(self.precision)
        if precisions and not self.validate:
            raise ConfigError(
                f"--precision {self.precision} loses something, and without requests of yours nobody can say what",
                try_=f"--precision {self.precision} --validate data.npz",
            )
        if self.validate and not self.codec and not precisions:
            raise ConfigError("--validate judges codecs, and --no-codec allows none", try_="one of the two")
        judged_by = metric_named(self.metric or "max_rel")
        if self.tolerance is not None:
            judged_by.check(self.tolerance)
        if not self.validate:
            unasked(metric=self.metric, tolerance=self.tolerance, calibrate=self.calibrate)

    def request(self, graph: Graph | None = None) -> Request:
        """What the planner is asked; of a `graph` with the user's data to judge by, where there are some.

        Raises:
            InputRefused: the data are no requests of the model, or too few.
        """
        return Request(
            slo_ms=self.slo_ms,
            budget_usd=self.budget_usd,
            percentile=self.percentile,
            rate_per_s=self.rate_per_s,
            architecture=self.architecture,
            max_batch=self.max_batch,
            max_stages=self.max_stages,
            batch=self.batch,
            vcpu=self.vcpu,
            at_once=self.at_once,
            shards=self.shards,
            codec=self.codec,
            similarity=self.similarity,
            channel=self.channel or (None if self.shared_memory else "socket"),
            objects=bucket(self.s3_bucket, self.s3_endpoint),
            solver_s=self.solver_s,
            ranges=parse_ranges(self.range_),
            judge=self._judge(graph) if graph and self.validate else None,
        )

    def _judge(self, graph: Graph) -> Judge:
        assert self.validate
        asked = validation(
            self.validate,
            graph,
            self.batch,
            metric_name=self.metric or "max_rel",
            tolerance=self.tolerance,
            calibrate=self.calibrate,
        )
        return Judge(graph, asked)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Unplaced(Planning):
    """The same, where the platform may be told in another way."""

    platform: PlatformName = ""
