"""The table of models, and writing one to disk."""

from __future__ import annotations

import contextlib
import difflib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lamella import errors
from lamella.limits.owner import mark
from lamella.zoo import convolution, graphs, inception, light, prenorm, recurrent, tabular, transformer, wheels
from lamella.zoo.draft import Blueprint
from lamella.zoo.spec import InputSpec, ZooModel

if TYPE_CHECKING:
    import onnx

RECIPE = 1
"""Part of every cached file's name: raise it when any recipe's bytes change, and old files are left behind."""

_OWN_LICENCE = "Apache-2.0"

Build = Callable[[str], "onnx.ModelProto | Blueprint"]
"""From a model's name to the model."""


@dataclass(frozen=True, slots=True)
class _Recipe:
    model: ZooModel
    build: Build


def _own(name: str, summary: str, inputs: tuple[InputSpec, ...], build: Build) -> _Recipe:
    return _Recipe(ZooModel(name, summary, _OWN_LICENCE, inputs, None), build)


def _light(name: str, file: str, graph_input: str, summary: str) -> _Recipe:
    model = ZooModel(name, summary, "Apache-2.0", light.inputs(graph_input), "onnx")
    return _Recipe(model, partial(light.build, file=file))


class _Sizes(Protocol):
    """What every family's sizes know."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]: ...

    def build(self, name: str) -> Blueprint: ...


_SIZES: tuple[tuple[str, str, _Sizes], ...] = (
    ("bert-base", "BERT base encoder, 12 layers, 128 tokens: its mask feeds every layer", transformer.BASE),
    ("bert-tiny", "BERT encoder of 2 layers, for tests", transformer.TINY),
    ("lstm", "4 LSTM layers of width 1024 over 64 steps: heavy weights, tiny activations", recurrent.BASE),
    ("lstm-tiny", "2 LSTM layers of width 64 over 8 steps, for tests", recurrent.TINY),
    (
        "inception-v3",
        "Inception v3 at 299 x 299, 23.8 M parameters as published (no auxiliary head): factorised convolutions",
        inception.V3,
    ),
    ("inception-v3-tiny", "Inception v3 at 75 x 75 with a sixteenth of the widths, for tests", inception.V3_TINY),
    (
        "vit-large",
        "ViT-L/16 at 224 x 224, 304 M parameters as published: 24 equal layers, one tensor between them",
        prenorm.VIT_LARGE,
    ),
    ("vit-tiny", "a ViT of 2 layers on 32 x 32 images, for tests (not the published ViT-Ti)", prenorm.VIT_TINY),
    (
        "gpt2-medium",
        "GPT-2 medium's prefill of 128 tokens, 354 M parameters (published: 355 M, with 1024 positions): the word "
        "table opens and closes it, stored once",
        prenorm.GPT2_MEDIUM,
    ),
    ("gpt2-tiny", "a GPT-2 of 2 layers over 16 tokens, for tests", prenorm.GPT2_TINY),
    (
        "lstm-2048",
        "4 LSTM layers of width 2048 over 32 steps, 134 M parameters: half a gigabyte read at every step",
        recurrent.WIDE,
    ),
    (
        "bilstm",
        "2 LSTM layers of width 1024 in both directions over 64 steps, 42 M parameters: no step is final before the "
        "last",
        recurrent.BOTH,
    ),
    ("bilstm-tiny", "2 LSTM layers of width 32 in both directions over 8 steps, for tests", recurrent.BOTH_TINY),
    (
        "gru-seq2seq",
        "GRU encoder and decoder with attention over 16 steps, 79 M parameters: two inputs that meet halfway",
        recurrent.TRANSLATOR,
    ),
    ("gru-seq2seq-tiny", "GRU encoder and decoder of width 32, for tests", recurrent.TRANSLATOR_TINY),
    (
        "gcn",
        "3 graph convolutions over the nodes of a graph of Cora's size, 1.0 M parameters beside 7.3 M entries of the "
        "graph: little weight, large activations",
        graphs.CORA,
    ),
    ("gcn-tiny", "3 graph convolutions over 60 nodes, for tests", graphs.TINY),
    (
        "dlrm",
        "DLRM, 26 tables of Criteo's sizes (capped), 261 M parameters: 1 GB, of which a request reads 26 rows",
        tabular.DLRM,
    ),
    ("dlrm-tiny", "DLRM of 4 small tables, for tests", tabular.DLRM_TINY),
    (
        "deepfm",
        "DeepFM, 26 fields of Criteo's sizes (capped), 87 M parameters: two tables per field",
        tabular.DEEPFM,
    ),
    ("deepfm-tiny", "DeepFM of 4 small fields, for tests", tabular.DEEPFM_TINY),
)
_RECIPES = (
    *(_light(*row) for row in light.FILES),
    *(_own(name, summary, sizes.inputs, sizes.build) for name, summary, sizes in _SIZES),
    _own("cnn-tiny", "a residual CNN on 32 x 32 images, for tests", convolution.INPUTS, convolution.build),
)
_ENTRIES: tuple[_Recipe | wheels.WheelFile, ...] = (*_RECIPES, *wheels.FILES)
_TABLE = {entry.model.name: entry for entry in _ENTRIES}


def names() -> tuple[str, ...]:
    """Every model's name: built ones first, then those inside wheels."""
    return tuple(_TABLE)


def get(name: str) -> ZooModel:
    """The model called `name`.

    Raises:
        errors.ModelError: there is none; says the closest name and the list.
    """
    return _entry(name).model


def materialise(name: str, cache: Path) -> Path:
    """The path of a self-contained .onnx file of the model.

    A built model is written once, to `cache`, and found there later; the write is atomic, so a reader or a second
    writer never meets half a file. A wheel's model stays where the wheel put it.

    Raises:
        errors.ModelError: unknown name, or the wheel it comes from is absent.
        errors.StorageError: the disk refused; nothing is left behind.
    """
    entry = _entry(name)
    if isinstance(entry, wheels.WheelFile):
        return wheels.locate(entry.package, entry.path, entry.model.requires or entry.package, name)
    path = cache / f"{name}.v{RECIPE}.onnx"
    if not path.is_file():
        size_bytes, content = _content(entry.build(name))
        with _storage_errors(path, size_bytes):
            _write(path, content)
    return path


def _content(model: onnx.ModelProto | Blueprint) -> tuple[int, Iterable[bytes | memoryview]]:
    """The size of the model's file, and its bytes in pieces."""
    if isinstance(model, Blueprint):
        return model.size_bytes, model.stream()
    content = model.SerializeToString(deterministic=True)
    return len(content), [content]


def _entry(name: str) -> _Recipe | wheels.WheelFile:
    if (entry := _TABLE.get(name)) is not None:
        return entry
    closest = difflib.get_close_matches(name, _TABLE, n=1)
    raise errors.ModelError(
        f"no zoo model is called {name!r}" + (f"; did you mean {closest[0]!r}?" if closest else ""),
        where="the model zoo",
        try_="one of " + ", ".join(_TABLE),
    )


def _write(path: Path, content: Iterable[bytes | memoryview]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `tempfile`: its files are private to the user, and a cache may be shared.
    partial_file = path.with_name(mark(f".{path.name}") + str(threading.get_ident()))
    try:
        with partial_file.open("wb") as file:
            file.writelines(content)
        os.replace(partial_file, path)
    finally:
        with contextlib.suppress(OSError):  # gone after the replace; else the first error is the one to report
            partial_file.unlink()


@contextlib.contextmanager
def _storage_errors(path: Path, size_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.StorageError(
            f"could not write {size_bytes / 1e6:.0f} MB: {error.strerror or error}",
            where=str(path),
            try_="free some space, or choose another cache folder",
        ) from error
