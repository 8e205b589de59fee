"""What is measured: small networks that hold each kind of operator over a spread of shapes.

Operators run in networks, not alone: an input is as warm as its producer left it, the optimiser fuses what it fuses in
models, and activations keep the blocked layout from one convolution to the next. Which shapes is drawn with seeds, over
the ranges that published networks have, so that the same spread is measured on every machine; no network is a model of
the zoo. They come in an order in which every few of them hold all kinds, so that a short calibration is a thin one and
not a partial one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, zip_longest

import numpy as np

from lamella.units import BATCH
from lamella.zoo.draft import Blueprint, Draft

Inputs = dict[str, tuple[str, Sequence[int | str]]]
"""By name: dtype and shape; integers are indices below `INDICES`."""
INDICES = 1000
MOST_GMAC = 1.2
"""Of one convolution: tens of milliseconds."""
MOST_WEIGHTS = 4.8e6
"""Of one convolution: as many as the largest of published networks hold."""
WINDOWS = ((3, 3), (1, 1), (3, 3), (1, 1), (5, 5), (1, 7), (7, 1), (3, 1), (1, 1), (3, 3))


@dataclass(frozen=True)
class Network:
    """One of the spread."""

    name: str
    build: Callable[[str], tuple[Blueprint, Inputs]]


class _Chain:
    """A network that grows at its end; `shape` is that of the end."""

    def __init__(self, name: str, shape: Sequence[int]) -> None:
        self.draft = Draft(name)
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))
        self.inputs: Inputs = {"x": ("float32", tuple(shape))}
        self.end, self.shape = "x", tuple(shape)
        self._count = 0

    def name(self, of: str) -> str:
        self._count += 1
        return f"{of}{self._count}"

    def add(
        self, op: str, *more: str, shape: Sequence[int] | None = None, first: str = "", **attributes: object
    ) -> str:
        """Append a node that reads the end."""
        self.end = self.draft.node(op, first or self.end, *more, name=self.name(op.lower()), **attributes)
        self.shape = tuple(shape or self.shape)
        return self.end

    def weight(self, *shape: int, std: float, mean: float = 0.0) -> str:
        return self.draft.weight(self.name("w"), *shape, std=std, mean=mean)

    def constant(self, values: np.ndarray) -> str:
        return self.draft.constant(self.name("c"), values)

    def finish(self) -> tuple[Blueprint, Inputs]:
        free = any(isinstance(d, str) for _, shape in self.inputs.values() for d in shape)
        shape: Sequence[int | str] = (BATCH, *self.shape[1:]) if free else self.shape
        return self.draft.finish(self.inputs, self.end, shape), self.inputs


def _convolution(chain: _Chain, out: int, kernel: tuple[int, int], *, stride: int = 1, group: int = 1) -> None:
    _, channels, height, width = chain.shape
    depth = channels // group
    w = chain.weight(out, depth, *kernel, std=(2 / (depth * kernel[0] * kernel[1])) ** 0.5)
    pads = [kernel[0] // 2, kernel[1] // 2] * 2
    size = (1, out, -(-height // stride), -(-width // stride))
    bias = chain.weight(out, std=0.02)
    chain.add("Conv", w, bias, shape=size, kernel_shape=kernel, strides=[stride] * 2, pads=pads, group=group)


def _convolutional(channels: int, size: int, layers: int, name: str) -> tuple[Blueprint, Inputs]:
    """Windows of all kinds, strides, groups, residual sums and pooling, then a classifier."""
    chain = _Chain(name, (1, channels, size, size))
    for _ in range(layers):
        _layer(chain)
    chain.add("GlobalAveragePool", shape=(1, chain.shape[1], 1, 1))
    width = chain.shape[1]
    chain.add("Flatten", shape=(1, width))
    classes = int(chain.rng.integers(3, 40)) * 32
    w = chain.weight(width, classes, std=width**-0.5)
    chain.add("Gemm", w, chain.weight(classes, std=0.02), shape=(1, classes))
    chain.add("Softmax", axis=1)
    return chain.finish()


def _layer(chain: _Chain) -> None:
    rng, (_, channels, height, _) = chain.rng, chain.shape
    kind = rng.random()
    stride = 2 if height >= 14 and rng.random() < 0.2 else 1
    before = chain.end
    if channels % 8 == 0 and kind < 0.18:
        edge = int(rng.choice([3, 3, 5]))
        _convolution(chain, channels, (edge, edge), stride=stride, group=channels)
    elif channels % 64 == 0 and kind < 0.25:
        _convolution(chain, channels, (3, 3), stride=stride, group=int(rng.choice([4, 8])))
    elif channels % 8 == 0 and kind < 0.33 and height >= 4:
        op = str(rng.choice(["MaxPool", "AveragePool"]))
        size = (1, channels, -(-height // stride), -(-height // stride))
        chain.add(op, shape=size, kernel_shape=[3, 3], strides=[stride] * 2, pads=[1] * 4)
        return
    else:
        kernel = WINDOWS[int(rng.integers(len(WINDOWS)))]
        if channels < 8:
            edge = int(rng.choice([3, 5, 7]))
            kernel, stride = (edge, edge), int(rng.choice([1, 2]))
        _convolution(chain, _width(chain, kernel, stride), kernel, stride=stride)
    if rng.random() < 0.25 and chain.shape[1] == channels and chain.shape[2] == height and channels >= 8:
        chain.add("Add", before)
    if rng.random() < 0.8:
        chain.add("Relu")


def _width(chain: _Chain, kernel: tuple[int, int], stride: int) -> int:
    """Output channels: drawn around the input's, fewer where that would take too long."""
    _, channels, height, width = chain.shape
    wanted = max(16.0, channels) * 2 ** chain.rng.uniform(-1.2, 1.6)
    each = channels * kernel[0] * kernel[1] * height * width / stride**2 / 1e9
    most = min(2048.0, MOST_GMAC / each, MOST_WEIGHTS / (channels * kernel[0] * kernel[1]))
    return int(np.clip(round(min(wanted, most) / 16), 1, 128)) * 16


def _dense(rows: int, layers: int, name: str) -> tuple[Blueprint, Inputs]:
    """Products with weights of many widths, with bias and activation, some as Gemm."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    widths = [int(2 ** rng.uniform(5, 12)) // 16 * 16 for _ in range(layers + 1)]
    chain = _Chain(name, (rows, widths[0]))
    for last, width in pairwise(widths):
        w = chain.weight(last, width, std=(2 / last) ** 0.5)
        bias = chain.weight(width, std=0.02)
        if rng.random() < 0.5:
            chain.add("Gemm", w, bias, shape=(rows, width))
        else:
            chain.add("MatMul", w, shape=(rows, width))
            chain.add("Add", bias)
        chain.add(str(rng.choice(["Relu", "Tanh", "Sigmoid", "Relu"])))
    left = chain.weight(rows, rows, std=(2 / rows) ** 0.5)
    chain.add("MatMul", chain.end, first=left)
    return chain.finish()


def _attention(tokens: int, width: int, heads: int, name: str, *, skip: bool = False) -> tuple[Blueprint, Inputs]:
    """Two transformer blocks as exporters write them; with `skip` normalised behind the sums."""
    chain = _Chain(name, (1, tokens, width))
    if not skip:  # with a free batch the runtime keeps MatMul and Add apart
        chain.inputs["x"] = ("float32", (BATCH, tokens, width))
    for _ in range(2):
        start = chain.end
        if not skip:
            _layer_norm(chain, width)
        _heads(chain, tokens, width, heads)
        chain.add("Add", start)
        if skip:
            _layer_norm(chain, width)
        middle = chain.end
        if not skip:
            _layer_norm(chain, width)
        _product(chain, width, 4 * width)
        _gelu(chain)
        _product(chain, 4 * width, width)
        chain.add("Add", middle)
        if skip:
            _layer_norm(chain, width)
    return chain.finish()


def _product(chain: _Chain, last: int, width: int) -> None:
    chain.add("MatMul", chain.weight(last, width, std=last**-0.5), shape=(*chain.shape[:-1], width))
    chain.add("Add", chain.weight(width, std=0.02))


def _layer_norm(chain: _Chain, width: int) -> None:
    scale, shift = chain.weight(width, std=0.02, mean=1.0), chain.weight(width, std=0.02)
    chain.add("LayerNormalization", scale, shift, axis=-1, epsilon=1e-5)


def _gelu(chain: _Chain) -> None:
    x = chain.end
    chain.add("Div", chain.constant(np.array(2**0.5, np.float32)))
    chain.add("Erf")
    chain.add("Add", chain.constant(np.array(1.0, np.float32)))
    chain.add("Mul", x)
    chain.add("Mul", chain.constant(np.array(0.5, np.float32)))


def _heads(chain: _Chain, tokens: int, width: int, heads: int) -> None:
    x, each = chain.end, width // heads
    split = chain.constant(np.array([-1, tokens, heads, each]))
    sides = []
    for order in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)):
        chain.end, chain.shape = x, (1, tokens, width)
        _product(chain, width, width)
        chain.add("Reshape", split)
        sides.append(chain.add("Transpose", perm=order))
    chain.add("MatMul", sides[1], first=sides[0], shape=(1, heads, tokens, tokens))
    chain.add("Mul", chain.constant(np.array(each**-0.5, np.float32)))
    chain.add("Softmax", axis=-1)
    chain.add("MatMul", sides[2], shape=(1, heads, tokens, each))
    chain.add("Transpose", perm=(0, 2, 1, 3), shape=(1, tokens, heads, each))
    chain.add("Reshape", chain.constant(np.array([-1, tokens, width])), shape=(1, tokens, width))
    _product(chain, width, width)


def _recurrent(kind: str, steps: int, width: int, hidden: int, both: bool, name: str) -> tuple[Blueprint, Inputs]:
    """Two layers over a sequence."""
    gates, directions = {"LSTM": 4, "GRU": 3}[kind], 1 + both
    chain = _Chain(name, (steps, 1, width))
    for _ in range(2):
        last = chain.shape[-1]
        w = chain.weight(directions, gates * hidden, last, std=last**-0.5)
        r = chain.weight(directions, gates * hidden, hidden, std=hidden**-0.5)
        b = chain.weight(directions, 2 * gates * hidden, std=0.02)
        chain.add(kind, w, r, b, hidden_size=hidden, direction="bidirectional" if both else "forward")
        chain.add("Transpose", perm=(0, 2, 1, 3))
        whole = np.array([steps, 1, directions * hidden])
        chain.add("Reshape", chain.constant(whole), shape=tuple(whole.tolist()))
    return chain.finish()


def _tables(fields: int, rows: int, width: int, name: str) -> tuple[Blueprint, Inputs]:
    """Rows of several tables side by side, then a few layers: recommendation."""
    chain = _Chain(name, (1, 16))
    del chain.inputs["x"]
    found = []
    for k in range(fields):
        chain.inputs[f"i{k}"] = ("int64", (1,))
        table = chain.weight(rows, width, std=1.0)
        found.append(chain.draft.node("Gather", table, f"i{k}", name=f"row{k}"))
    chain.add("Concat", *found[1:], first=found[0], shape=(1, fields * width), axis=1)
    for wide in (256, 64, 1):
        w = chain.weight(chain.shape[-1], wide, std=chain.shape[-1] ** -0.5)
        chain.add("Gemm", w, chain.weight(wide, std=0.02), shape=(1, wide))
        chain.add("Relu" if wide > 1 else "Sigmoid")
    return chain.finish()


def _words(tokens: int, rows: int, width: int, name: str) -> tuple[Blueprint, Inputs]:
    """Words of a table with their places, normalised."""
    chain = _Chain(name, (1, tokens, width))
    chain.inputs = {"i": ("int64", (1, tokens))}
    chain.add("Gather", "i", first=chain.weight(rows, width, std=1.0))
    chain.add("Add", chain.weight(tokens, width, std=1.0))
    _layer_norm(chain, width)
    chain.add("ReduceMean", shape=(1, width), axes=[1], keepdims=0)
    return chain.finish()


SIMPLE = ("Sigmoid", "Abs", "Sqrt", "Tanh", "Exp", "LeakyRelu", "Erf", "Neg", "Softplus", "HardSwish", "Softmax")


def _simple(shape: Sequence[int], name: str) -> tuple[Blueprint, Inputs]:
    """What touches every element, and what moves them, over [1, channels, height, width]."""
    chain = _Chain(name, shape)
    _, channels, height, width = shape
    for op in SIMPLE:
        before = chain.end
        chain.add(op)
        chain.add(str(chain.rng.choice(["Add", "Sub", "Mul"])), before)
        chain.add("Div", chain.constant(np.full((channels, 1, 1), 2.0, np.float32)))
        chain.add("Clip", *(chain.constant(np.array(v, np.float32)) for v in (-3.0, 3.0)))
    whole = chain.end
    half = chain.add("Slice", *(chain.constant(np.array([v])) for v in (0, channels // 2, 1)))
    chain.add("Concat", half, first=whole, axis=1, shape=(1, channels + channels // 2, height, width))
    chain.add("Transpose", perm=(0, 2, 3, 1), shape=(1, height, width, chain.shape[1]))
    chain.add("ReduceMean", axes=[3], keepdims=1, shape=(1, height, width, 1))
    chain.add("Pad", chain.constant(np.array([0, 2, 2, 0] * 2)), shape=(1, height + 4, width + 4, 1))
    chain.add("Transpose", perm=(0, 3, 1, 2), shape=(1, 1, height + 4, width + 4))
    scales = chain.constant(np.array([1, 1, 2, 2], np.float32))
    doubled = (1, 1, 2 * height + 8, 2 * width + 8)
    chain.add("Resize", "", scales, mode="linear", shape=doubled)
    chain.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2], shape=(1, 1, height + 4, width + 4))
    return chain.finish()


def _odd(channels: int, size: int, name: str) -> tuple[Blueprint, Inputs]:
    """Convolutions the blocked layout does not take: widths that are no multiple of its block, and transposed ones."""
    chain = _Chain(name, (1, channels, size, size))
    for out, edge in ((channels + 2, 3), (2 * channels + 3, 1), (channels, 5)):
        _convolution(chain, out, (edge, edge))
        chain.add("Relu")
    w = chain.weight(channels, channels, 2, 2, std=(1 / channels) ** 0.5)
    chain.add("ConvTranspose", w, kernel_shape=[2, 2], strides=[2, 2], shape=(1, channels, 2 * size, 2 * size))
    scale, shift = chain.weight(channels, std=0.02, mean=1.0), chain.weight(channels, std=0.02)
    chain.add("InstanceNormalization", scale, shift)
    return chain.finish()


_IMAGES = ((3, 224, 7), (256, 14, 9), (64, 56, 9), (512, 7, 8), (128, 28, 9), (3, 160, 12), (320, 8, 8), (160, 17, 9),
           (96, 35, 8), (32, 112, 7), (640, 10, 7), (48, 80, 8), (1024, 7, 6), (3, 288, 5), (192, 24, 8))  # fmt: skip
_ROWS = (1, 128, 16, 1, 400, 49, 4, 220, 1, 90, 700, 1)
_BLOCKS = ((48, 384, 6, False), (128, 640, 10, True), (200, 896, 14, False), (320, 512, 8, True), (96, 1280, 20, False),
           (16, 256, 4, True), (256, 704, 11, False))  # fmt: skip
_SEQUENCES = (
    ("LSTM", 16, 256, 384, False), ("GRU", 24, 512, 512, True), ("LSTM", 40, 640, 768, True),
    ("GRU", 12, 768, 1280, False), ("LSTM", 24, 1536, 1536, False), ("GRU", 20, 96, 128, False),
    ("LSTM", 8, 64, 64, True), ("GRU", 30, 160, 256, True), ("LSTM", 12, 1792, 2304, False),
    ("GRU", 16, 1024, 896, True), ("LSTM", 20, 128, 1152, False), ("GRU", 10, 512, 1792, False),
    ("LSTM", 10, 384, 896, True), ("GRU", 8, 64, 48, False), ("LSTM", 28, 96, 192, False),
)  # fmt: skip
_OTHERS = (
    partial(_tables, 12, 1000, 16), partial(_simple, (1, 64, 56, 56)), partial(_tables, 40, 20000, 4),
    partial(_words, 96, 12000, 512), partial(_odd, 20, 40), partial(_simple, (1, 16, 12, 12)),
    partial(_words, 24, 4000, 1280), partial(_tables, 6, 5000, 64), partial(_simple, (1, 96, 112, 112)),
    partial(_odd, 52, 16), partial(_words, 8, 2000, 256), partial(_simple, (1, 256, 14, 14)),
    partial(_words, 300, 8000, 768),
)  # fmt: skip


def _spread() -> tuple[Network, ...]:
    families = (
        [Network(f"convolutions-{c}x{s}", partial(_convolutional, c, s, n)) for c, s, n in _IMAGES],
        [Network(f"dense-{k}-{rows}-rows", partial(_dense, rows, 6)) for k, rows in enumerate(_ROWS)],
        [Network(f"attention-{t}x{w}", partial(_attention, t, w, h, skip=skip)) for t, w, h, skip in _BLOCKS],
        [
            Network(f"{kind.lower()}-{n}x{w}x{h}" + "-both" * both, partial(_recurrent, kind, n, w, h, both))
            for kind, n, w, h, both in _SEQUENCES
        ],
        [Network(f"{build.func.__name__[1:]}-{k}", build) for k, build in enumerate(_OTHERS)],
    )
    return tuple(one for row in zip_longest(*families) for one in row if one)


SPREAD = _spread()
"""Sixty-odd networks."""
