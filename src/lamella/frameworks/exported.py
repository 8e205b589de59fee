"""An exported file, compared with its original and kept.

The file is named after its content. A model is exported on every load: what its answer depends on (weights, code of
its own, code it imports, versions) no key can list, and a stale file would be served without a word. The exporters are
deterministic once their notes on the source (paths, line numbers) are removed, so a model that did not change gives
the same bytes, and the import, the profile and the allocations made of them are found again.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import onnxruntime as ort

from lamella.compare.record import OUTPUT_TOLERANCE
from lamella.documents import cache_dir
from lamella.errors import ExportRefused
from lamella.frameworks.examples import Example, requests
from lamella.graph.weights import disk_error
from lamella.plan.validation.metrics import difference
from lamella.scratch import scratch

ROUNDING = 16
"""Differences up to so many steps of the output's type are rounding, even where the range is hardly larger: an
untrained classifier's thousand equal probabilities."""


class Original(Protocol):
    """A framework's model, ready to be asked and exported."""

    @property
    def examples(self) -> tuple[Example, ...]:
        """Its inputs."""

    def answer(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Its outputs in the order of the exported file's."""

    def write(self, path: Path) -> None:
        """Export it to `path`; weights may go to other files beside it."""


def keep(original: Original, name: str) -> Path:
    """The exported file of `original` in the cache, once it was found to answer like it.

    Raises:
        ExportRefused: it cannot be exported, or the file answers differently.
        StorageError: the disk is full or refuses.
    """
    name = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[:60]
    with scratch("export") as space:
        made = space / "model"
        made.mkdir()
        path = made / f"{name}.onnx"
        original.write(path)
        _without_notes(path)
        compare(original, path)
        target = cache_dir() / "exports" / f"{name}-{_content(made)}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if not (target / path.name).is_file():
                os.replace(made, target)
        except OSError as error:
            if not (target / path.name).is_file():  # else another process was first, with the same bytes
                raise disk_error(error, target) from error
    return target / path.name


def compare(original: Original, path: Path) -> None:
    """Refuse a file that does not answer as the original does.

    Three requests are asked, of other batches where the axis is free. Allowed is 1e-4 of the range of each output.

    Raises:
        ExportRefused: with the difference; or the original does not even answer the same twice.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own kinds
        raise ExportRefused(f"the runtime refuses what was exported: {_first(error)}", where=path.name) from error
    taken = [i.name for i in session.get_inputs()]
    names = [o.name for o in session.get_outputs()]
    for feeds in requests(original.examples):
        want = _asked(original, feeds)
        _check(names, want, _asked(original, feeds), "the model answers the same request differently each time")
        try:
            got = session.run(names, {n: feeds[n] for n in taken})
        except Exception as error:
            what = f"what was exported refuses a request of {_sizes(feeds)}: {_first(error)}"
            raise ExportRefused(what, where=path.name, try_="numbers instead of N in --shape") from error
        _check(names, want, got, f"the exported model answers differently from the original at {_sizes(feeds)}")


def _asked(original: Original, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    try:
        return original.answer(feeds)
    except Exception as error:  # the user's code, which may raise anything
        raise ExportRefused(
            f"the model itself refuses a request of {_sizes(feeds)}: {type(error).__name__}: {_first(error)}",
            try_="numbers instead of N in --shape, or example_inputs that are valid in any order",
        ) from error


def _check(names: Sequence[str], want: Sequence[np.ndarray], got: Sequence[np.ndarray], what: str) -> None:
    if len(want) != len(got):
        raise ExportRefused(f"{what}: {len(want)} outputs became {len(got)}")
    for name, first, second in zip(names, want, got, strict=True):
        absolute, relative = difference(first, second)
        if relative > OUTPUT_TOLERANCE and absolute > _rounding(first):
            size = f"shape {list(first.shape)} became {list(second.shape)}"
            if first.shape == second.shape:
                size = f"by {absolute:.3g}, {relative:.1e} of its range; {OUTPUT_TOLERANCE:.0e} is allowed"
            raise ExportRefused(
                f"{what}: output {name!r} differs, {size}",
                where=f"output {name!r}",
                try_="look for chance that ignores eval(), state kept between calls, and branches on Python values",
            )


def _rounding(array: np.ndarray) -> float:
    if array.dtype.kind != "f" or not array.size:
        return 0.0
    largest = float(np.max(np.abs(np.nan_to_num(array.astype(np.float64), posinf=0.0, neginf=0.0))))
    return ROUNDING * float(np.finfo(array.dtype).eps) * largest


def _sizes(feeds: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())


def _first(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def _without_notes(path: Path) -> None:
    """Remove what exporters note for a reader: stack traces, with paths and line numbers, at every node."""
    proto = onnx.load(path, load_external_data=False)
    del proto.metadata_props[:]
    for function in proto.functions:
        del function.metadata_props[:]
        _clear(function.node)
    _clear_graph(proto.graph)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _clear_graph(graph: onnx.GraphProto) -> None:
    del graph.metadata_props[:]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del value.metadata_props[:]
    _clear(graph.node)


def _clear(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        del node.metadata_props[:]
        node.ClearField("doc_string")
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _clear_graph(graph)


def _content(directory: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(directory.iterdir()):
        with file.open("rb") as stream:
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:24]
