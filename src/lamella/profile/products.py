"""How long a product takes in each layout of its weights: measured once per machine and size, kept in a table.

Not per model: transformers are made of a handful of sizes, and the same ones come again in the next model. A few copies
of the product with weights of their own run one after the other, so that small weights are not simply in cache, as they
are not in a model; the layouts take turns, in fresh sessions, because where a session's memory happens to lie matters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper, numpy_helper

from lamella import documents
from lamella.documents import Document
from lamella.graph.blocked import block, rewrite
from lamella.graph.products import products
from lamella.graph.weights import write_weights
from lamella.machine import on_cores, this_machine
from lamella.profile.quiet import Load, quietly
from lamella.runtime.function import LOSSLESS, Layout, open_session
from lamella.scratch import scratch

PRODUCTS_VERSION = 3
"""Part of the table's name: raise it when times are measured in another way."""
COLD_BYTES = 32 << 20
"""Weights that the copies of a product hold together."""
MOST_COPIES = 64
MOST_FLOPS = 1 << 30
"""What they may take together: larger products compute longer than their weights are fetched."""
SESSIONS, RUNS = 3, 5
BUDGET_MS = 4000.0
"""When that has gone into runs, each further session gets one: a wide product of many rows takes a second each time."""
MOST_ROWS = 512
"""More rows are timed as so many: beyond, a product only computes, and the layouts' ratios stay."""


class ProductShape(msgspec.Struct, frozen=True, order=True):
    """[rows, inner] x [inner, outer] + bias on so many threads."""

    rows: int
    inner: int
    outer: int
    threads: int

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"[{self.rows}, {self.inner}] x [{self.inner}, {self.outer}], {threads}"


class ProductTimes(msgspec.Struct, frozen=True):
    """One product's median time per layout."""

    shape: ProductShape
    plain_ms: float
    prepacked_ms: float
    blocked_ms: float

    def of(self, layout: Layout) -> float:
        """In one layout, ms."""
        return {"plain": self.plain_ms, "prepacked": self.prepacked_ms, "blocked": self.blocked_ms}[layout]


Timer = Callable[[ProductShape], ProductTimes]


class Table(Document, frozen=True, kw_only=True):
    """What was measured on a machine."""

    times: tuple[ProductTimes, ...] = ()
    loads: tuple[Load, ...] = ()
    """Known loads beside them."""

    def of(self, shape: ProductShape) -> ProductTimes | None:
        """A product's times, where they are known."""
        return next((t for t in self.times if t.shape == shape), None)


def unknown(shapes: Iterable[ProductShape]) -> list[ProductShape]:
    """Those that the machine's table does not hold yet, each once."""
    held = {t.shape for t in _table().times}
    return [shape for shape in dict.fromkeys(shapes) if shape not in held]


def product_times(shape: ProductShape) -> ProductTimes:
    """From the machine's table, or measured now and kept there.

    What is kept is used for ever, so it is taken again, twice at most, while a known load says the machine is busy.

    Raises:
        StorageError: the table cannot be written.
    """
    table = _table()
    found = table.of(shape)
    if found:
        return found
    with on_cores(shape.threads):
        new, loads = quietly(partial(measure_product, shape), table.loads)
    others = (t for t in _table().times if t.shape != shape)  # somebody else may have measured meanwhile
    documents.write(_path(), Table(times=tuple(sorted((*others, new), key=lambda t: t.shape)), loads=loads))
    return new


def _path() -> Path:
    return documents.cache_dir() / "products" / f"{this_machine().key}-v{PRODUCTS_VERSION}.json"


def _table() -> Table:
    path = _path()
    return documents.read(path, Table, made_by=f"rm {path}") if path.exists() else Table()


def measure_product(shape: ProductShape) -> ProductTimes:
    """Medians of interleaved runs in fresh sessions.

    Requires a blocked layout (`graph.blocked.block`) whose block divides `inner`.
    """
    copies = _copies(shape)
    x = np.random.default_rng(0).standard_normal((shape.rows, shape.inner), np.float32)
    taken: dict[Layout, list[float]] = {layout: [] for layout in LOSSLESS}
    with scratch("products") as space:
        files = _files(shape, copies, space)
        for _ in range(SESSIONS):
            runs = {
                layout: _Run(open_session(file, "packaged", threads=shape.threads, prepack=layout == "prepacked"), x)
                for layout, file in files.items()
            }
            for _ in range(RUNS):
                for layout, run in runs.items():
                    taken[layout].append(run.ms())
                if sum(map(sum, taken.values())) > BUDGET_MS:
                    break
    plain, prepacked, blocked = (float(np.median(taken[layout])) / copies for layout in LOSSLESS)
    return ProductTimes(shape, plain, prepacked, blocked)


def _copies(shape: ProductShape) -> int:
    weight = shape.inner * shape.outer
    return max(1, min(MOST_COPIES, math.ceil(COLD_BYTES / (4 * weight)), MOST_FLOPS // (2 * weight * shape.rows)))


class _Run(NamedTuple):
    session: ort.InferenceSession
    x: np.ndarray

    def ms(self) -> float:
        start = time.perf_counter()
        self.session.run(None, {"x": self.x})
        return (time.perf_counter() - start) * 1000


def _files(shape: ProductShape, copies: int, space: Path) -> dict[Layout, Path]:
    """The copies as models, their weights outside as a package has them."""
    plain = _model(shape, copies)
    rng = np.random.default_rng(1)
    weights = {f"w{k}": rng.standard_normal((shape.inner, shape.outer), np.float32) for k in range(copies)}
    found, left = products(plain, weights, {"x": ("N", shape.inner)}, block())
    assert len(found) == copies, left
    blocked, packed = rewrite(plain, weights, found, block(), space / "packed.bin")
    file = _written(plain, weights, space / "plain.onnx")
    return {"plain": file, "prepacked": file, "blocked": _written(blocked, packed, space / "blocked.onnx")}


def _written(proto: ModelProto, weights: Mapping[str, np.ndarray], path: Path) -> Path:
    proto.graph.initializer.extend(write_weights(path.with_suffix(".bin"), weights)[1])
    path.write_bytes(proto.SerializeToString())
    return path


def _model(shape: ProductShape, copies: int) -> ModelProto:
    nodes = [helper.make_node("Gemm", ["x", f"w{k}", "b"], [f"y{k}"]) for k in range(copies)]
    value = helper.make_tensor_value_info
    return helper.make_model(
        helper.make_graph(
            nodes,
            "products",
            [value("x", TensorProto.FLOAT, ["N", shape.inner])],
            [value(f"y{k}", TensorProto.FLOAT, ["N", shape.outer]) for k in range(copies)],
            [numpy_helper.from_array(np.zeros(shape.outer, np.float32), "b")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
