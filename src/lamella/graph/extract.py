"""Slices of a graph as ONNX models of their own: nodes, the borders that law 2 compares, references to the weights."""

from __future__ import annotations

import os
import shutil
from functools import cached_property
from pathlib import Path

import onnx
from onnx import ModelProto, ValueInfoProto, helper

from lamella.graph.load import external_files
from lamella.graph.model import Graph
from lamella.graph.normalise import reads


class Extractor:
    """Cuts slices out of one graph's skeleton; holds the parsed skeleton, which has no weights."""

    def __init__(self, graph: Graph) -> None:
        """Parse the skeleton when the first slice is asked for."""
        self.graph = graph

    @cached_property
    def _proto(self) -> ModelProto:
        return onnx.load(self.graph.skeleton, load_external_data=False)

    @cached_property
    def _infos(self) -> dict[str, ValueInfoProto]:
        graph = self._proto.graph
        return {v.name: v for v in (*graph.input, *graph.value_info, *graph.output)}

    def slice(self, first: int, last: int) -> ModelProto:
        """Operators `first` to `last - 1` as a model; weights stay external data in `weights.bin`."""
        takes, gives = self.graph.border(first, last)
        nodes = self._proto.graph.node[first:last]
        names = {n for node in nodes for n in reads(node)}
        inner = {n for op in self.graph.operators[first:last] if op.has_subgraph for n in op.inputs}
        inside = [n for node in nodes for n in node.output if n and n not in gives]  # in order: files are told by hash
        return helper.make_model(
            helper.make_graph(
                nodes,
                f"{self.graph.name}[{first}:{last}]",
                [_any_size(self._infos[n]) if n in inner else self._infos[n] for n in takes],
                [self._infos[n] for n in gives],
                [t for t in self._proto.graph.initializer if t.name in names],
                value_info=[self._infos[n] for n in inside if n in self._infos],
            ),
            opset_imports=self._proto.opset_import,
            ir_version=self._proto.ir_version,
        )

    def write(self, first: int, last: int, directory: Path) -> Path:
        """Write the slice into `directory` beside a link to the weights; the path of the ONNX file."""
        directory.mkdir(parents=True, exist_ok=True)
        link_or_copy(self.graph.weights_file, directory / self.graph.weights_file.name)
        path = directory / f"slice-{first}-{last}.onnx"
        path.write_bytes(self.slice(first, last).SerializeToString())
        return path


def _any_size(info: ValueInfoProto) -> ValueInfoProto:
    """The rank alone: a branch that this request never takes may contradict its sizes, and the runtime refuse it."""
    free = ValueInfoProto()
    free.CopyFrom(info)
    for dim in free.type.tensor_type.shape.dim:
        dim.Clear()
    return free


def link_or_copy(source: Path, target: Path) -> None:
    """The same bytes under a second name: a hard link, or a copy across file systems.

    The runtime resolves symbolic links and refuses data outside the model's directory, so those do not serve.
    """
    if target.exists():
        if target.samefile(source):
            return
        target.unlink()
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def link_model(graph: Graph, directory: Path) -> list[str]:
    """The user's own file, as it is, under the name `model.onnx`, and its external data; the file names."""
    proto = onnx.load(graph.source, load_external_data=False)
    names = ["model.onnx"]
    link_or_copy(graph.source, directory / "model.onnx")
    for path in external_files(proto, graph.source):
        name = str(path.relative_to(graph.source.parent))
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(path, directory / name)
        names.append(name)
    return names
