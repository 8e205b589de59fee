"""Which units run on 8-bit integers in slices of the layout `int8`, and what their weights take there.

Such a slice runs those units so that can and may (`validation.precision`); the others are plain in it. So the layout is
a mixture, known unit by unit, and `Times` and `Memory` ask here which of two measurements of a unit counts.

A weight is in a package once, however many units read it; twice where one has it on integers and another as it is. Of
what a unit has on integers the profile knows the sum, so each of its weights is taken to shrink by the unit's share.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property, lru_cache

import numpy as np

from lamella.graph.model import Graph
from lamella.profile.document import Profile
from lamella.runtime.function import Layout
from lamella.units import MB


class Quantised:
    """Of the units of a profile."""

    def __init__(self, graph: Graph, profile: Profile, admitted: Collection[int]) -> None:
        """Those that can and may.

        Args:
            graph: the model.
            profile: of it; says which units can.
            admitted: units that may.
        """
        self.graph, self.profile = graph, profile
        self.units = [bool(unit.int8) and number in admitted for number, unit in enumerate(profile.units)]
        """Whether each one does."""

    def layout(self, unit: int, layout: Layout) -> Layout:
        """That of a unit in a slice that has a layout."""
        return "plain" if layout == "int8" and not self.units[unit] else layout

    def products(self, first: int, last: int) -> tuple[str, ...]:
        """What the products of a slice give that run on 8-bit integers where it does."""
        units = zip(self.profile.units[first:last], self.units[first:last], strict=True)
        return tuple(name for unit, chosen in units if chosen for name in unit.int8)

    def spared_mb(self, first: int, last: int, layout: Layout) -> float:
        """What a slice's weights take less on 8-bit integers, MB; 0 in another layout."""
        if layout != "int8":
            return 0.0
        units = self.profile.units
        whole = self.graph.weight_bytes(units[first].first, units[last - 1].last)
        return (whole - float(self.bytes_from(first)[last - first - 1])) / MB

    @cached_property
    def unit_bytes(self) -> list[int]:
        """Of the weights of each unit in such a slice."""
        found = []
        for unit, own in zip(self.profile.units, self.units, strict=True):
            held = unit.memory_in("int8").weight_bytes if own else None
            found.append(unit.weight_bytes if held is None else held)
        return found

    @lru_cache(maxsize=4096)  # noqa: B019 - a model lives as long as one planning run
    def bytes_from(self, first: int) -> np.ndarray:
        """Of the weights of such slices that begin with a unit, by their ends. [units - first]."""
        plain: set[str] = set()
        integers: dict[str, float] = {}
        total, found = 0.0, []
        for number in range(first, len(self.units)):
            sizes, inner = self._read[number]
            if self.units[number]:
                whole = self.profile.units[number].weight_bytes
                share = self.unit_bytes[number] / whole if whole else 1.0
                total += share * inner
                for name, size in sizes.items():
                    total += max(0.0, share * size - integers.get(name, 0.0))
                    integers[name] = max(share * size, integers.get(name, 0.0))
            else:
                total += inner + sum(size for name, size in sizes.items() if name not in plain)
                plain.update(sizes)
            found.append(total)
        return np.array(found)

    @cached_property
    def _read(self) -> list[tuple[dict[str, int], int]]:
        """Weights of each unit by name, and bytes of those that only its own operators hold inside."""
        found = []
        for unit in self.profile.units:
            operators = self.graph.operators[unit.first : unit.last]
            sizes = {name: self.graph.weights[name].bytes for op in operators for name in op.weights}
            found.append((sizes, sum(op.inner_bytes for op in operators)))
        return found
