"""What the store saves, against a plain session: `python -m benchmarks.store`.

Every way to start a model (`store_ways`) in turns: time to a session, to ready, to the first result; four at once, and
their memory; then steady latency of what `--favour start` and `--favour steady` make, and the handing over of
descriptors. All against a plain `InferenceSession` on the self-contained file in the same run, beside what was asked of
the store (`store_table`). Results go to `benchmarks/results/store.json` after each part, the tables to
`docs/benchmarks-store.md`; `--quick` tries it with small models and few rounds, and writes no page. Let the machine do
nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from benchmarks.store_handover import handed_over
from benchmarks.store_table import (
    EXTERNAL,
    FORKED,
    PLAIN,
    STORE,
    WORKERS,
    ZYGOTE,
    Count,
    Result,
    Starts,
    Steady,
    page,
)
from benchmarks.store_ways import Part, Program, Programs, StorePrograms, Way, Workers, of_file, of_store, serving
from lamella import documents
from lamella.compare.rounds import NOISY
from lamella.documents import cache_dir
from lamella.graph.cuts import plan_cuts
from lamella.graph.extract import Extractor
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.optimise import split_weights
from lamella.graph.requests import request
from lamella.machine import this_machine
from lamella.package import Favour, build
from lamella.plan.manual import plan_by_hand
from lamella.platforms import platform
from lamella.profile.quiet import known_load, slowdown
from lamella.runtime.starts import STARTS
from lamella.scratch import scratch
from lamella.store import client
from lamella.store.handing import hand_over
from lamella.zoo import InputSpec, prenorm, transformer
from lamella.zoo.draft import Blueprint

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "store.json"
PAGE = ROOT / "docs" / "benchmarks-store.md"
ROUND_MS = 400.0
"""Of steady runs per way and round, between 3 and 40 of them."""
OPENS = 300
TOLERANCE = 1e-4
"""Law 3's, over the range of an output."""
T = TypeVar("T")


class Sizes(Protocol):
    """What a family of the zoo knows of its model."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]: ...

    def build(self, name: str) -> Blueprint: ...


class Entry(NamedTuple):
    """A model, and what is measured of it."""

    name: str
    sizes: Sizes | None
    """None: the zoo has it under this name."""
    rows: int = 0
    size: str = ""
    """Of `store_table.BOUNDS`."""
    starts: bool = False
    slices: int = 1
    favours: tuple[Favour, ...] = ()
    """Whose steady latency is measured."""

    @property
    def file(self) -> str:
        """The model's name, and those of its package in the store."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.removesuffix(", two slices"))


def _bert(tokens: int) -> Sizes:
    return dataclasses.replace(transformer.BASE, sequence=tokens)


ENTRIES = (
    Entry("resnet50", None, starts=True, favours=("start",)),
    Entry("bert-base, 32 tokens", _bert(32), 32, "434 MB", starts=True, favours=("start", "steady")),
    Entry("bert-base, 128 tokens", _bert(128), 128, starts=True, favours=("steady",)),
    Entry("bert-base, 32 tokens, two slices", _bert(32), 32, starts=True, slices=2),
    Entry(
        "gpt2-medium, 16 tokens",
        dataclasses.replace(prenorm.GPT2_MEDIUM, sequence=16),
        16,
        "1.5 GB",
        starts=True,
        favours=("start",),
    ),
    Entry("bert-base, 1 token", _bert(1), 1, favours=("start", "steady")),
    Entry("bert-base, 512 tokens", _bert(512), 512, favours=("steady",)),
)
QUICK = (
    Entry("bert-tiny", None, 32, "434 MB", starts=True, favours=("start", "steady")),
    Entry("bert-tiny, two slices", transformer.TINY, 32, starts=True, slices=2),
)


def model_of(entry: Entry) -> Graph:
    """The imported model; what the zoo has not in this size is drawn once and kept in the cache."""
    if entry.sizes is None:
        return import_model(f"zoo:{entry.file}")
    path = cache_dir() / "benchmarks" / f"{entry.file}.onnx"
    if not path.exists():
        with documents.replacing(path) as file:
            file.writelines(entry.sizes.build(entry.file).stream())
    return import_model(str(path), known=entry.sizes.inputs)


class Store(NamedTuple):
    """A daemon that runs."""

    pid: int
    backing: str


@contextlib.contextmanager
def daemon(place: Path) -> Iterator[Store]:
    """A daemon of its own, which everything started meanwhile finds."""
    path = place / "store.socket"
    argv = [
        sys.executable,
        "-c",
        "from lamella.cli import main; main()",
        "store",
        "serve",
        "--root",
        str(place / "root"),
    ]
    process = subprocess.Popen([*argv, "--socket", str(path)], stdout=subprocess.PIPE)
    assert process.stdout
    os.environ[client.SOCKET] = str(path)
    try:
        process.stdout.readline()
        tiers = client.status().store.tiers
        yield Store(process.pid, next(t.backing for t in tiers if t.name == "memory"))
    finally:
        del os.environ[client.SOCKET]
        process.terminate()
        process.wait()
        process.stdout.close()


class Packed(NamedTuple):
    """A package that the store has, and its functions' names there."""

    directory: Path
    models: tuple[str, ...]


class Model:
    """A model's files in every form that somebody starts, in a directory that is removed by who made it."""

    def __init__(self, entry: Entry, place: Path) -> None:
        """Nothing is written yet."""
        self.entry, self.graph, self.place = entry, model_of(entry), place
        cuts = [_middle(self.graph)] if entry.slices == 2 else []
        self.positions = cuts
        self.spans = list(pairwise([0, *cuts, len(self.graph.operators)]))
        self.feeds = request(self.graph, np.random.default_rng(0))

    @property
    def weights_mb(self) -> float:
        """Of all weights, each once."""
        return self.graph.weight_bytes(0, len(self.graph.operators)) / 1e6

    def pack(self, favour: Favour, threads: int) -> Packed:
        """A package made to favour something, put into the store."""
        name = f"{self.entry.file}-{favour}-{threads}"
        plan = plan_by_hand(
            self.graph, self.positions, platform("openfaas"), given=str(self.graph.source), vcpu=float(threads)
        )
        made = [
            msgspec.structs.replace(f, threads=threads, layout="prepacked" if favour == "steady" else "plain")
            for f in plan.functions
        ]
        directory = self.place / name
        build(msgspec.structs.replace(plan, functions=tuple(made)), self.graph, directory, favour=favour)
        hand_over(directory, f"{name}@1")
        return Packed(directory, tuple(f"{name}/{f.name}@1" for f in made))

    def parts(self, models: Sequence[str]) -> list[Part]:
        """What each process of the model opens: plain files of the whole model or its slices, and inputs that fit."""
        values = dict(self.feeds)
        found = []
        for k, (model, (first, last)) in enumerate(zip(models, self.spans, strict=True)):
            plain = self.place / f"part-{k}.onnx"
            if not plain.exists():
                self._write(plain, first, last)
            takes, gives = self.graph.border(first, last)
            feeds = {name: values[name] for name in takes}
            if len(self.spans) > 1:
                session = ort.InferenceSession(plain, providers=["CPUExecutionProvider"])
                values.update(zip(gives, session.run(list(gives), feeds), strict=True))
            found.append(Part(model, plain, plain.with_suffix(".external.onnx"), feeds))
        return found

    def _write(self, path: Path, first: int, last: int) -> None:
        """A part as a file of its own, and again with external data."""
        if len(self.spans) == 1:
            path.symlink_to(self.graph.source)
            proto = onnx.load(path)
        else:
            extractor, directory = Extractor(self.graph), self.place / "slices"
            extractor.write(first, last, directory)
            proto, weights = split_weights(extractor.slice(first, last), directory)
            proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
            onnx.save(proto, path)
        beside = path.with_suffix(".external.onnx")
        onnx.save(proto, beside, save_as_external_data=True, location=f"{beside.stem}.bin")


def _middle(graph: Graph) -> int:
    """The planning cut that divides the weights most evenly."""
    end = len(graph.operators)
    halves = {
        c.position: max(graph.weight_bytes(0, c.position), graph.weight_bytes(c.position, end))
        for c in plan_cuts(graph)
    }
    return min(halves, key=lambda position: halves[position])


def check(parts: Sequence[Part]) -> None:
    """SystemExit unless the store's models answer as plain sessions do, within law 3."""
    for part in parts:
        plain = ort.InferenceSession(part.plain, providers=["CPUExecutionProvider"])
        names = [output.name for output in plain.get_outputs()]
        with contextlib.closing(client.session(part.model)) as shared:
            found = shared.run(names, part.feeds)
        for name, got, want in zip(names, found, plain.run(names, part.feeds), strict=True):
            if not np.abs(got - want).max() <= TOLERANCE * np.ptp(want):
                raise SystemExit(f"{part.model} answers otherwise than a plain session: {name}")


def in_turns(turns: Mapping[str, Callable[[], T]], rounds: int) -> tuple[dict[str, list[T]], Count]:
    """What each gives in every round, and how the rounds went; the first one warms caches and is dropped.

    A round is rejected where a known load beside it takes longer than usual (as in `lamella.compare`), at most as often
    as there are rounds; then noisy ones are kept and counted.
    """
    for turn in turns.values():
        turn()
    rng = np.random.default_rng(0)
    found: dict[str, list[T]] = {name: [] for name in turns}
    loads = [known_load() for _ in range(5)]
    kept = rejected = noisy = 0
    while kept < rounds:
        before = known_load()
        drawn = {str(name): turns[str(name)]() for name in rng.permutation(list(turns))}
        after = known_load()
        loads += [before, after]
        if slowdown([before, after], loads) > NOISY:
            if rejected < rounds:
                rejected += 1
                continue
            noisy += 1
        kept += 1
        for name, one in drawn.items():
            found[name].append(one)
    return found, Count(kept, rejected, noisy)


def starts(model: Model, store: Store, rounds: int) -> Starts:
    """Every way to start a model, one at a time and several at once."""
    packed = model.pack("start", 1)
    parts = model.parts(packed.models)
    check(parts)
    ends = [serving(part.feeds, model.place, f"inputs-{k}") for k, part in enumerate(parts)]
    pairs = list(zip(parts, ends, strict=True))
    ways: dict[str, Way] = {
        PLAIN: Programs([of_file(part.plain, end) for part, end in pairs]),
        EXTERNAL: Programs([of_file(part.external, end) for part, end in pairs]),
        STORE: StorePrograms([of_store(part.model, end) for part, end in pairs], store.pid),
    }
    with contextlib.ExitStack() as ending, contextlib.ExitStack() as holding:
        for shared in (True, False):
            for start in STARTS:
                workers = Workers(packed.directory, start, model.feeds, shared=shared, daemon=store.pid)
                stack = holding if start == "forked-session" else ending
                ways[_called(start, shared)] = stack.enter_context(workers)
        began, count = in_turns({name: way.one for name, way in ways.items()}, rounds)
        holding.close()  # zygotes with a session map the weights: the others' share of them would seem smaller
        several = {name: way for name, way in ways.items() if "forked" not in name}
        turns = {name: lambda way=way: way.many(WORKERS) for name, way in several.items()}
        together, more = in_turns(turns, rounds)
    return Starts(
        size=model.entry.size,
        weights_mb=model.weights_mb,
        began={name: tuple(found) for name, found in began.items()},
        together={name: tuple(found) for name, found in together.items()},
        rounds=Count(count.kept + more.kept, count.rejected + more.rejected, count.noisy + more.noisy),
    )


def _called(start: str, shared: bool) -> str:
    names = {"fresh": "store, fresh worker", "zygote": ZYGOTE, "forked-session": FORKED}
    return names[start] if shared else names[start].replace("store", "package's own files")


def steady(model: Model, threads: int, rounds: int) -> Steady:
    """p50 of a plain session and of what the favours make, on so many threads."""
    packed = {favour: model.pack(favour, threads) for favour in model.entry.favours}
    for package in packed.values():
        check(model.parts(package.models))
    (part,) = model.parts(["none"])
    end = serving(part.feeds, model.place, "inputs")
    codes = {PLAIN: of_file(part.plain, end, threads)}
    codes |= {favour: of_store(package.models[0], end) for favour, package in packed.items()}
    with contextlib.ExitStack() as ending:
        programs = {}
        for name, code in codes.items():
            programs[name] = Program(code)
            ending.callback(programs[name].close)
            programs[name].began()
        once = max(min(program.run(3)) for program in programs.values())
        times = int(min(40, max(3, ROUND_MS / once)))
        turns = {n: lambda p=p: float(np.median(p.run(times))) for n, p in programs.items()}
        found, count = in_turns(turns, rounds)
    return Steady(model.entry.name, model.entry.rows, threads, {n: tuple(v) for n, v in found.items()}, count)


def measure(entry: Entry, result: Result, rounds: int) -> Result:
    """One model, added to what was found before."""
    with scratch("store") as place, daemon(place) as store:
        model = Model(entry, place)
        if entry.starts:
            found = starts(model, store, rounds)
            result = msgspec.structs.replace(result, starts={**result.starts, entry.name: found}, backing=store.backing)
    for threads in (1, 2) if entry.favours else ():
        with scratch("store") as place, daemon(place):
            timed = steady(Model(entry, place), threads, rounds)
            others = tuple(s for s in result.steady if (s.model, s.threads) != (timed.model, timed.threads))
            result = msgspec.structs.replace(result, steady=(*others, timed))
    return result


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small models and three rounds, to see that it works")
    parser.add_argument("--models", default="", help="only those whose names contain this; the others' results stay")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    asked = parser.parse_args()
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    output = cache_dir() / "benchmarks" / "store-quick.json" if asked.quick else asked.output
    rounds = 3 if asked.quick else asked.rounds
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    result = Result(date=date, machine=this_machine(), backing="")
    if asked.models and output.exists():
        before = documents.read(output, Result, made_by="python -m benchmarks.store")
        result = msgspec.structs.replace(before, date=date, machine=this_machine())
    for entry in QUICK if asked.quick else ENTRIES:
        if asked.models in entry.name:
            print(f"{datetime.datetime.now():%H:%M:%S} {entry.name}", file=sys.stderr, flush=True)
            result = measure(entry, result, rounds)
            documents.write(output, result)
    with scratch("store") as place, daemon(place) as store:
        handed = tuple(handed_over(Path(os.environ[client.SOCKET]), place, rounds, OPENS))
        result = msgspec.structs.replace(result, handover=handed, backing=store.backing)
    documents.write(output, result)
    if not asked.quick:
        PAGE.write_text(page(result))
    print(page(result))


if __name__ == "__main__":
    main()
