"""The frameworks are extras: imported when a model of theirs comes by, and never before."""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from lamella.errors import MissingExtra

EXTRAS = {"torch": "torch", "onnxscript": "torch", "keras": "keras", "tensorflow": "keras"}
"""The extra that brings a package. Keras looks for tensorflow where it is told no backend and finds no torch."""


def require(package: str) -> Any:
    """The imported `package`.

    Raises:
        MissingExtra: it is not installed, or a package it needs is not.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise missing(error.name or package) from error


def missing(package: str) -> MissingExtra:
    """The error for an absent `package` of `EXTRAS`, or for one that these need."""
    top = package.partition(".")[0]
    extra = EXTRAS.get(top, "keras")
    return MissingExtra(f"the model needs {top}, which is not installed", try_=f"pip install 'lamella[{extra}]'")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' warnings, logs and prints: they are of their own insides, and what is wrong is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
