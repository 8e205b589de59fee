"""Inception v3 (Szegedy et al. 2016) without its auxiliary head, as the usual libraries build it.

Blocks are tables of branches, branches are chains of convolutions: (channels, kernel height, kernel width), then
stride 2 where the block halves the image. Every convolution is followed by BatchNorm and ReLU.
"""

from __future__ import annotations

from dataclasses import dataclass

from lamella.units import BATCH
from lamella.zoo.draft import Blueprint, Draft
from lamella.zoo.spec import InputSpec

Kernel = tuple[int, int, int]
_POOLED_GAIN = 1.0
"""After averaging: ReLUs' second moment is a half, and what the mean takes away the kernel gives back in part."""


@dataclass(slots=True)
class _Net:
    """The graph so far: every method gives the name of a tensor and its channels."""

    draft: Draft
    divide: int
    """By this number all widths are divided, for small ones."""

    def conv(
        self, name: str, data: tuple[str, int], kernel: Kernel, *, stride: int = 1, same: bool = True, gain: float = 2.0
    ) -> tuple[str, int]:
        """Convolution, BatchNorm, ReLU; without `same` the border is cut off."""
        (source, width), (channels, high, wide) = data, kernel
        channels = max(2, channels // self.divide)
        # He et al. 2015, equation 10: variance 2 / fan-in keeps the signal through ReLUs.
        weight = self.draft.weight(
            f"{name}.weight", channels, width, high, wide, std=(gain / (width * high * wide)) ** 0.5
        )
        pads = [high // 2, wide // 2] * 2 if same else [0] * 4
        made = self.draft.node(
            "Conv", source, weight, name=name, kernel_shape=[high, wide], pads=pads, strides=[stride] * 2
        )
        norm = (
            self.draft.weight(f"{name}.norm.scale", channels, std=0.1, mean=1.0),
            self.draft.weight(f"{name}.norm.bias", channels, std=0.05),
            self.draft.weight(f"{name}.norm.mean", channels, std=0.05),
            self.draft.weight(f"{name}.norm.variance", channels, std=0.1, log=True),
        )
        normed = self.draft.node("BatchNormalization", made, *norm, name=f"{name}.norm", epsilon=1e-3)
        return self.draft.node("Relu", normed, name=f"{name}.relu"), channels

    def chain(
        self, name: str, data: tuple[str, int], *kernels: Kernel, shrink: bool = False, gain: float = 2.0
    ) -> tuple[str, int]:
        """Convolutions one after the other; with `shrink` the last one halves the image."""
        for i, kernel in enumerate(kernels):
            last = shrink and i == len(kernels) - 1
            data = self.conv(
                f"{name}.{i}", data, kernel, stride=2 if last else 1, same=not last, gain=2.0 if i else gain
            )
        return data

    def pooled(self, name: str, data: tuple[str, int], channels: int) -> tuple[str, int]:
        """The mean of each neighbourhood, then a 1 x 1 convolution."""
        mean = self.draft.node(
            "AveragePool", data[0], name=f"{name}.mean", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1
        )
        return self.conv(name, (mean, data[1]), (channels, 1, 1), gain=_POOLED_GAIN)

    def largest(self, name: str, data: tuple[str, int]) -> tuple[str, int]:
        """The largest of each neighbourhood; halves the image."""
        return self.draft.node("MaxPool", data[0], name=name, kernel_shape=[3, 3], strides=[2, 2]), data[1]

    def concat(self, name: str, *branches: tuple[str, int]) -> tuple[str, int]:
        """All branches side by side."""
        joined = self.draft.node("Concat", *(branch for branch, _ in branches), name=name, axis=1)
        return joined, sum(width for _, width in branches)

    def stem(self) -> tuple[str, int]:
        """From the image to 192 channels."""
        data = self.conv("stem0", ("x", 3), (32, 3, 3), stride=2, same=False, gain=1.0)
        data = self.conv("stem1", data, (32, 3, 3), same=False)
        data = self.largest("stem.pool0", self.conv("stem2", data, (64, 3, 3)))
        data = self.conv("stem4", self.conv("stem3", data, (80, 1, 1)), (192, 3, 3), same=False)
        return self.largest("stem.pool1", data)

    def block_a(self, name: str, data: tuple[str, int], pooled: int) -> tuple[str, int]:
        """Figure 5: 5 x 5 beside two 3 x 3."""
        return self.concat(
            name,
            self.chain(f"{name}.one", data, (64, 1, 1)),
            self.chain(f"{name}.five", data, (48, 1, 1), (64, 5, 5)),
            self.chain(f"{name}.three", data, (64, 1, 1), (96, 3, 3), (96, 3, 3)),
            self.pooled(f"{name}.pool", data, pooled),
        )

    def block_b(self, name: str, data: tuple[str, int], middle: int) -> tuple[str, int]:
        """Figure 6: 7 x 7 as 1 x 7 and 7 x 1."""
        row, column = (middle, 1, 7), (middle, 7, 1)
        return self.concat(
            name,
            self.chain(f"{name}.one", data, (192, 1, 1)),
            self.chain(f"{name}.seven", data, (middle, 1, 1), row, (192, 7, 1)),
            self.chain(f"{name}.twice", data, (middle, 1, 1), column, row, column, (192, 1, 7)),
            self.pooled(f"{name}.pool", data, 192),
        )

    def block_c(self, name: str, data: tuple[str, int]) -> tuple[str, int]:
        """Figure 7: branches that fork again."""
        three = self.chain(f"{name}.three", data, (384, 1, 1))
        twice = self.chain(f"{name}.twice", data, (448, 1, 1), (384, 3, 3))
        return self.concat(
            name,
            self.chain(f"{name}.one", data, (320, 1, 1)),
            *(self.chain(f"{name}.three.{k[1]}x{k[2]}", three, k) for k in ((384, 1, 3), (384, 3, 1))),
            *(self.chain(f"{name}.twice.{k[1]}x{k[2]}", twice, k) for k in ((384, 1, 3), (384, 3, 1))),
            self.pooled(f"{name}.pool", data, 192),
        )

    def shrink_a(self, name: str, data: tuple[str, int]) -> tuple[str, int]:
        """Figure 10, between the first two kinds of block."""
        return self.concat(
            name,
            self.chain(f"{name}.three", data, (384, 3, 3), shrink=True),
            self.chain(f"{name}.twice", data, (64, 1, 1), (96, 3, 3), (96, 3, 3), shrink=True),
            self.largest(f"{name}.pool", data),
        )

    def shrink_b(self, name: str, data: tuple[str, int]) -> tuple[str, int]:
        """Figure 10, between the last two kinds of block."""
        return self.concat(
            name,
            self.chain(f"{name}.three", data, (192, 1, 1), (320, 3, 3), shrink=True),
            self.chain(f"{name}.seven", data, (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3), shrink=True),
            self.largest(f"{name}.pool", data),
        )


@dataclass(frozen=True, slots=True)
class Inception:
    """The sizes of one network: `side` pixels, `classes`, and all widths divided by `divide`."""

    side: int
    classes: int
    divide: int = 1

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """`x` float32 ["N", 3, side, side], standard normal like a normalised photo."""
        return (InputSpec("x", "float32", (BATCH, 3, self.side, self.side), -3.0, 3.0, normal=True),)

    def build(self, name: str) -> Blueprint:
        """The model called `name`; output `probabilities` float32 ["N", classes]."""
        draft = Draft(name)
        net = _Net(draft, self.divide)
        data = net.stem()
        for i, pooled in enumerate((32, 64, 64)):
            data = net.block_a(f"a{i}", data, pooled)
        data = net.shrink_a("shrink_a", data)
        for i, middle in enumerate((128, 160, 160, 192)):
            data = net.block_b(f"b{i}", data, middle)
        data = net.shrink_b("shrink_b", data)
        for i in range(2):
            data = net.block_c(f"c{i}", data)
        mean = draft.node("GlobalAveragePool", data[0], name="pooled")
        flat = draft.node("Flatten", mean, name="flat", axis=1)
        weight = draft.weight("head.weight", self.classes, data[1], std=(2 / data[1]) ** 0.5)
        bias = draft.weight("head.bias", self.classes, std=0.05)
        logits = draft.node("Gemm", flat, weight, bias, name="head", transB=1)
        output = draft.node("Softmax", logits, name="probabilities", axis=-1)
        return draft.finish(
            {spec.name: (spec.dtype, spec.shape) for spec in self.inputs}, output, (BATCH, self.classes)
        )


V3 = Inception(side=299, classes=1000)
V3_TINY = Inception(side=75, classes=10, divide=16)
