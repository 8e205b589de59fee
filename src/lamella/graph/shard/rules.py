"""How an operator carries a division on: for each kind a rule that writes it in every shard, or refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd, prod

from onnx import NodeProto

from lamella.graph.shard.division import Divided, Division, Misaligned, Part, Sum
from lamella.graph.shard.draft import BROADCAST, ELEMENTWISE, attribute, kind_of, refusal
from lamella.units import dim_at

Rule = Callable[[Divided, NodeProto], None]

ANY_BATCH = 7919
"""A batch that no bound dimension is taken for when shapes are compared."""

LINEAR = frozenset("Identity Neg Dropout Reshape Flatten Squeeze Unsqueeze Transpose".split())
"""Kinds that do to a sum what they do to its summands."""


ALIKE = BROADCAST | {"MatMul", "Concat"}
"""Kinds of which any input may be divided; of the others the first."""


def follow(on: Divided, node: NodeProto) -> None:
    """Write an operator of which an input is divided.

    Raises:
        ShardRefused: it has no rule, or its rule does not allow this division.
    """
    kind = kind_of(node)
    held = {type(on.division(n)) for n in node.input if n} - {type(None)}
    if held == {Sum} and kind in LINEAR:
        on.same(node, Sum())
    elif Sum in held:
        _sums(on, node)
    elif kind not in ALIKE and any(on.division(n) for n in node.input[1:] if n):
        raise refusal(node, "has divided inputs beside its data")
    elif kind in RULES:
        RULES[kind](on, node)
    else:
        raise refusal(node, "has no rule to follow a division through it")


def _sums(on: Divided, node: NodeProto) -> None:
    """Sums are added summand by summand, what is whole in the first shard alone; scaled, each summand is."""
    held: list[Division] = [on.division(n) for n in node.input]
    kind, summands = kind_of(node), sum(isinstance(d, Sum) for d in held)
    if any(isinstance(d, Part) for d in held):
        raise refusal(node, "takes a partial sum and a part")
    if kind == "Mul" and summands == 1:
        on.same(node, Sum())
        return
    if kind not in ("Add", "Sum"):
        raise refusal(node, "takes a partial sum: the span has to end before it")
    if any(on.shapes[n] != on.shapes[node.output[0]] for n, d in zip(node.input, held, strict=True) if d):
        raise refusal(node, "broadcasts a partial sum")
    on.known[node.output[0]] = Sum()
    for shard in range(on.count):
        takes = [on.name(n, shard) for n, d in zip(node.input, held, strict=True) if d or shard == 0]
        on.add(shard, "Sum", takes, on.name(node.output[0], shard))


def _elementwise(on: Divided, node: NodeProto) -> None:
    part = on.part(node)
    if any(n and prod(dim_at(d, 1) for d in on.shapes[n]) > 1 for n in node.input[1:]):
        raise refusal(node, "takes more than scalars beside its data")
    on.same(node, part)


def _broadcast(on: Divided, node: NodeProto) -> None:
    rank = len(on.shapes[node.output[0]])

    def behind(name: str) -> int:
        return rank - len(on.shapes[name])

    parts = {Part(d.axis + behind(n), d.bounds) for n in node.input if isinstance(d := on.division(n), Part)}
    if len(parts) != 1:
        raise refusal(node, "takes inputs that are divided differently")
    part = parts.pop()

    def taken(name: str, shard: int) -> str:
        axis = part.axis - behind(name)
        broadcast = axis < 0 or on.shapes[name][axis] == 1
        return on.name(name, shard) if broadcast else on.share(name, Part(axis, part.bounds), shard)

    on.emit(node, lambda s: [taken(n, s) for n in node.input], part)


def _matmul(on: Divided, node: NodeProto) -> None:
    a, b = node.input
    rank_a, rank_b, rank = len(on.shapes[a]), len(on.shapes[b]), len(on.shapes[node.output[0]])
    if rank_a < 2 or rank_b < 2:
        raise refusal(node, "takes a vector")
    of_a, of_b = on.division(a), on.division(b)
    assert not isinstance(of_a, Sum)
    assert not isinstance(of_b, Sum)
    inner = {d.bounds for d, axis in ((of_a, rank_a - 1), (of_b, rank_b - 2)) if d and d.axis == axis}
    outer = {
        Part(d.axis + rank - own, d.bounds)
        for d, own, summed in ((of_a, rank_a, rank_a - 1), (of_b, rank_b, rank_b - 2))
        if d and d.axis != summed
    }
    if len(inner) + len(outer) != 1:
        raise refusal(node, "takes inputs that are divided differently")
    if inner:
        (bounds,) = inner
        left, right = Part(rank_a - 1, bounds), Part(rank_b - 2, bounds)
        on.summed(node, lambda s: [on.share(a, left, s), on.share(b, right, s)])
        return
    (part,) = outer

    def taken(name: str, own: int, shard: int) -> str:
        axis = part.axis - (rank - len(on.shapes[name]))
        others = part.axis >= rank - 2 and part.axis != own  # the columns of the right input do not touch the left
        whole = others or axis < 0 or on.shapes[name][axis] == 1
        return on.name(name, shard) if whole else on.share(name, Part(axis, part.bounds), shard)

    on.emit(node, lambda s: [taken(a, rank - 2, s), taken(b, rank - 1, s)], part)


def _gemm(on: Divided, node: NodeProto) -> None:
    part = on.part(node)
    if node.input[1] not in on.weights:
        raise refusal(node, "computes both of its inputs")
    if part.axis == (0 if attribute(node, "transA", 0) else 1):
        _summed(on, node, part, 1 if attribute(node, "transB", 0) else 0)
        return
    if any(len(on.shapes[n]) == 2 and on.shapes[n][0] != 1 for n in node.input[2:] if n):
        raise refusal(node, "has another bias for each row")
    on.same(node, Part(0, part.bounds))


def _summed(on: Divided, node: NodeProto, part: Part, axis: int) -> None:
    """Input 0 divided along what is summed over: the matching range of weights, the bias in the first shard only."""
    data, weights, *bias = node.input
    matching = Part(axis, part.bounds)
    nothing = []
    if node.op_type == "Gemm" and on.task.opset < 11:  # there the bias cannot be left out
        nothing = [on.scalar(0, on.weights[weights].dtype)]

    def taken(shard: int) -> list[str]:
        added = nothing if shard else [on.name(n, shard) for n in bias]
        return [on.name(data, shard), on.share(weights, matching, shard), *added]

    on.summed(node, taken)


def _conv(on: Divided, node: NodeProto) -> None:
    part, group = on.part(node), attribute(node, "group", 1)
    if part.axis != 1:
        raise refusal(node, "is divided along another axis than channels")
    if node.input[1] not in on.weights:
        raise refusal(node, "computes its weights")
    if group == 1:
        _summed(on, node, part, 1)
        return
    each = on.size(node.input[0], 1) // group
    if any(b % each for b in part.bounds):
        raise Misaligned(refusal(node, f"is divided elsewhere than between its {group} groups"), each)
    grouped_conv(on, node, tuple(b // each for b in part.bounds))


def grouped_conv(on: Divided, node: NodeProto, groups: tuple[int, ...]) -> None:
    """A grouped convolution whose groups are divided at these bounds."""
    count = groups[-1]
    taken, given = (on.size(node.input[0], 1) // count, on.size(node.input[1], 0) // count)
    data, out = Part(1, tuple(g * taken for g in groups)), Part(1, tuple(g * given for g in groups))
    if any(n and n not in on.weights for n in node.input[1:]):
        raise refusal(node, "computes its weights")
    on.emit(
        node,
        lambda s: [
            on.share(node.input[0], data, s),
            *(on.cut(n, 0, out.ends(s), s) if n else "" for n in node.input[1:]),
        ],
        out,
        lambda s: {"group": groups[s + 1] - groups[s]},
    )


def _per_channel(on: Divided, node: NodeProto) -> None:
    """BatchNormalization, InstanceNormalization: what they take beside their data is per channel."""
    part = on.part(node)
    if part.axis != 1:
        raise refusal(node, "is divided along another axis than channels")
    channels = Part(0, part.bounds)
    on.emit(
        node,
        lambda s: [on.name(node.input[0], s), *(on.share(n, channels, s) for n in node.input[1:])],
        part,
    )


def _pool(on: Divided, node: NodeProto) -> None:
    part = on.part(node)
    if part.axis != 1 or len([n for n in node.output if n]) > 1:
        raise refusal(node, "is divided along another axis than channels, or gives indices")
    on.same(node, part)


def _apart_from(on: Divided, node: NodeProto, axes: Sequence[int]) -> Part:
    """The division of an operator that mixes values along `axes`, among which it must not be."""
    part = on.part(node)
    rank = len(on.shapes[node.input[0]])
    if part.axis in {a % rank for a in axes}:
        raise refusal(node, "mixes values along the divided axis")
    return part


def _softmax(on: Divided, node: NodeProto) -> None:
    axis, rank = attribute(node, "axis", -1), len(on.shapes[node.input[0]])
    if on.task.opset < 13:  # everything from this axis on
        on.same(node, _apart_from(on, node, range(attribute(node, "axis", 1) % rank, rank)))
    else:
        on.same(node, _apart_from(on, node, [axis]))


def _layer_norm(on: Divided, node: NodeProto) -> None:
    rank = len(on.shapes[node.input[0]])
    on.same(node, _apart_from(on, node, range(attribute(node, "axis", -1) % rank, rank)))


def _lrn(on: Divided, node: NodeProto) -> None:
    on.same(node, _apart_from(on, node, [1]))


def _constant_axes(on: Divided, node: NodeProto, position: int) -> list[int] | None:
    """Axes given as an attribute or as a constant input; None where neither is."""
    given = attribute(node, "axes", None)
    if given is None and len(node.input) > position and node.input[position]:
        if node.input[position] not in on.weights:
            raise refusal(node, "computes its axes")
        given = on.weights[node.input[position]].tolist()
    return list(given) if given else None


def _reduce(on: Divided, node: NodeProto) -> None:
    rank = len(on.shapes[node.input[0]])
    axes = sorted(a % rank for a in _constant_axes(on, node, 1) or range(rank))
    part = _apart_from(on, node, axes)
    gone = 0 if attribute(node, "keepdims", 1) else sum(a < part.axis for a in axes)
    on.same(node, Part(part.axis - gone, part.bounds))


def _slice(on: Divided, node: NodeProto) -> None:
    counted = len(attribute(node, "starts", ())) or (on.size(node.input[1], 0) if len(node.input) > 1 else 0)
    on.same(node, _apart_from(on, node, _constant_axes(on, node, 3) or range(counted)))


def _gather(on: Divided, node: NodeProto) -> None:
    part, axis = on.part(node), attribute(node, "axis", 0) % len(on.shapes[node.input[0]])
    _apart_from(on, node, [axis])
    if on.division(node.input[1]):
        raise refusal(node, "takes indices that are divided")
    moved = part.axis if part.axis < axis else part.axis - 1 + len(on.shapes[node.input[1]])
    on.same(node, Part(moved, part.bounds))


def _transpose(on: Divided, node: NodeProto) -> None:
    part, rank = on.part(node), len(on.shapes[node.input[0]])
    order = list(attribute(node, "perm", range(rank - 1, -1, -1)))
    on.same(node, Part(order.index(part.axis), part.bounds))


def _reshape(on: Divided, node: NodeProto) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: the divided axis may be split, or merged with those after it."""
    part = on.part(node)
    before, after = ([dim_at(d, ANY_BATCH) for d in on.shapes[n]] for n in (node.input[0], node.output[0]))
    ahead = prod(before[: part.axis])
    axis = next((a for a, size in enumerate(after) if size > 1 and prod(after[:a]) == ahead), None)
    shape = on.shapes[node.output[0]]
    if axis is None or isinstance(shape[axis], str) or sum(isinstance(d, str) for d in shape) > 1:
        raise refusal(node, "moves the divided axis where its ranges are no longer in one piece")
    old, new = prod(before[part.axis + 1 :]), prod(after[axis + 1 :])
    if any(b * old % new for b in part.bounds):
        raise Misaligned(refusal(node, "divides an axis elsewhere than the span does"), new // gcd(new, old))
    moved = Part(axis, tuple(b * old // new for b in part.bounds))
    on.known[node.output[0]] = moved
    for shard in range(on.count):
        first, last = moved.ends(shard)
        sizes = [last - first if a == axis else -1 if isinstance(d, str) else d for a, d in enumerate(shape)]
        on.add(shard, "Reshape", [on.name(node.input[0], shard), on.ints(*sizes)], on.name(node.output[0], shard))


def _concat(on: Divided, node: NodeProto) -> None:
    axis = attribute(node, "axis", 0) % len(on.shapes[node.output[0]])
    parts = {d for n in node.input if isinstance(d := on.division(n), Part)}
    if len(parts) != 1:
        raise refusal(node, "takes inputs that are divided differently")
    (part,) = parts
    if part.axis == axis:
        raise refusal(node, "joins along the divided axis")
    on.emit(node, lambda s: [on.share(n, part, s) for n in node.input], part)


def _split(on: Divided, node: NodeProto) -> None:
    on.same(node, _apart_from(on, node, [attribute(node, "axis", 0)]))


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(BROADCAST, _broadcast),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"), _pool),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd"), _reduce),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _per_channel),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "LayerNormalization": _layer_norm,
    "LRN": _lrn,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
}
