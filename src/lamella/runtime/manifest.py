"""The manifest of one function: what it takes and gives, which files it is, and how they are opened.

Three ways to open a model, one per kind of plan: `packaged` (optimised offline, weights mapped, nothing left to do at
load), `plain` (what people deploy today: the user's file, one `InferenceSession`, spinning off) and `default` (the same
with every default). `portable` is the fallback of a package on a CPU or runtime version it was not optimised
for; `reference` is the graph unoptimised, which law 3 compares with.

Apart from the session that it describes (`runtime.function`), since the store's daemon keeps manifests and opens none:
onnxruntime would be two thirds of its memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import msgspec

from lamella.documents import Document
from lamella.machine import Machine
from lamella.units import Dim, dim_at

if TYPE_CHECKING:
    from lamella.codecs import Codecs

Kind = Literal["packaged", "portable", "plain", "default", "reference"]
Layout = Literal["plain", "prepacked", "blocked", "int8"]
"""How a product's weights lie: as in the model, repacked by the runtime as it loads, in the CPU's blocks on disk, or as
8-bit integers, which it then multiplies."""
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
LOSSLESS: tuple[Layout, ...] = tuple(layout for layout in LAYOUTS if layout != "int8")


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
