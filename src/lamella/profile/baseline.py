"""What people deploy today, measured whole: the user's file in one plain `InferenceSession`.

The baselines are not what lamella predicts from units, so they are simply run once; no figure on prediction counts
them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from lamella import documents
from lamella.documents import Document
from lamella.graph.extract import link_model
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.limits.owner import mark
from lamella.machine import on_cores, this_machine
from lamella.profile.probes import RUNS, Probe
from lamella.runtime.function import Function, TensorSpec

WHOLE_VERSION = "2"
"""Part of the cache key: raise it when measuring changes."""

BaselineKind = Literal["plain", "default"]


class Whole(Document, frozen=True, kw_only=True):
    """One plain session of the whole model, no limits: MB and ms."""

    peak_mb: float
    run_ms: float
    cold_ms: float


def measure_whole(
    graph: Graph,
    kind: BaselineKind,
    threads: int,
    batch: int = 1,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Whole:
    """Memory and time of the plain session, from the cache where known."""
    path = (
        documents.cache_dir()
        / "profiles"
        / f"{graph.name}-{graph.hash}-{this_machine().key}-{kind}-{threads}-{batch}-v{WHOLE_VERSION}.json"
    )
    if path.exists():
        return documents.read(path, Whole, made_by="lamella compare MODEL --planners ort")
    scratch = Path(tempfile.mkdtemp(prefix=mark(".whole"), dir=graph.directory))
    try:
        link_model(graph, scratch)
        tensors = [[graph.tensors[n] for n in names] for names in (graph.inputs, graph.outputs)]
        specs = [tuple(TensorSpec(t.name, t.dtype, t.shape_at(1), t.dynamic) for t in side) for side in tensors]
        function = Function(
            name="whole",
            kind=kind,
            graph="model.onnx",
            weights="",
            portable="",
            inputs=specs[0],
            outputs=specs[1],
            threads=threads,
            prepack=True,
            machine=this_machine(),
            sha256={},
        )
        documents.write(scratch / "function.json", function)
        values = request(graph, np.random.default_rng(0), batch, ranges)
        values |= {t.name: np.zeros(t.shape_at(batch), t.dtype) for t in tensors[1]}
        cores = threads if kind == "plain" else this_machine().cores
        with on_cores(cores), Probe(scratch, values, graph.inputs, graph.outputs) as probe:
            runs = [probe.run()[1] for _ in range(RUNS + 1)][1:]
            whole = Whole(
                peak_mb=probe.instance.report().peak_mb, run_ms=float(np.median(runs)), cold_ms=probe.cold.total
            )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    documents.write(path, whole)
    return whole
