"""Build a package from a plan: cut each slice out, optimise it offline, lay its weights out for mapping, hash all."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from lamella import documents
from lamella.errors import ConfigError, LawBroken, PackageError
from lamella.graph.extract import Extractor, link_model
from lamella.graph.model import Graph
from lamella.graph.optimise import optimise, split_weights
from lamella.graph.weights import disk_error
from lamella.machine import this_machine
from lamella.package.layout import WeightsFile
from lamella.package.manifest import Manifest
from lamella.plan.document import FunctionPlan, Plan
from lamella.plan.laws import structure
from lamella.runtime.function import Function, TensorSpec


def build(plan: Plan, graph: Graph, directory: Path, progress: Callable[[str], None] = lambda _: None) -> Manifest:
    """Write the package of `plan` into `directory`, whole or not at all; its manifest.

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
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    except OSError as error:
        raise disk_error(error, directory) from error
    try:
        extractor = Extractor(graph)
        hashes = {}
        for function in plan.functions:
            progress(function.name)
            build_function(extractor, function, scratch / function.name)
            hashes[function.name] = sha256(scratch / function.name / "function.json")
        documents.write(scratch / "plan.json", plan)
        manifest = Manifest(
            model=graph.name,
            model_hash=graph.hash,
            planner=plan.planner,
            platform=plan.platform,
            functions=tuple(f.name for f in plan.functions),
            machine=this_machine(),
            sha256=hashes,
            plan_sha256=sha256(scratch / "plan.json"),
        )
        documents.write(scratch / "manifest.json", manifest)
        if directory.exists():
            shutil.rmtree(directory)
        scratch.chmod(0o755)
        scratch.replace(directory)
    except OSError as error:
        raise disk_error(error, directory) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return manifest


def _check_free(directory: Path) -> None:
    """PackageError unless the directory is absent, empty, or holds a package, which may be replaced."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    try:
        documents.read(directory / "manifest.json", Manifest, made_by="lamella package plan.json -o DIR")
    except ConfigError as error:
        what = "is not empty and holds no package" if directory.is_dir() else "is a file"
        raise PackageError(f"{directory} {what}", try_="choose another -o DIR") from error


def build_function(extractor: Extractor, plan: FunctionPlan, directory: Path, *, portable: bool = True) -> Function:
    """Write one function's files into `directory`; its manifest, written as `function.json` too."""
    directory.mkdir(parents=True)
    graph = extractor.graph
    takes, gives = graph.border(plan.first, plan.last)
    whole = plan.kind in ("plain", "default")
    files = link_model(graph, directory) if whole else _slice(extractor, plan, directory, portable)
    function = Function(
        name=plan.name,
        kind=plan.kind,
        graph="model.onnx" if whole else "graph.onnx",
        weights="" if whole else "weights.bin",
        portable="portable.onnx" if portable and not whole else "",
        inputs=_specs(graph, takes),
        outputs=_specs(graph, gives),
        threads=plan.threads,
        prepack=plan.prepack,
        machine=this_machine(),
        sha256={name: sha256(directory / name) for name in files},
    )
    documents.write(directory / "function.json", function)
    return function


def _specs(graph: Graph, names: tuple[str, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(t.name, t.dtype, t.shape, t.dynamic) for t in (graph.tensors[n] for n in names))


def _slice(extractor: Extractor, plan: FunctionPlan, directory: Path, portable: bool) -> list[str]:
    scratch = directory / ".work"
    try:
        path = extractor.write(plan.first, plan.last, scratch)
        graph, weights = optimise(path)
        with WeightsFile(directory / "weights.bin") as file:
            file.attach(graph, weights)
            (directory / "graph.onnx").write_bytes(graph.SerializeToString())
            if portable:
                plain, own = split_weights(extractor.slice(plan.first, plan.last), scratch)
                file.attach(plain, own)
                (directory / "portable.onnx").write_bytes(plain.SerializeToString())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return ["graph.onnx", "weights.bin", *(["portable.onnx"] if portable else [])]


def sha256(path: Path) -> str:
    """Hash of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(directory: Path) -> tuple[Manifest, Plan]:
    """The manifest and plan of a package whose every byte is as it was written.

    Raises:
        PackageError: not a package, a file is missing, or a byte changed.
    """
    if not (directory / "manifest.json").is_file():
        raise PackageError(f"{directory} holds no package", try_="lamella package plan.json -o DIR")
    again = "lamella package plan.json -o DIR"
    try:
        manifest = documents.read(directory / "manifest.json", Manifest, made_by=again)
    except ConfigError as error:
        raise PackageError(error.message, where=str(directory), try_=again) from error
    _check(directory / "plan.json", manifest.plan_sha256, directory)
    for name in manifest.functions:
        path = directory / name / "function.json"
        _check(path, manifest.sha256[name], directory)
        function = msgspec.json.decode(path.read_bytes(), type=Function)
        for file, expected in function.sha256.items():
            _check(path.parent / file, expected, directory)
    return manifest, documents.read(directory / "plan.json", Plan, made_by=again)


def _check(path: Path, expected: str, directory: Path) -> None:
    if not path.is_file():
        raise PackageError(
            f"{path.relative_to(directory)} is missing from the package",
            where=str(directory),
            try_="lamella package plan.json -o DIR",
        )
    found = sha256(path)
    if found != expected:
        raise PackageError(
            f"{path.relative_to(directory)} changed since it was packaged (hash {found[:12]}, was {expected[:12]})",
            where=str(directory),
            try_="lamella package plan.json -o DIR",
        )
