"""The nodes of several shards while they are written: names, ranges of tensors, copies of nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from lamella.errors import ShardRefused
from lamella.graph.normalise import subgraphs
from lamella.units import Dim

Ends = tuple[int, int]
"""First, and one past the last."""

CHANCE = frozenset("RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli".split())
"""Kinds that would give each shard another answer."""

ELEMENTWISE = frozenset(
    "Relu LeakyRelu Sigmoid Tanh Elu Selu Celu Softplus Softsign HardSigmoid HardSwish Clip Erf Gelu Mish Abs Neg Sqrt "
    "Exp Log Floor Ceil Round Sin Cos Reciprocal Sign Not Dropout ThresholdedRelu IsNaN Cast Identity".split()
)
"""Kinds that work on each element of one tensor; what else they take are scalars."""

BROADCAST = frozenset(
    "Add Sub Mul Div Pow Where Max Min Sum Mean PRelu Equal Greater Less GreaterOrEqual LessOrEqual And Or Xor".split()
)
"""Kinds that work on each element of several tensors, under numpy's broadcasting."""


@dataclass(frozen=True)
class Task:
    """Operators to divide."""

    nodes: Sequence[NodeProto]
    outputs: Sequence[str]
    """What is used outside of them."""
    shapes: Mapping[str, tuple[Dim, ...]]
    """Of every tensor and constant."""
    dtypes: Mapping[str, str]
    """Of every tensor."""
    weights: Mapping[str, np.ndarray]
    shards: int
    opset: int


@dataclass(frozen=True)
class Sharded:
    """Operators as shards: the nodes of each, the nodes that join them, and the constants that are new."""

    shards: tuple[tuple[NodeProto, ...], ...]
    join: tuple[NodeProto, ...]
    weights: dict[str, np.ndarray]
    repeated: frozenset[str] = frozenset()
    """What every shard computes whole: outputs of the operators that are not divided."""


class Draft:
    """What the shards of a task consist of so far."""

    def __init__(self, task: Task) -> None:
        """Empty shards."""
        self.task = task
        self.shapes, self.weights, self.count = task.shapes, task.weights, task.shards
        self.inside = {n for node in task.nodes for n in node.output if n}
        self.made: list[list[NodeProto]] = [[] for _ in range(task.shards)]
        self.new: dict[str, np.ndarray] = {}
        self._cuts: set[str] = set()

    def name(self, tensor: str, shard: int) -> str:
        """What a tensor is called within a shard; what comes from outside keeps its name."""
        return f"{tensor}/{shard + 1}of{self.count}" if tensor in self.inside else tensor

    def size(self, tensor: str, axis: int) -> int:
        """Length of an axis, which must be bound."""
        length = self.shapes[tensor][axis]
        if not isinstance(length, int):
            raise ShardRefused(f"axis {axis} of {tensor!r} is the free batch axis")
        return length

    def ints(self, *values: int) -> str:
        """A new constant, a vector of int64."""
        return self._constant(np.array(values, np.int64))

    def scalar(self, value: object, dtype: np.dtype[Any]) -> str:
        """A new constant without axes."""
        return self._constant(np.array(value, dtype))

    def _constant(self, values: np.ndarray) -> str:
        name = f"lamella/{values.dtype.name}/{values.tolist()}"
        self.new[name] = values
        return name

    def cut(self, tensor: str, axis: int, ends: Ends, shard: int, held_from: int = 0) -> str:
        """A range of a tensor along one axis: a new constant, or the output of a new Slice in the shard.

        Args:
            tensor: a constant; or what the shard holds under this name, from `held_from` on.
            axis: along which.
            ends: of the range, in the whole tensor.
            shard: the shard that wants it.
            held_from: where in the whole tensor begins what the shard holds.
        """
        if tensor in self.weights:
            name = f"{tensor}[{axis}:{ends[0]}:{ends[1]}]"
            index = [slice(None)] * len(self.shapes[tensor])
            index[axis] = slice(*ends)
            self.new[name] = self.weights[tensor][tuple(index)]
            return name
        mine = f"{self.task.outputs[0]}/{shard + 1}of{self.count}"  # others may cut the same range of the same tensor
        name = f"{tensor}[{axis}:{ends[0]}:{ends[1]}]/{mine}"
        if name not in self._cuts:
            self._cuts.add(name)
            first, last = ends[0] - held_from, ends[1] - held_from
            held = self.name(tensor, shard)
            if self.task.opset < 10:
                self.add(shard, "Slice", [held], name, starts=[first], ends=[last], axes=[axis])
            else:
                self.add(shard, "Slice", [held, self.ints(first), self.ints(last), self.ints(axis)], name)
        return name

    def add(self, shard: int, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """A new node in a shard; its output."""
        self.made[shard].append(helper.make_node(kind, inputs, [output], name=f"{kind} {output}", **attributes))
        return output

    def copy(
        self, shard: int, node: NodeProto, inputs: Sequence[str], attributes: Mapping[str, Any] | None = None
    ) -> None:
        """A node as a shard has it: its own inputs, and other values of some attributes (None: left out)."""
        changed = attributes or {}
        new = NodeProto(op_type=node.op_type, domain=node.domain, name=f"{node.name}/{shard + 1}of{self.count}")
        new.input.extend(inputs)
        new.output.extend(self.name(n, shard) if n else "" for n in node.output)
        new.attribute.extend(a for a in node.attribute if a.name not in changed)
        new.attribute.extend(helper.make_attribute(k, v) for k, v in changed.items() if v is not None)
        self.made[shard].append(new)

    def finish(self, join: Sequence[NodeProto], whole: Iterable[str] = ()) -> Sharded:
        """The shards, without what neither they nor `join` read.

        Args:
            join: nodes behind the shards.
            whole: which tensors of the task every shard holds whole.
        """
        wanted = {n for node in join for n in node.input}
        shards = tuple(_alive(nodes, wanted) for nodes in self.made)
        kept = {n for node in shards[-1] for n in node.output}  # what the join takes whole, only the first shard gives
        repeated = frozenset(n for n in whole if self.name(n, self.count - 1) in kept)
        return Sharded(shards, tuple(join), self.new, repeated)


def _alive(nodes: Sequence[NodeProto], wanted: set[str]) -> tuple[NodeProto, ...]:
    used, kept = set(wanted), []
    for node in reversed(nodes):
        if used.intersection(node.output):
            kept.append(node)
            used.update(n for n in node.input if n)
    return tuple(reversed(kept))


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """An attribute's value."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def kind_of(node: NodeProto) -> str:
    """The operator's kind, with its domain where that is not ONNX's own."""
    return str(node.op_type) if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def refusal(node: NodeProto, why: str) -> ShardRefused:
    """Why an operator cannot be divided."""
    return ShardRefused(f"{kind_of(node)} {node.name!r} {why}", where=f"operator {node.name}")


def check_repeatable(node: NodeProto) -> None:
    """Refuse what several shards cannot each do.

    Raises:
        ShardRefused: the operator draws random numbers, or holds subgraphs.
    """
    if node.op_type in CHANCE:
        raise refusal(node, "draws random numbers: each shard would draw others")
    if any(True for _ in subgraphs(node)):
        raise refusal(node, "holds subgraphs")
