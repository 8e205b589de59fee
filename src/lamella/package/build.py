"""Build a package from a plan: cut each slice out, optimise it offline, lay its weights out for mapping, hash all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from onnx import ModelProto

from lamella import documents
from lamella.errors import LawBroken, PackageError
from lamella.graph.extract import Extractor, link_model
from lamella.graph.model import Graph
from lamella.graph.optimise import optimise, split_weights
from lamella.graph.weights import disk_error
from lamella.machine import this_machine
from lamella.package.favour import Favouring
from lamella.package.integrity import MANIFEST, PLAN, is_package, seal, sha256
from lamella.package.layout import WeightsFile
from lamella.package.manifest import Manifest
from lamella.package.place import take_place
from lamella.plan.document import FittedCodec, FunctionPlan, Plan
from lamella.plan.laws import structure
from lamella.profile.fitting import kept
from lamella.profile.layouts import Favour
from lamella.profile.products import Timer, product_times
from lamella.runtime.function import FittedFile, Function, Layouts, TensorSpec
from lamella.scratch import scratch

Weighted = tuple[ModelProto, Mapping[str, np.ndarray]]
"""A graph without its large constants, and those."""
Progress = Callable[[float, str], None]


def build(
    plan: Plan,
    graph: Graph,
    directory: Path,
    progress: Progress = lambda share, what: None,
    *,
    favour: Favour | None = None,
    timer: Timer = product_times,
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

    Raises:
        LawBroken: the plan is for another model.
        PackageError: the directory holds something that is not a package.
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
            manifest = _write(plan, graph, made, progress, favour, timer)
            made.chmod(0o755)
            take_place(made, directory)
        except OSError as error:
            raise disk_error(error, directory) from error
    return manifest


def _write(
    plan: Plan, graph: Graph, directory: Path, progress: Progress, favour: Favour | None, timer: Timer
) -> Manifest:
    extractor = Extractor(plan.graph(graph))
    decides = favour or any(f.layout == "blocked" for f in plan.functions)
    favouring = Favouring(extractor.graph, favour, plan.batch, timer) if decides else None
    hashes = {}
    for k, function in enumerate(plan.functions):
        progress(k / len(plan.functions), function.name)
        build_function(extractor, function, directory / function.name, fitted=plan.fitted, favouring=favouring)
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
    )
    documents.write(directory / MANIFEST, manifest)
    seal(directory)
    return manifest


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
) -> Function:
    """Write one function's files into `directory`; its manifest, written as `function.json` too.

    Args:
        extractor: of the graph it is a part of.
        plan: which part, and how it runs.
        directory: absent yet.
        portable: whether the graph for any CPU is written, too.
        fitted: the plan's learned codecs; it gets those of the tensors it takes or gives.
        favouring: what decides the layout of its weights, needed where the plan says blocked; it has to be given all
            functions of a plan in order.

    Raises:
        PackageError: the parameters of a learned codec are not in the cache, or others than the plan's.
    """
    directory.mkdir(parents=True)
    graph = extractor.graph
    takes, gives = graph.border(plan.first, plan.last)
    whole = plan.kind in ("plain", "default")
    if whole:
        files, made = link_model(graph, directory), Made(plan.layout == "prepacked")
    else:
        files, made = _slice(extractor, plan, directory, portable, favouring)
    learned = [_parameters(f, directory) for f in fitted if f.tensor in (*takes, *gives)]
    files += dict.fromkeys(f.file for f in learned)
    function = Function(
        name=plan.name,
        kind=plan.kind,
        graph="model.onnx" if whole else "graph.onnx",
        weights="" if whole else "weights.bin",
        portable="portable.onnx" if portable and not whole else "",
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
        portable="portable.onnx",
        inputs=_specs(graph, graph.inputs),
        outputs=_specs(graph, graph.outputs),
        threads=threads,
        prepack=False,
        machine=this_machine(),
        sha256={name: sha256(directory / name) for name in ("graph.onnx", "weights.bin", "portable.onnx")},
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
    extractor: Extractor, plan: FunctionPlan, directory: Path, portable: bool, favouring: Favouring | None
) -> tuple[list[str], Made]:
    scratch = directory / ".work"
    files = ["graph.onnx", "weights.bin", *(["portable.onnx"] if portable else [])]
    try:
        path = extractor.write(plan.first, plan.last, scratch)
        graph, weights = optimise(path)
        plain = split_weights(extractor.slice(plan.first, plan.last), scratch) if portable else None
        favour = favouring.of(plan) if favouring else None
        if not favouring or not favour:
            if favouring:
                favouring.follow(plan, scratch / "optimised.onnx")
            return files, Made(plan.layout == "prepacked", None, _lay_out(directory, (graph, weights), plain))
        remade = favouring.remake(plan, favour, graph, weights, scratch / "blocked.bin")
        size = _lay_out(directory, (remade.proto, remade.weights), plain)
        error, refused = favouring.check(plan, scratch / "optimised.onnx", directory / "graph.onnx")
        if not remade.layouts.blocked:  # the same graph: nothing to refuse
            error, refused = 0.0, ""
        layouts = msgspec.structs.replace(remade.layouts, error=error, refused=refused)
        if not refused:
            return files, Made(remade.prepack, layouts, size)
        return files, Made(plan.layout == "prepacked", layouts, _lay_out(directory, (graph, weights), plain))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _lay_out(directory: Path, best: Weighted, portable: Weighted | None) -> int:
    """Write a function's graphs and weights; how many bytes of those, from the first, the optimised graph reads."""
    with WeightsFile(directory / "weights.bin") as file:
        _attach(file, best, directory / "graph.onnx")
        size = file.size
        if portable:
            _attach(file, portable, directory / "portable.onnx")
    return size


def _attach(file: WeightsFile, weighted: Weighted, path: Path) -> None:
    proto = ModelProto()
    proto.CopyFrom(weighted[0])
    file.attach(proto, weighted[1])
    path.write_bytes(proto.SerializeToString())
