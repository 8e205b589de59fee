"""How each tensor of a span is divided, and nodes written accordingly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import NodeProto

from lamella.errors import ShardRefused
from lamella.graph.shard.draft import Draft, Ends, Task, refusal


@dataclass(frozen=True)
class Part:
    """A tensor of which each shard holds a range of one axis. `bounds` are where the ranges end, in order."""

    axis: int
    bounds: tuple[int, ...]

    def ends(self, shard: int) -> Ends:
        """Of the shard's range."""
        return self.bounds[shard], self.bounds[shard + 1]


@dataclass(frozen=True)
class Sum:
    """A tensor of which each shard holds a summand."""


Division = Part | Sum | None
"""None: every shard holds the whole tensor."""


class Misaligned(ShardRefused):
    """The division would fit if it fell between groups of `granule` entries (a head's columns, a group's channels)."""

    def __init__(self, refused: ShardRefused, granule: int) -> None:
        """Says what `refused` does."""
        super().__init__(refused.message, where=refused.where)
        self.granule = granule


class Divided(Draft):
    """A draft in which every tensor's division is known."""

    def __init__(self, task: Task, granule: int) -> None:
        """Divisions start between groups of `granule` entries, where an axis consists of such."""
        super().__init__(task)
        self.granule = granule
        self.known: dict[str, Division] = {}

    def division(self, tensor: str) -> Division:
        """How it is divided; what comes from outside is whole."""
        return self.known.get(tensor)

    def part(self, node: NodeProto, position: int = 0) -> Part:
        """The division of an input that must be divided along an axis."""
        held = self.division(node.input[position])
        if not isinstance(held, Part):
            raise refusal(
                node, "takes a partial sum" if held else "has its divided input at another place than the first"
            )
        return held

    def even(self, node: NodeProto, size: int) -> tuple[int, ...]:
        """Bounds of ranges of nearly the same length."""
        granule = self.granule if size % self.granule == 0 else 1
        pieces = size // granule
        if pieces < self.count:
            raise refusal(node, f"has {pieces} pieces to divide among {self.count} shards")
        return tuple(granule * (k * pieces // self.count) for k in range(self.count + 1))

    def emit(
        self,
        node: NodeProto,
        inputs: Callable[[int], Sequence[str]],
        division: Division,
        attributes: Callable[[int], Mapping[str, Any]] | None = None,
    ) -> None:
        """The node in every shard, with that shard's inputs; what it gives is divided as said."""
        self.known.update({n: division for n in node.output if n})
        for shard in range(self.count):
            self.copy(shard, node, inputs(shard), attributes(shard) if attributes else None)

    def summed(self, node: NodeProto, inputs: Callable[[int], Sequence[str]]) -> None:
        """The node in every shard, each of which gives a summand.

        Raises:
            ShardRefused: the runtime adds no such numbers.
        """
        dtype = self.task.dtypes[node.output[0]]
        if not dtype.startswith("float"):
            raise refusal(node, f"gives {dtype}, whose parts the runtime cannot add")
        self.emit(node, inputs, Sum())

    def same(self, node: NodeProto, division: Division) -> None:
        """The node in every shard, on what the shard holds of its inputs."""
        self.emit(node, lambda s: [self.name(n, s) for n in node.input], division)

    def share(self, tensor: str, part: Part, shard: int) -> str:
        """The shard's range of a tensor: what it holds, or cut out of the whole."""
        if self.division(tensor) is not None:
            return self.name(tensor, shard)
        return self.cut(tensor, part.axis, part.ends(shard), shard)
