"""Run a model as a chain of slices, the slow and obvious way: the oracle for law 3."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime as ort

from lamella.graph.extract import Extractor
from lamella.graph.model import Graph
from lamella.runtime.function import open_session

Tensors = dict[str, np.ndarray]


def step(graph: Graph, first: int, last: int, session: ort.InferenceSession, tensors: Tensors) -> None:
    """Run an open slice on the tensors it takes; what it gives joins `tensors`."""
    takes, gives = graph.border(first, last)
    tensors.update(zip(gives, session.run(list(gives), {n: tensors[n] for n in takes}), strict=True))


def reference(extractor: Extractor, first: int, last: int, directory: Path) -> ort.InferenceSession:
    """Operators `first` to `last - 1`, unoptimised, on one thread."""
    return open_session(extractor.write(first, last, directory), "reference", threads=1, prepack=False)


def answer(extractor: Extractor, cuts: Iterable[int], request: Mapping[str, np.ndarray], directory: Path) -> Tensors:
    """The model's outputs, computed by the slices between `cuts` one after the other."""
    graph = extractor.graph
    tensors = dict(request)
    for first, last in pairwise([0, *sorted(cuts), len(graph.operators)]):
        step(graph, first, last, reference(extractor, first, last, directory), tensors)
    return {name: tensors[name] for name in graph.outputs}


def assert_same_bits(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes(), f"{name} differs"


def worst_share(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """The largest difference as a share of its output's range."""
    worst = 0.0
    for name, array in expected.items():
        span = float(np.ptp(array.astype(np.float64))) or 1.0
        worst = max(worst, float(np.max(np.abs(found[name].astype(np.float64) - array))) / span)
    return worst
