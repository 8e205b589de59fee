"""Build a package from a plan: cut each slice out, optimise it offline, lay its weights out for mapping, hash all.

A function has its graph twice, for this CPU and for any, and its weights once, but for those whose layout depends on
the CPU: convolutions', and products' where something is favoured. The plan's limit on a package holds for all of it.
Where it is too small, what was favoured goes first, since the plan holds without it, and the graph for any CPU after
that, since the plan holds where it was made; what is beyond the limit even so is refused.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx
from onnx import ModelProto

from lamella import documents
from lamella.errors import LawBroken, PackageError, PlatformLimit
from lamella.graph.extract import Extractor, link_model
from lamella.graph.model import Graph
from lamella.graph.optimise import optimise, split_weights
from lamella.graph.quantise import quantisable, quantise
from lamella.graph.weights import disk_error
from lamella.machine import this_machine
from lamella.package.favour import Favouring
from lamella.package.integrity import MANIFEST, PLAN, is_package, seal, sha256
from lamella.package.layout import WeightsFile, up_to_page
from lamella.package.manifest import Manifest
from lamella.package.place import take_place
from lamella.plan.document import FittedCodec, FunctionPlan, Plan
from lamella.plan.laws import structure
from lamella.profile.fitting import kept
from lamella.profile.layouts import Favour
from lamella.profile.products import Timer, product_times
from lamella.runtime.function import FittedFile, Function, Layouts, TensorSpec
from lamella.scratch import scratch
from lamella.units import MB

Weighted = tuple[ModelProto, Mapping[str, np.ndarray]]
"""A graph without its large constants, and those."""
Progress = Callable[[float, str], None]
PORTABLE = "portable.onnx"
MANIFEST_BYTES = 1 << 14
"""Kept free for `function.json`, which is written last."""


def build(
    plan: Plan,
    graph: Graph,
    directory: Path,
    progress: Progress = lambda share, what: None,
    *,
    favour: Favour | None = None,
    timer: Timer = product_times,
    portable: bool = True,
) -> Manifest:
    """Write the package of `plan` into `directory`, whole or not at all; its manifest.

    An older package there is replaced at the end, and stays as it is where that is not reached.

    Args:
        plan: what to ship.
        graph: the plan's model.
        directory: absent, empty, or an older package.
        progress: told before each function the share that is done, and its name.
        favour: what wins where a quick start, steady time and memory conflict, per product by its measured times
            (`package.favour`), in all functions; by default each has the layout of the plan.
        timer: where those times come from.
        portable: whether functions get a graph for any CPU, too. Without it they start only where a graph optimised
            here is good (`Machine.runs`).

    Raises:
        LawBroken: the plan is for another model.
        PackageError: the directory holds something that is not a package.
        PlatformLimit: a function takes more than the plan's limit on a package.
        StorageError: the disk is full or refuses.
    """
    if plan.model.hash != graph.hash:
        raise LawBroken(
            f"the plan is for model {plan.model.name} {plan.model.hash[:8]}, this is {graph.name} {graph.hash[:8]}",
            try_="lamella plan MODEL again, or give the plan's own model",
        )
    for error in structure(plan, graph):
        raise error
    directory = directory.resolve()
    _check_free(directory)
    with scratch(f".{directory.name}", directory.parent) as made:
        try:
            manifest = _write(plan, graph, made, progress, favour, timer, portable=portable)
            made.chmod(0o755)
            take_place(made, directory)
        except OSError as error:
            raise disk_error(error, directory) from error
    return manifest


def room_bytes(plan: Plan) -> float:
    """What a function's package may take, by the platform's limit that the plan was held against."""
    return min((s.limit * MB for s in plan.slack if s.constraint == "package"), default=math.inf)


def held_bytes(directory: Path) -> int:
    """What a function's files take."""
    return sum(p.stat().st_size for p in directory.iterdir() if p.is_file())


def _write(
    plan: Plan,
    graph: Graph,
    directory: Path,
    progress: Progress,
    favour: Favour | None,
    timer: Timer,
    *,
    portable: bool,
) -> Manifest:
    extractor = Extractor(plan.graph(graph))
    decides = favour or any(f.layout == "blocked" for f in plan.functions)
    favouring = Favouring(extractor.graph, favour, plan.batch, timer) if decides else None
    hashes, refused = {}, {}
    for k, function in enumerate(plan.functions):
        progress(k / len(plan.functions), function.name)
        made = build_function(
            extractor,
            function,
            directory / function.name,
            portable=portable,
            fitted=plan.fitted,
            favouring=favouring,
            room=room_bytes(plan),
        )
        if why := made.layouts and refusal(made.layouts):
            refused[function.name] = why
        hashes[function.name] = sha256(directory / function.name / "function.json")
    documents.write(directory / PLAN, plan)
    manifest = Manifest(
        model=graph.name,
        model_hash=graph.hash,
        planner=plan.planner,
        platform=plan.platform,
        functions=tuple(f.name for f in plan.functions),
        machine=this_machine(),
        sha256=hashes,
        plan_sha256=sha256(directory / PLAN),
        refused=refused,
    )
    documents.write(directory / MANIFEST, manifest)
    seal(directory)
    return manifest


def refusal(layouts: Layouts) -> str:
    """Why products that were to be blocked are not; empty where they are, or where times speak against it."""
    return layouts.refused or ("" if layouts.block else "the runtime has no blocked layout on this CPU")


def _check_free(directory: Path) -> None:
    """PackageError unless the directory is absent, empty, or holds a package, which may be replaced."""
    if not directory.exists() or (directory.is_dir() and (not any(directory.iterdir()) or is_package(directory))):
        return
    what = "is not empty and holds no package" if directory.is_dir() else "is a file"
    raise PackageError(f"{directory} {what}", try_="choose another -o DIR")


def build_function(
    extractor: Extractor,
    plan: FunctionPlan,
    directory: Path,
    *,
    portable: bool = True,
    fitted: Sequence[FittedCodec] = (),
    favouring: Favouring | None = None,
    room: float = math.inf,
) -> Function:
    """Write one function's files into `directory`; its manifest, written as `function.json` too.

    Args:
        extractor: of the graph it is a part of.
        plan: which part, and how it runs.
        directory: absent yet.
        portable: whether the graph for any CPU is written, too, where there is room.
        fitted: the plan's learned codecs; it gets those of the tensors it takes or gives.
        favouring: what decides the layout of its weights, needed where the plan says blocked; it has to be given all
            functions of a plan in order.
        room: bytes that the function may take.

    Raises:
        PackageError: the parameters of a learned codec are not in the cache, or others than the plan's.
        PlatformLimit: it takes more than the room.
    """
    directory.mkdir(parents=True)
    graph = extractor.graph
    takes, gives = graph.border(plan.first, plan.last)
    whole = plan.kind in ("plain", "default")
    learned = [_parameters(f, directory) for f in fitted if f.tensor in (*takes, *gives)]
    if whole:
        files, made = link_model(graph, directory), Made(plan.layout == "prepacked")
    else:
        files, made = _slice(extractor, plan, directory, portable, favouring, room)
    files += dict.fromkeys(f.file for f in learned)
    function = Function(
        name=plan.name,
        kind=plan.kind,
        graph="model.onnx" if whole else "graph.onnx",
        weights="" if whole else "weights.bin",
        portable=PORTABLE if PORTABLE in files else "",
        inputs=_specs(graph, takes),
        outputs=_specs(graph, gives),
        threads=plan.threads,
        prepack=made.prepack,
        machine=this_machine(),
        sha256={name: sha256(directory / name) for name in files},
        fitted=tuple(learned),
        layouts=made.layouts,
        read_bytes=made.read_bytes,
    )
    documents.write(directory / "function.json", function)
    if (held := held_bytes(directory)) > room:
        raise PlatformLimit(
            f"law 5: the package of {plan.name} is {held / MB:.1f} MB, the limit {room / MB:g}; the plan counted "
            f"{plan.package_mb:.1f} MB",
            where=plan.name,
            try_="lamella plan with more cuts, or another --platform",
        )
    return function


def build_model(graph: Graph, directory: Path, *, threads: int = 1) -> Function:
    """Write a whole model into `directory` as one optimised function without a plan; its manifest, as `function.json`.

    Args:
        graph: the model.
        directory: absent yet.
        threads: its session's.

    Raises:
        ModelError: the runtime refuses it.
        StorageError: the disk is full or refuses.
    """
    extractor, end, work = Extractor(graph), len(graph.operators), directory / ".work"
    try:
        directory.mkdir(parents=True)
        best = optimise(extractor.write(0, end, work))
        size = _lay_out(directory, best, split_weights(extractor.slice(0, end), work))
    except OSError as error:
        raise disk_error(error, directory) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    function = Function(
        name="whole",
        kind="packaged",
        graph="graph.onnx",
        weights="weights.bin",
        portable=PORTABLE,
        inputs=_specs(graph, graph.inputs),
        outputs=_specs(graph, graph.outputs),
        threads=threads,
        prepack=False,
        machine=this_machine(),
        sha256={name: sha256(directory / name) for name in ("graph.onnx", "weights.bin", PORTABLE)},
        read_bytes=size,
    )
    documents.write(directory / "function.json", function)
    return function


def _parameters(codec: FittedCodec, directory: Path) -> FittedFile:
    """Copy the parameters of a learned codec from the cache."""
    source, name = kept(codec.sha256), f"{codec.codec}-{codec.sha256[:16]}.npy"
    what = f"the parameters of {codec.codec} for the tensor {codec.tensor!r}"
    again = "lamella plan MODEL --validate data.npz -o plan.json, on this machine"
    if not source.is_file():
        raise PackageError(f"{what} are not in the cache ({source.name[:16]}...)", where=str(source), try_=again)
    if sha256(source) != codec.sha256:
        raise PackageError(f"{what} are not those of the plan: the file changed", where=str(source), try_=again)
    shutil.copyfile(source, directory / name)
    return FittedFile(codec.tensor, codec.codec, name)


def _specs(graph: Graph, names: tuple[str, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(t.name, t.dtype, t.shape, t.dynamic) for t in (graph.tensors[n] for n in names))


class Made(NamedTuple):
    """How a function's graph came out."""

    prepack: bool
    layouts: Layouts | None = None
    read_bytes: int = 0


def _slice(
    extractor: Extractor,
    plan: FunctionPlan,
    directory: Path,
    portable: bool,
    favouring: Favouring | None,
    room: float,
) -> tuple[list[str], Made]:
    scratch = directory / ".work"
    try:
        path = extractor.write(plan.first, plan.last, scratch)
        if plan.int8:
            _check_precision(extractor, plan)
            path = quantise(path, plan.int8)
        best = optimise(path)
        plain = split_weights(onnx.load(path, load_external_data=False), scratch) if portable else None
        favour = favouring.of(plan) if favouring else None
        made = Made(plan.layout == "prepacked")
        if favouring and favour:
            made = _favoured(favouring, favour, plan, directory, best, plain, room)
        elif favouring:
            favouring.follow(plan, scratch / "optimised.onnx")
        if not made.read_bytes:
            made = made._replace(read_bytes=_lay_out(directory, best, plain))
        if plain and held_bytes(directory) > room - MANIFEST_BYTES:
            plain = None
            _leave_portable(directory, made.read_bytes)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return ["graph.onnx", "weights.bin", *([PORTABLE] if plain else [])], made


def _check_precision(extractor: Extractor, plan: FunctionPlan) -> None:
    """LawBroken where a function names products that cannot run on 8-bit integers."""
    known = quantisable(extractor.graph, extractor.slice(plan.first, plan.last))
    if unknown := [name for name in plan.int8 if name not in known]:
        raise LawBroken(
            f"law 3: {plan.name} gives {', '.join(unknown[:3])} on 8-bit integers, and holds no such product",
            where=plan.name,
            try_="lamella plan again",
        )


def _favoured(
    favouring: Favouring,
    favour: Favour,
    plan: FunctionPlan,
    directory: Path,
    best: Weighted,
    portable: Weighted | None,
    room: float,
) -> Made:
    """The function in the layouts that are favoured; not written (no `read_bytes`) where that is refused.

    Where it was planned so the graph for any CPU may go to make room for it; else it goes first.
    """
    remade = favouring.remake(plan, favour, *best, directory / ".work" / "blocked.bin")
    size = _lay_out(directory, (remade.proto, remade.weights), portable)
    error, refused = favouring.check(plan, directory / ".work" / "optimised.onnx", directory / "graph.onnx")
    if not remade.layouts.blocked:  # the same graph: nothing to refuse
        error, refused = 0.0, ""
    elif not refused:
        held, also = held_bytes(directory), " with its graph for any CPU" if portable else ""
        if portable and plan.layout == "blocked":
            last = (directory / "weights.bin").stat().st_size - up_to_page(size)
            held, also = held - last - (directory / PORTABLE).stat().st_size, ""
        if held > room - MANIFEST_BYTES:
            refused = f"{held / MB:.1f} MB{also}, the package limit is {room / MB:g} MB"
    layouts = msgspec.structs.replace(remade.layouts, error=error, refused=refused)
    return Made(plan.layout == "prepacked", layouts) if refused else Made(remade.prepack, layouts, size)


def _leave_portable(directory: Path, read_bytes: int) -> None:
    """Take the graph for any CPU away, and the weights that only it reads, which come last."""
    (directory / PORTABLE).unlink()
    os.truncate(directory / "weights.bin", up_to_page(read_bytes))


def _lay_out(directory: Path, best: Weighted, portable: Weighted | None) -> int:
    """Write a function's graphs and weights; how many bytes of those, from the first, the optimised graph reads."""
    with WeightsFile(directory / "weights.bin") as file:
        _attach(file, best, directory / "graph.onnx")
        size = file.size
        if portable:
            _attach(file, portable, directory / PORTABLE)
    return size


def _attach(file: WeightsFile, weighted: Weighted, path: Path) -> None:
    proto = ModelProto()
    proto.CopyFrom(weighted[0])
    file.attach(proto, weighted[1])
    path.write_bytes(proto.SerializeToString())
