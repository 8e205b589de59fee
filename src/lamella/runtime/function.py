"""The manifest of one function, and the session that serves it.

Three ways to open a model, one per kind of plan: `packaged` (optimised offline, weights mapped, nothing left to do at
load), `plain` (what people deploy today: the user's file, one `InferenceSession`, spinning off) and `default` (the same
with every default). `portable` is the fallback of a package on a CPU or runtime version it was not optimised
for; `reference` is the graph unoptimised, which law 3 compares with.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import msgspec
import onnxruntime as ort

from lamella.documents import Document
from lamella.errors import ModelError, PackageError
from lamella.machine import Machine
from lamella.units import Dim, dim_at

if TYPE_CHECKING:
    from lamella.codecs import Codecs

Kind = Literal["packaged", "portable", "plain", "default", "reference"]
Layout = Literal["plain", "prepacked", "blocked"]
"""How a product's weights lie: as in the model, repacked by the runtime as it loads, or in the CPU's blocks on disk."""
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


class TensorSpec(msgspec.Struct, frozen=True):
    """A tensor a function takes or gives; dimensions that follow the batch are multiples of `N`."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    dynamic: bool = False
    """The shape depends on the data: the tensor travels as it comes, not in place."""

    def shape_at(self, batch: int = 1) -> tuple[int, ...]:
        """The shape for a batch."""
        return tuple(dim_at(d, batch) for d in self.shape)


class FittedFile(msgspec.Struct, frozen=True):
    """A codec that was fitted to one tensor, and the file beside the manifest that holds its mean and components."""

    tensor: str
    codec: str
    file: str


class Layouts(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a function's products with constant weights."""

    favour: str
    """Of `lamella package --favour`; empty where the plan says blocked."""
    block: int
    """Channels per block of the CPU it was made for; 0 where it has no blocked layout."""
    plain: int
    prepacked: int
    blocked: int
    left: dict[str, int]
    """How many could not be blocked, by reason."""
    slower: int
    """How many of the blocked and plain ones are more than 5 % slower than prepacked."""
    error: float
    """Largest difference from the graph before, over the range of the output."""
    refused: str = ""
    """Why the graph before ships instead."""


class Function(Document, frozen=True, kw_only=True):
    """`function.json`: how to open one function of a package."""

    name: str
    kind: Kind
    graph: str
    """File name of the ONNX graph, beside this manifest."""
    weights: str
    """File name of the mapped weights; empty where the graph holds them."""
    portable: str
    """File name of the graph for any CPU; empty where `graph` already is."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    threads: int
    prepack: bool
    machine: Machine
    """What `graph` was optimised on."""
    sha256: dict[str, str]
    """Hash of each file."""
    fitted: tuple[FittedFile, ...] = ()
    """Parameters of codecs that were fitted to a tensor it takes or gives."""
    layouts: Layouts | None = None
    """Where the function is planned blocked, or the package was made to favour something."""
    read_bytes: int = 0
    """How much of `weights`, from its beginning, `graph` reads: the rest is the portable graph's. 0 is all."""

    def codecs(self, directory: Path) -> Codecs:
        """The codecs of its tensors, those fitted to one read from its `directory`.

        Raises:
            CodecError: a file is missing or damaged.
        """
        from lamella.codecs import Codecs  # here, because a client of the store needs none
        from lamella.codecs.linear import read_linear

        return Codecs({f.tensor: read_linear(f.codec, directory / f.file) for f in self.fitted})


def session_options(kind: Kind, *, threads: int, prepack: bool) -> ort.SessionOptions:
    """How a function of this kind is opened.

    Arena on and memory pattern off: measured on the first two blocks of vgg19, a pattern holds the first run's buffers
    beside its own block (121 MB instead of 99), and without the arena nothing is reused (229 MB, 20 % slower). Planning
    which tensor takes whose buffer is off, too: it takes time that grows with the square of the graph, two thirds of
    what bert-base's session takes, and saves nothing that the arena, to which every tensor is given back, has not.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if kind != "default":
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if kind in ("packaged", "portable", "reference"):
        options.enable_mem_pattern = options.enable_mem_reuse = False
        as_written(options, kind, prepack=prepack)
    return options


def as_written(options: ort.SessionOptions, kind: Kind, *, prepack: bool) -> None:
    """Have a graph of a package opened as it was written: nothing optimised again, nothing rounded."""
    # 4-bit products in full precision: by default their activations are rounded to 8 bits, which breaks law 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    options.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
    options.graph_optimization_level = (
        ort.GraphOptimizationLevel.ORT_ENABLE_ALL if kind == "portable" else ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    )


def open_session(path: Path, kind: Kind, *, threads: int, prepack: bool) -> ort.InferenceSession:
    """The session of a function, by `session_options`.

    Raises:
        ModelError: the runtime refuses the file.
    """
    options = session_options(kind, threads=threads, prepack=prepack)
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding raises Fail, NoSuchFile, InvalidProtobuf, ... without a common base
        text = str(error).splitlines()[0][:400]
        if "Protobuf" in text or "NoSuchFile" in type(error).__name__:
            raise PackageError(f"{path.name} cannot be loaded: {text}", where=str(path)) from error
        raise ModelError(f"the runtime refuses {path.name}: {text}", where=str(path)) from error
