"""Which units run on 8-bit integers in slices of the layout `int8`, and what that spares.

Such a slice runs those units so that can and may (`validation.precision`); the others are plain in it. So the layout is
a mixture, known unit by unit, and `Times` and `Memory` ask here which of two measurements of a unit counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from functools import cached_property

from lamella.graph.model import Graph
from lamella.profile.document import Profile, Unit
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
        return sum(self.spared_bytes[first:last]) / MB

    @cached_property
    def spared_bytes(self) -> list[int]:
        """What each unit's weights take less; nothing of what another unit reads, too."""
        return [
            self._spared(unit, shared) if chosen else 0
            for unit, shared, chosen in zip(self.profile.units, self._shared_bytes(), self.units, strict=True)
        ]

    def _spared(self, unit: Unit, shared: int) -> int:
        held = unit.memory_in("int8").weight_bytes
        return max(0, unit.weight_bytes - (unit.weight_bytes if held is None else held) - shared)

    def _shared_bytes(self) -> list[int]:
        """Of each unit's weights those that another reads, too."""
        read = [
            {name for op in self.graph.operators[unit.first : unit.last] for name in op.weights}
            for unit in self.profile.units
        ]
        readers = Counter(name for names in read for name in names)
        return [sum(self.graph.weights[name].bytes for name in names if readers[name] > 1) for names in read]
