"""A graph convolution network (Kipf & Welling 2017) over one fixed graph, which is a weight: requests bring features.

The graph is dense here, as the exporters write it: ONNX's sparse tensors have no kernels. So every layer reads all
nodes, and no cut divides the nodes; layers and the columns of their weights are what there is to divide.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lamella.units import BATCH
from lamella.zoo.draft import Blueprint, Draft
from lamella.zoo.spec import InputSpec


@dataclass(frozen=True, slots=True)
class GraphConvolution:
    """The sizes of one network: `nodes` and `edges` of the graph, and the `widths` from the features to the classes."""

    nodes: int
    edges: int
    widths: tuple[int, ...]

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """`x` float32 ["N", nodes, features], standard normal."""
        shape = (BATCH, self.nodes, self.widths[0])
        return (InputSpec("x", "float32", shape, -3.0, 3.0, normal=True),)

    def build(self, name: str) -> Blueprint:
        """The model called `name`; output `logits` float32 ["N", nodes, classes]."""
        draft = Draft(name)
        graph = draft.constant("graph", self._adjacency(name))
        # A mean over a node and its neighbours divides the second moment of independent features by their number;
        # behind a ReLU the features of all nodes share most of theirs (He et al. 2015, equation 10: gain 2).
        members = (2 * self.edges + self.nodes) / self.nodes
        data, last = "x", len(self.widths) - 2
        for layer, (width_in, width_out) in enumerate(pairwise(self.widths)):
            gain = 2 if layer else members
            label = f"layer{layer}"
            kernel = draft.weight(f"{label}.weight", width_in, width_out, std=(gain / width_in) ** 0.5)
            narrow = draft.node("MatMul", data, kernel, name=label)
            mixed = draft.node("MatMul", graph, narrow, name=f"{label}.neighbours")
            bias = draft.weight(f"{label}.bias", width_out, std=0.02)
            data = draft.node("Add", mixed, bias, name="logits" if layer == last else f"{label}.out")
            data = data if layer == last else draft.node("Relu", data, name=f"{label}.relu")
        return draft.finish(
            {spec.name: (spec.dtype, spec.shape) for spec in self.inputs}, data, (BATCH, self.nodes, self.widths[-1])
        )

    def _adjacency(self, name: str) -> np.ndarray:
        """Random edges with self-loops, normalised by both degrees: D^-1/2 (A + I) D^-1/2 (equation 2)."""
        rng = np.random.default_rng(zlib.crc32(f"{name}/graph".encode()))
        linked = np.eye(self.nodes, dtype=np.float32)
        left, right = rng.integers(0, self.nodes, (2, self.edges))
        linked[left, right] = linked[right, left] = 1
        scale = linked.sum(axis=1) ** -0.5
        linked *= scale[:, None]
        linked *= scale[None, :]
        return linked


CORA = GraphConvolution(nodes=2708, edges=5278, widths=(1433, 512, 512, 7))
TINY = GraphConvolution(nodes=60, edges=120, widths=(32, 16, 16, 7))
