"""Fit the learned codec to the tensors of a model's cuts, on the user's own requests.

One run per request gives every tensor that crosses a cut; of each the mean and the second moments of its channels are
kept, never the values, and their eigenvectors are the components (Jolliffe, Principal Component Analysis, section 1.1).
The result is a small matrix per tensor. It lies in the cache under its own hash: plans name it, packages copy it.
"""

from __future__ import annotations

import hashlib
import io
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from lamella import documents
from lamella.codecs.linear import PREFIX, Linear, channel_axis
from lamella.errors import InputRefused
from lamella.graph.extract import Extractor
from lamella.graph.model import Graph
from lamella.limits.owner import mark
from lamella.runtime.function import open_session

RATIOS = (2, 4, 8)
"""Of the channels the components are a half, a quarter, an eighth; in half precision that shortens twice as much."""
LEAST_CHANNELS, MOST_CHANNELS = 8, 1024
"""Fewer have nothing to leave out; more take seconds to fit and megabytes to ship."""
LEAST_BYTES = 4096
"""Shorter tensors travel at once as they are."""
POSITIONS = 1024
"""So many positions of a tensor are looked at per request, evenly spaced."""

Values = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Basis:
    """Mean and components of a tensor's channels, as many as the largest code keeps."""

    mean: np.ndarray
    components: np.ndarray

    def codec(self, ratio: int) -> Linear:
        """The codec that keeps one of `ratio` components."""
        count = max(1, len(self.mean) // ratio)
        return Linear(f"{PREFIX}{ratio}", self.mean, np.ascontiguousarray(self.components[:count]))


class Moments:
    """Sum and products of the channels of one tensor."""

    def __init__(self, channels: int) -> None:
        """Nothing is seen yet."""
        self.count = 0
        self._sum = np.zeros(channels)
        self._products = np.zeros((channels, channels))

    def add(self, tensor: np.ndarray) -> None:
        """Look at some positions of a tensor."""
        rows = np.moveaxis(tensor, channel_axis(tensor.ndim), -1).reshape(-1, len(self._sum))
        picked = np.linspace(0, len(rows) - 1, min(POSITIONS, len(rows))).astype(np.int64)
        seen = rows[picked].astype(np.float64)
        self.count += len(seen)
        self._sum += seen.sum(axis=0)
        self._products += seen.T @ seen

    def basis(self) -> Basis | None:
        """The components that explain most; None where fewer positions than channels were seen, or no finite ones."""
        mean = self._sum / max(1, self.count)
        covariance = self._products / max(1, self.count) - np.outer(mean, mean)
        if self.count < len(mean) or not np.isfinite(covariance).all():
            return None
        _, vectors = np.linalg.eigh(covariance)
        kept = max(1, len(mean) // min(RATIOS))
        return Basis(mean.astype(np.float32), np.ascontiguousarray(vectors.T[::-1][:kept], np.float32))


def fit(graph: Graph, names: Iterable[str], requests: Iterable[Values], batch: int) -> dict[str, Basis]:
    """The basis of each tensor that is worth one, by name.

    Args:
        graph: the model.
        names: tensors that cross its cuts.
        requests: what to fit on.
        batch: rows of each.
    """
    found = {n: Moments(c) for n in names if (c := _channels(graph, n, batch))}
    for values in activations(graph, found, requests) if found else ():
        for name, value in values.items():
            found[name].add(value)
    return {n: basis for n, moments in found.items() if (basis := moments.basis())}


def _channels(graph: Graph, name: str, batch: int) -> int:
    """Channels of a tensor that a codec may be fitted to, else 0."""
    tensor = graph.tensors[name]
    shape = tensor.shape_at(batch)
    if (
        tensor.dynamic
        or tensor.dtype != "float32"
        or len(shape) < 2
        or name in (*graph.inputs, *graph.request_constants)
    ):
        return 0
    channels = shape[channel_axis(len(shape))]
    fits = LEAST_CHANNELS <= channels <= MOST_CHANNELS and 4 * math.prod(shape) >= LEAST_BYTES
    return channels if fits else 0


def activations(graph: Graph, names: Iterable[str], requests: Iterable[Values]) -> Iterator[dict[str, np.ndarray]]:
    """For each request these tensors of the unoptimised model, one request at a time.

    Raises:
        InputRefused: the model cannot take a request, such as an index out of range.
    """
    wanted = list(names)
    proto = Extractor(graph).slice(0, len(graph.operators))
    known = {o.name for o in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in wanted if n not in known)
    with tempfile.NamedTemporaryFile(dir=graph.directory, prefix=mark(".activations")) as file:
        file.write(proto.SerializeToString())
        file.flush()
        session = open_session(Path(file.name), "reference", threads=1, prepack=False)
    for request in requests:
        try:
            found = session.run(wanted, dict(request))
        except Exception as error:  # the binding raises bare exceptions
            raise InputRefused(f"the model refuses a request: {str(error).splitlines()[0]}") from error
        yield dict(zip(wanted, found, strict=True))


def keep(codec: Linear) -> str:
    """Write a codec's parameters to the cache; the hash of the file, which is its name there.

    Raises:
        StorageError: the disk is full or refuses.
    """
    data = io.BytesIO()
    np.save(data, codec.parameters(), allow_pickle=False)
    found = hashlib.sha256(data.getvalue()).hexdigest()
    if not kept(found).exists():
        with documents.replacing(kept(found)) as file:
            file.write(data.getvalue())
    return found


def kept(sha256: str) -> Path:
    """Where the parameters of that hash lie, if they are there."""
    return documents.cache_dir() / "codecs" / f"{sha256}.npy"
