"""MOPAR's graph simplification, on units: runs of similar neighbours become one.

Folding element-wise operators and collapsing branches happen when units are made (`graph.cuts`). Here neighbours merge
while serving them as one function wastes little: with M the memory a function of them needs and t its time,
waste(u,v) = (M(u+v)·(t(u)+t(v)) − M(u)·t(u) − M(v)·t(v)) / (M(u)·t(u) + M(v)·t(v)), and two neighbours are similar when
waste <= 0.02. Most similar pairs merge first. The measure is ours: the paper does not give its own.
"""

from __future__ import annotations

from lamella.plan.pricing.predict import SliceModel

SIMILAR = 0.02
"""Largest waste of memory-time at which neighbours count as similar."""


def waste(model: SliceModel, first: int, middle: int, last: int) -> float:
    """Share of memory-time wasted by serving units first..middle and middle..last as one function."""

    def memory_time(i: int, j: int) -> float:
        peak, law = model.memory_mb(i, j, layout="plain")
        return max(peak, law) * model.compute_ms(i, j, layout="plain", threads=1)

    apart = memory_time(first, middle) + memory_time(middle, last)
    joined_mb = max(model.memory_mb(first, last, layout="plain"))
    time = model.compute_ms(first, middle, layout="plain", threads=1) + model.compute_ms(
        middle, last, layout="plain", threads=1
    )
    return joined_mb * time / apart - 1


def merge_similar(model: SliceModel) -> list[int]:
    """Positions (unit indices, both ends included) that remain after merging runs of similar units."""
    marks = list(range(model.units + 1))
    while len(marks) > 2:
        wastes = [waste(model, *marks[i : i + 3]) for i in range(len(marks) - 2)]
        best = min(range(len(wastes)), key=wastes.__getitem__)
        if wastes[best] > SIMILAR:
            break
        del marks[best + 1]
    return marks
