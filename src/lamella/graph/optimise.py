"""Optimise a slice offline, once, so that no cold start does it again.

The runtime's own optimiser runs at level ALL and dumps the fused graph with convolution weights already in the blocked
layout of this CPU. Loading that dump with the optimiser off gives the same speed, 6-10x faster load, and weights that
stay mapped instead of copied.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, TensorProto, numpy_helper

from lamella.errors import ModelError
from lamella.graph.normalise import subgraphs
from lamella.graph.weights import INLINE_BYTES, read_external

FULL = 1 << 20
"""A disk with so few bytes free is why a dump failed."""


def optimise(path: Path) -> tuple[ModelProto, dict[str, np.ndarray]]:
    """The optimised model without large initialisers, and those as mapped arrays.

    Args:
        path: an ONNX slice with its external data beside it. `optimised.onnx` and `optimised.bin` are written there.

    Raises:
        ModelError: the runtime refuses the slice.
    """
    dump = path.parent / "optimised.onnx"
    data = path.parent / "optimised.bin"
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.optimized_model_filepath = os.fspath(dump)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", data.name)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_min_size_in_bytes", str(INLINE_BYTES)
    )
    options.add_session_config_entry("session.disable_prepacking", "1")
    # 4-bit weights: by default the runtime rounds activations to 8 bits, and answers come out 0.3 % off
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    try:
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding's exceptions share no base
        _check_space(path, error)
        raise ModelError(f"the runtime refuses the slice: {str(error).splitlines()[0][:400]}") from error
    try:
        return split_weights(onnx.load(dump, load_external_data=False), path.parent)
    except (ModelError, DecodeError) as error:  # the runtime does not see every write that fails
        _check_space(path, error)
        raise


def _check_space(path: Path, error: Exception) -> None:
    """OSError where the failed dump has filled the disk: the runtime's words do not always say so."""
    if "No space" in str(error) or shutil.disk_usage(path.parent).free < FULL:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def split_weights(proto: ModelProto, directory: Path) -> tuple[ModelProto, dict[str, np.ndarray]]:
    """Take the external initialisers out of `proto`; mapped arrays by name.

    Sorted, because the runtime dumps them in no fixed order, and equal slices should make equal packages.
    """
    ordered = sorted(proto.graph.initializer, key=lambda t: t.name)
    large = {t.name: read_external(t, directory) for t in ordered if t.data_location == TensorProto.EXTERNAL}
    small = [t for t in ordered if t.name not in large]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(small)
    _embed(proto.graph, directory)
    return proto, large


def _embed(graph: GraphProto, directory: Path) -> None:
    """Put weights inside subgraphs back into the model: the file they lie in does not ship."""
    for inner in (sub for node in graph.node for sub in subgraphs(node)):
        for tensor in inner.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                tensor.CopyFrom(numpy_helper.from_array(read_external(tensor, directory), tensor.name))
        _embed(inner, directory)
