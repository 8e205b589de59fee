"""Requests for a model: random ones that its inputs accept."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lamella.errors import InputRefused
from lamella.graph.model import Graph
from lamella.graph.shapes import random_values
from lamella.zoo import InputSpec


def request(
    graph: Graph, rng: np.random.Generator, batch: int = 1, ranges: Mapping[str, tuple[float, float]] | None = None
) -> dict[str, np.ndarray]:
    """One random request, by input name.

    Args:
        graph: the model.
        rng: where chance comes from.
        batch: rows, where the batch axis is free.
        ranges: [low, high) of inputs, in place of what is known of them; integers default to 0 or 1.
    """
    known = {s.name: s for s in graph.input_specs}
    feeds = {}
    for name in graph.inputs:
        tensor = graph.tensors[name]
        spec = known.get(name)
        if ranges and name in ranges:
            spec = InputSpec(name, tensor.dtype, tensor.shape, *ranges[name])
        feeds[name] = random_values(np.dtype(tensor.dtype), tensor.shape_at(batch), spec, rng)
    return feeds


def unknown_ranges(graph: Graph, ranges: Mapping[str, tuple[float, float]] | None = None) -> list[str]:
    """Integer inputs whose valid values nobody has told."""
    known = {s.name for s in graph.input_specs} | set(ranges or {})
    return [n for n in graph.inputs if np.dtype(graph.tensors[n].dtype).kind in "iu" and n not in known]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, by name.

    Raises:
        InputRefused: the file is missing, no .npz, or cut short.
    """
    try:
        with path.open("rb") as file:
            data = np.load(file, allow_pickle=False)
            if isinstance(data, np.ndarray):
                raise ValueError("it holds one array without a name")
            return {name: data[name] for name in data.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputRefused(f"cannot read {path}: {error}", try_="np.savez('x.npz', NAME=array, ...)") from error
