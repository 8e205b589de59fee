"""Units that several layers speak: megabytes, and dimensions that follow the batch."""

from __future__ import annotations

MB = 2**20
"""Memory is counted in MB as the platforms count it, which is MiB."""

Dim = int | str
"""A bound dimension, or a multiple of the free batch axis written `N` or `12*N`."""

BATCH = "N"

DIE_WITH_PARENT = "LAMELLA_DIE_WITH_PARENT"
"""Environment variable: the kernel kills the worker when the thread that spawned it ends."""

HASTE = "LAMELLA_HASTE"
"""Environment variable: the worker is ready before its weights are in memory and without a run to warm up, for a
request waits already."""


def dim_at(dim: Dim, batch: int) -> int:
    """The value of a dimension when the free batch axis is `batch`."""
    if isinstance(dim, int):
        return dim
    factor, _, _ = dim.rpartition("*")
    return int(factor or 1) * batch


def digits(value: float, decimals: int) -> str:
    """A number with so many decimals; with two digits where those would leave fewer, and without dozens of them."""
    if abs(value) >= 1e9:
        return f"{value:.3g}"
    if value and abs(value) < 10.0 ** (1 - decimals):
        lead = int(f"{value:.1e}".partition("e")[2])
        return f"{value:.{1 - lead}f}" if lead > -8 else f"{value:.2g}"
    return f"{value:.{decimals}f}"
