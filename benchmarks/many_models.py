"""Many models on one host, with memory for a quarter of them: `python -m benchmarks.many_models`.

Requests draw models from a Zipf distribution: the k-th most popular of a mix has a share of 1 / k^skew. A quarter of
the models' file sizes is the limit of one control group that holds everything: driver, workers, the store's daemon, the
zygote, and every page of a file that they read. `many_models_inside.py` has the systems. They take turns, window after
window on the same requests, each in a group of its own, the page cache of all models emptied before. A window asks for
every model once and then for some requests more before it measures; `cold` keeps nothing and is asked for fewer.

The mixes: `small`, image networks of 30 to 100 MB with weights of their own; `large`, bert-base with 32 tokens, each
with weights of its own; `tuned`, bert-base whose last two layers alone are each variant's own.

`many_models_bound.py` says how much any system could reach at the same requests: eviction that knows the future, the
device at the rate that is measured here, and inference alone.

One request at a time, one thread each. Every answer is compared with a plain session's, and every two variants of a
model answer differently. Models are made before (minutes, and gigabytes under LAMELLA_CACHE; --space keeps them). Where
groups cannot be limited the table says so, and shows nothing of what it should. Let the machine do nothing else.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from onnx import ModelProto

from benchmarks.many_models_bound import blind_bound, bound, bytes_per_s
from benchmarks.many_models_inside import (
    COLD,
    KEEP_ALIVE,
    KERNEL,
    LOAD_SLACK_MB,
    OURS,
    RELOAD,
    RESIDENT,
    SLACK_MB,
    Model,
    Plain,
    Seen,
    Window,
    difference,
)
from lamella.compare.rounds import interval
from lamella.deploy.local import Deployment
from lamella.graph.load import import_model
from lamella.graph.requests import request, write_arrays
from lamella.limits import Limiter, detect
from lamella.limits.memory import anonymous_mb, peak_rss_mb, private_mb
from lamella.limits.pagecache import evict
from lamella.limits.procfs import read_proc
from lamella.limits.unlimited import Unlimited
from lamella.machine import this_machine
from lamella.package import build
from lamella.plan.manual import plan_by_hand
from lamella.platforms import platform
from lamella.runtime.starts import environment
from lamella.scratch import scratch
from lamella.store.client import SOCKET, Connection
from lamella.store.handing import hand_over
from lamella.store.protocol import close_all
from lamella.units import MB
from lamella.zoo import inception, light, transformer
from lamella.zoo.draft import Blueprint, Seeded
from lamella.zoo.spec import InputSpec

RESULTS = Path(__file__).parent / "results" / "many_models.json"
SYSTEMS = (COLD, RELOAD, KEEP_ALIVE, *(OURS + policy for policy in ("lru", "lfu", "cost-aware", KERNEL, RESIDENT)))
SHARE = 0.25
"""Of the models' file sizes, the memory of everything."""
TARGETS = {COLD: 8.0, KEEP_ALIVE: 2.0}
APART = 1e-2
"""By how much of the output's range variants of a model have to differ, at least."""
BERT = replace(transformer.BASE, sequence=32)
TUNED = ("layer10.", "layer11.", "last_hidden_state.")
"""Weights that every variant of the mix `tuned` has for itself."""


class Family(NamedTuple):
    """A model in variants."""

    name: str
    inputs: tuple[InputSpec, ...]
    build: Any
    """From the variant's name to its ModelProto or Blueprint."""
    share: bool = False
    """Whether the variants share tensors: then they are versions of one name in the store."""


def _light(name: str) -> Family:
    file, graph_input = next((f, i) for n, f, i, _ in light.FILES if n == name)
    return Family(name, light.inputs(graph_input), partial(light.build, file=file))


def _tuned(name: str) -> Blueprint:
    base = BERT.build("tuned")
    own = [replace(w, model=name) if isinstance(w, Seeded) and w.name.startswith(TUNED) else w for w in base.weights]
    return Blueprint(base.frame, tuple(own))


SMALL = (
    _light("resnet50"),
    _light("densenet121"),
    Family("inception-v3", inception.V3.inputs, inception.V3.build),
)
MIXES: dict[str, tuple[Family, ...]] = {
    "small": SMALL,
    "large": (Family("bert", BERT.inputs, BERT.build),),
    "tuned": (Family("tuned", BERT.inputs, _tuned, share=True),),
}
COUNTS = {"small": 48, "large": 12, "tuned": 12}
QUICK = {"small": 9, "large": 3, "tuned": 3}
"""With memory for all of them: a plain session would not load in a quarter of so few."""


class Mix(msgspec.Struct, frozen=True):
    """The models of a mix, made."""

    models: tuple[Model, ...]
    root: str
    instance_mb: float
    """What one of our workers holds beside weights, after an answer; the largest of the families."""
    stored_bytes: int
    """Of all models in the store."""


# ------------------------------------------------------------------------------------------------------------- chance


def shares(models: int, skew: float) -> np.ndarray:
    """How likely the k-th most popular model is asked for (Zipf): 1 / k^skew, normalised."""
    weights: np.ndarray = np.arange(1, models + 1, dtype=float) ** -skew
    share: np.ndarray = weights / weights.sum()
    return share


def trace(models: int, skew: float, requests: int, seed: int) -> tuple[list[int], list[int]]:
    """Which model each request asks for, and all models by popularity; which of them is popular is chance too."""
    rng = np.random.default_rng(seed)
    ranked = rng.permutation(models)
    return ranked[rng.choice(models, requests, p=shares(models, skew))].tolist(), ranked.tolist()


# ------------------------------------------------------------------------------------------------------------- models


def make(name: str, count: int, place: Path) -> Mix:
    """The mix with so many models: files, packages, and a store that has them; nothing where it is there already."""
    kept = place / "mix.json"
    if kept.exists():
        mix = msgspec.json.decode(kept.read_bytes(), type=Mix)
        if len(mix.models) == count:
            return mix
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    families = MIXES[name]
    with _daemon(place / "store"):
        models = []
        for k in range(count):
            models.append(_model(families[k % len(families)], k // len(families) + 1, place))
            print(f"{name}: {k + 1} of {count} made", file=sys.stderr, flush=True)
        instance_mb = max(_instance_mb(model) for model in models[: len(families)])
    for family in families:
        _tell_apart([m for m in models if m.name.rpartition("-")[0] == family.name])
    stored = sum(path.stat().st_size for path in _blobs(place / "store"))
    mix = Mix(tuple(models), str(place / "store"), instance_mb, stored)
    kept.write_bytes(msgspec.json.encode(mix))
    return mix


def _model(family: Family, variant: int, place: Path) -> Model:
    name = f"{family.name}-{variant}"
    file, package = place / f"{name}.onnx", place / name
    made = family.build(name)
    with file.open("wb") as out:
        out.writelines([made.SerializeToString()] if isinstance(made, ModelProto) else made.stream())
    graph = import_model(str(file), known=family.inputs)
    write_arrays(place / f"{name}.npz", request(graph, np.random.default_rng(0)))
    plan = plan_by_hand(graph, [], platform("openfaas"), given=str(file))
    build(plan, graph, package, favour="start")
    shutil.rmtree(graph.directory)
    names = hand_over(package, f"{family.name}@{variant}" if family.share else f"{name}@1")
    with Connection() as connection:
        for each in names:
            if ".portable" in each:  # this machine takes the other; the disk is not for nothing
                connection.evict(each, disk=True)
    blobs = _weights([each for each in names if ".portable" not in each])
    for weights in package.glob("*/weights.bin"):
        weights.unlink()  # a worker that would not take the store's fails
    plain = Plain()
    try:
        alone = Model(name, str(file), str(package), str(place / f"{name}.npz"), str(place / f"{name}.npy"), 0, 0.0, ())
        np.save(place / f"{name}.npy", plain.ask(alone))
        load_mb = peak_rss_mb(plain.pid) - _shared_mb(plain.pid)
    finally:
        plain.end()
    return Model(
        name, str(file), str(package), str(place / f"{name}.npz"), str(place / f"{name}.npy"),
        file.stat().st_size, load_mb, blobs,
    )  # fmt: skip


def _weights(names: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Blobs of the store that every request needs."""
    found = dict[str, int]()
    for name in names:
        with Connection() as connection:
            record, descriptors = connection.hold(name)
            close_all(descriptors)
        found.update({blob.id: blob.bytes for blob in record.segments if not blob.sparse})
    return tuple(found.items())


def _shared_mb(pid: int) -> float:
    """What others map, too: libraries."""
    lines = read_proc(pid, "status").splitlines()
    resident = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return resident / 1024 - private_mb(pid)


def _instance_mb(model: Model) -> float:
    """What one of our workers holds beside weights."""
    package = Path(model.package)
    served = Deployment(package, limiter=Unlimited("one look"), shared=True, check_weights=False, start="zygote")
    with served:
        served.infer(dict(np.load(model.inputs)))
        return sum(anonymous_mb(i.pid) for i in served.instances.values())


def _tell_apart(models: Sequence[Model]) -> None:
    """SystemExit unless every two answer differently."""
    answers = [np.load(model.expected) for model in models]
    for k, one in enumerate(answers):
        for other, model in zip(answers[:k], models, strict=False):
            if difference(other, one) < APART:
                raise SystemExit(f"{models[k].name} and {model.name} answer alike: who answered cannot be told")


@contextmanager
def _daemon(root: Path) -> Iterator[None]:
    """A store to put models into."""
    socket = Path(tempfile.mkdtemp()) / "store.socket"
    os.environ[SOCKET] = str(socket)
    command = ["store", "serve", "--root", str(root), "--socket", str(socket), "--backing", "page-cache"]
    with subprocess.Popen(
        [sys.executable, "-c", "from lamella.cli import main; main()", *command], stdout=subprocess.PIPE
    ) as daemon:
        assert daemon.stdout
        daemon.stdout.readline()
        try:
            yield
        finally:
            daemon.terminate()
            daemon.wait()
            socket.parent.rmdir()


def _blobs(root: Path) -> list[Path]:
    return [path for path in (root / "objects").rglob("*") if path.is_file()]


# ------------------------------------------------------------------------------------------------------------ windows


class Sizes(NamedTuple):
    """How long a window is."""

    warm: int
    asked: int
    cold: int
    """Requests to `cold`, which keeps nothing: the first ones of the others'."""
    share: float = SHARE
    """Of the models' files, the memory of the group."""


def window(mix: Mix, kind: str, skew: float, seed: int, sizes: Sizes, backing: str, place: Path) -> Window:
    """One system's turn: the requests are the same for all, of a seed and skew."""
    asked, ranked = trace(len(mix.models), skew, sizes.warm + sizes.asked, seed)
    warm, asked = [*reversed(ranked), *asked[: sizes.warm]], asked[sizes.warm :]
    if kind in (COLD, RELOAD):
        asked = asked[: sizes.cold]
    return Window(
        kind, mix.models, tuple(warm), tuple(asked), limit_mb(mix, sizes.share), mix.instance_mb, mix.root, backing,
        str(place / "seen.json"),
    )  # fmt: skip


def limit_mb(mix: Mix, share: float) -> int:
    """Of the group that holds everything: a share of the models' files."""
    return int(share * sum(model.bytes for model in mix.models)) >> 20


def take(todo: Window, limiter: Limiter) -> dict[str, Any]:
    """Run a window in a group of its own; what it saw, and what the group did."""
    seen = Path(todo.seen)
    evict([*(Path(m.file) for m in todo.models), *_blobs(Path(todo.root))])
    seen.with_suffix(".window").write_bytes(msgspec.json.encode(todo))
    inside = Path(__file__).with_name("many_models_inside.py")
    with limiter.create(f"many-{todo.system}", memory_mb=todo.limit_mb, vcpu=None) as group:
        argv = group.command([sys.executable, str(inside), str(seen.with_suffix(".window"))])
        subprocess.run(argv, check=True, env=environment())
        told = msgspec.to_builtins(msgspec.json.decode(seen.read_bytes(), type=Seen))
        peak_mb = group.peak_mb()
        return {**told, "peak_mb": None if np.isnan(peak_mb) else peak_mb, "oom_kills": group.oom_kills()}


# ------------------------------------------------------------------------------------------------------------- tables


def rate(windows: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    """Requests per second over all windows, and its 95 % interval over windows."""
    busy = [[busy_ms for _, _, busy_ms, _ in window["asked"]] for window in windows]
    low, high = interval(busy, lambda ms: 1000 / float(np.mean(ms)))
    return 1000 / float(np.mean(np.concatenate(busy))), low, high


def table(entry: Mapping[str, Any]) -> list[str]:
    """One mix at one skew."""
    lines = [
        "| system | requests/s | 95 % | to cold | to keep-alive | p50 ms | p95 ms | hits | evictions | of the store "
        "| alive | peak MB | OOM kills |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    rates = {kind: rate(windows) for kind, windows in entry["systems"].items()}
    for kind, windows in entry["systems"].items():
        asked = [each for window in windows for each in window["asked"]]
        p50, p95 = np.percentile([ms for _, ms, _, _ in asked], [50, 95])
        hits = 1 - sum(cold for *_, cold in asked) / len(asked)
        found, low, high = rates[kind]
        ratios = [f"{found / rates[base][0]:.1f}x" if base in rates else "" for base in TARGETS]
        per = len(windows)
        peaks = [window["peak_mb"] for window in windows if window["peak_mb"] is not None]
        cells = [
            kind, f"{found:.2f}", f"{low:.2f}–{high:.2f}" if per > 2 else "", *ratios,
            f"{p50:.0f}", f"{p95:.0f}", f"{hits:.0%}",
            *(f"{sum(w[key] for w in windows) / per:.0f}" for key in ("evictions", "store_evictions", "alive")),
            f"{max(peaks):.0f}" if peaks else "unknown", str(sum(w["oom_kills"] for w in windows)),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def all_warm(entry: Mapping[str, Any]) -> list[str]:
    """How many times `cold` it may be at most: were every request as quick as those that met all weights in memory."""
    hits = [
        busy_ms
        for kind, windows in entry["systems"].items()
        if kind.startswith(OURS)
        for window in windows
        for _, _, busy_ms, cold in window["asked"]
        if not cold
    ]
    if not hits or COLD not in entry["systems"]:
        return []
    alive, cold = 1000 / float(np.percentile(hits, 10)), rate(entry["systems"][COLD])[0]
    return [
        f"A tenth of the answers of living workers of ours took at most {1000 / alive:.0f} ms, which is the inference; "
        f"were all as quick, that were {alive / cold:.1f} times `cold`.",
        "",
    ]


def least(entry: Mapping[str, Any]) -> list[str]:
    """How many times `cold` any system may be at these requests on this machine: `many_models_bound`."""
    if "bytes_per_s" not in entry or COLD not in entry["systems"]:
        return []
    warm_s = _warm_s(entry)
    if not warm_s:
        return []
    bounds = [
        bound(entry["blobs"], asked, room=entry["limit_mb"] * MB, bytes_per_s=entry["bytes_per_s"], warm_s=warm_s)
        for asked in entry["asked"]
    ]
    requests, cold = sum(len(asked) for asked in entry["asked"]), rate(entry["systems"][COLD])[0]
    alone, beside = (requests / sum(seconds) / cold for seconds in zip(*bounds, strict=True))
    blind = [
        blind_bound(entry["blobs"], _shares(entry, k), room=entry["limit_mb"] * MB, bytes_per_s=entry["bytes_per_s"],
                    warm_s=warm_s)
        for k in range(len(entry["asked"]))
    ]  # fmt: skip
    unknown, hidden = (1 / float(np.mean(seconds)) / cold for seconds in zip(*blind, strict=True))
    target = TARGETS[COLD]
    verdict = f"{target:g} times are out of reach here." if hidden < target else f"{target:g} times are within that."
    return [
        f"No system has more than {alone:.1f} times `cold` at these requests on this machine if it reads weights and "
        f"then runs, nor more than {beside:.1f} times if it reads beside the inference of the same request: eviction "
        f"that knows the future (Belady's), the whole limit for weights, {entry['bytes_per_s'] / 1e9:.1f} GB/s as "
        f"measured of the device, inference in {1000 * min(warm_s):.0f} to {1000 * max(warm_s):.0f} ms by model as a "
        f"tenth of such answers took. Without knowing which request comes next (here they are drawn independently) it "
        f"is {unknown:.1f} and {hidden:.1f} times: the most popular weights fill the limit. {verdict}",
        "",
    ]


def _shares(entry: Mapping[str, Any], window_: int) -> list[float]:
    """Of the requests of a window, by model."""
    count = len(entry["blobs"])
    _, ranked = trace(count, entry["skew"], 1, entry["seed"] + window_)
    found = dict(zip(ranked, shares(count, entry["skew"]).tolist(), strict=True))
    return [found[k] for k in range(count)]


def _warm_s(entry: Mapping[str, Any]) -> list[float]:
    """Each model's inference, s: a tenth of the answers of living workers to its family took at most that long."""
    families = [name.rpartition("-")[0] for name in entry["names"]]
    seen: dict[str, list[float]] = {}
    for kind, windows in entry["systems"].items():
        for k, _, busy_ms, cold in (each for window in windows for each in window["asked"]):
            if kind.startswith(OURS) and not cold:
                seen.setdefault(families[k], []).append(busy_ms)
    quick = {family: float(np.percentile(found, 10)) / 1000 for family, found in seen.items()}
    return [quick.get(family, min(quick.values())) for family in families] if quick else []


def page(stored: Mapping[str, Any]) -> str:
    """The page of the documentation."""
    lines = ["# Many models on one host", ""]
    first = next(iter(stored.values()))
    lines += [
        f"Printed by `benchmarks/many_models.py` on {first['date']}: {first['cpu']}, one request at a time, one thread "
        "each. Each row's system had the limit that is given as the memory of one control group "
        "(peak MB is the most that was charged to it, pages of files included), which held the driver, all workers, "
        "the store's daemon and the zygote. Systems took turns on the same requests. *Hits* were answered by a worker "
        "that lived; *evictions* are per window, of workers, and of the store's segments. Every answer was compared "
        "with a plain session's. `cold` starts a Python for every request, `reload` loads the model in one that lives; "
        "`lamella-kernel` leaves weights to the kernel, with `lamella-resident` the host says whose leave. "
        f"Budgets leave {SLACK_MB} MB of the group free, those of `keep-alive` {LOAD_SLACK_MB}: its loads read whole "
        "files, and with less the kernel killed workers meanwhile.",
        "",
        "The claim is a throughput of at least 8 times that of a cold load per request, and twice that of plain "
        "sessions kept alive.",
        "",
    ]
    for entry in stored.values():
        lines += [f"## {entry['mix']}, skew {entry['skew']:g}", ""]
        lines += [
            f"{entry['models']} models, {entry['mb']:.0f} MB as files and {entry['stored_mb']:.0f} MB in the store "
            f"(backing {entry['backing']}); limit {entry['limit_mb']} MB, {entry['share']:.0%} of the files, "
            f"{entry['limits']}. "
            f"{entry['rounds']} windows of each system."
            + (" **A short run to see that it works, not a measurement.**" if entry["quick"] else ""),
            "",
            *table(entry),
            "",
            *all_warm(entry),
            *least(entry),
        ]
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------------------- main


def measure(name: str, skews: Sequence[float], place: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A mix at each skew: all systems in turns, a window each per round, the first one rotating."""
    limiter, today = detect(), datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    mix = make(name, options.count or (QUICK if options.quick else COUNTS)[name], place)
    sizes = Sizes(options.warm, options.requests, options.cold_requests, options.share)
    if options.quick:
        sizes = Sizes(5, 20, 4, share=1.0)
    for skew in skews:
        systems: dict[str, list[dict[str, Any]]] = {kind: [] for kind in options.systems.split(",")}
        for round_ in range(1 if options.quick else options.rounds):
            kinds = list(systems)
            for kind in kinds[round_ % len(kinds) :] + kinds[: round_ % len(kinds)]:
                todo = window(mix, kind, skew, options.seed + round_, sizes, options.backing, place)
                systems[kind].append(take(todo, limiter))
                print(f"{name}, skew {skew:g}, {kind}: {rate(systems[kind])[0]:.2f}/s", file=sys.stderr, flush=True)
        yield {
            "mix": name, "skew": skew, "seed": options.seed, "date": today, "cpu": this_machine().cpu,
            "models": len(mix.models), "mb": sum(m.bytes for m in mix.models) / (1 << 20),
            "stored_mb": mix.stored_bytes / (1 << 20), "limit_mb": limit_mb(mix, sizes.share), "share": sizes.share,
            "quick": options.quick,
            "backing": options.backing,
            "limits": str(limiter.mode) if limiter.enforced else f"NOT enforced: {limiter.reason}",
            "rounds": len(systems[kinds[0]]), "systems": systems,
            "names": [m.name for m in mix.models],
            "blobs": [[(id[:12], size) for id, size in m.weights] for m in mix.models],
            "bytes_per_s": bytes_per_s(_blobs(Path(mix.root))),
            "asked": [
                window(mix, KERNEL, skew, options.seed + k, sizes, options.backing, place).asked
                for k in range(len(systems[kinds[0]]))
            ],
        }  # fmt: skip


def main() -> None:
    """Make, measure, keep the results, print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixes", default=",".join(MIXES))
    parser.add_argument("--skews", default="1,1.5", help="exponents of the Zipf distribution")
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, help="models of a mix")
    parser.add_argument("--share", type=float, default=SHARE, help="of the models' files, the memory of everything")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", type=int, default=40, help="requests before the measured ones, beside one each")
    parser.add_argument("--requests", type=int, default=150, help="measured in each window")
    parser.add_argument("--cold-requests", type=int, default=30)
    parser.add_argument("--backing", default="page-cache", help="of the store's memory tier")
    parser.add_argument("--space", type=Path, help="where models are kept for another run; else removed")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="few models, one short window: to see that it works")
    parser.add_argument("--only-page", action="store_true", help="print the page of the stored results")
    options = parser.parse_args()
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    stored = json.loads(options.results.read_text()) if options.results.exists() else {}
    skews = [float(skew) for skew in options.skews.split(",")]
    for name in [] if options.only_page else options.mixes.split(","):
        with scratch("many") if options.space is None else nullcontext(options.space) as space:
            for entry in measure(name, skews, space / name, options):
                stored[f"{name}, skew {entry['skew']:g}"] = entry
                options.results.parent.mkdir(parents=True, exist_ok=True)
                options.results.write_text(json.dumps(stored, indent=1) + "\n")
    print(page(stored))


if __name__ == "__main__":
    main()
