"""The session that serves one function, opened as its manifest says; the manifest's parts are found here too."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from lamella.errors import ModelError, PackageError
from lamella.runtime.manifest import LAYOUTS, LOSSLESS, FittedFile, Function, Kind, Layout, Layouts, TensorSpec

__all__ = [
    "LAYOUTS",
    "LOSSLESS",
    "FittedFile",
    "Function",
    "Kind",
    "Layout",
    "Layouts",
    "TensorSpec",
    "as_written",
    "open_session",
    "session_options",
]


def session_options(kind: Kind, *, threads: int, prepack: bool, spin: bool = False) -> ort.SessionOptions:
    """How a function of this kind is opened.

    Arena on and memory pattern off: measured on the first two blocks of vgg19, a pattern holds the first run's buffers
    beside its own block (121 MB instead of 99), and without the arena nothing is reused (229 MB, 20 % slower). Planning
    which tensor takes whose buffer is off, too: it takes time that grows with the square of the graph, two thirds of
    what bert-base's session takes, and saves nothing that the arena, to which every tensor is given back, has not.

    Threads wait asleep: under a quota those that spin spend what the others need. Where there is none they may `spin`,
    until the run's end: resnet50 is 9 % quicker so with two.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if kind != "default":
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
        if spin:
            options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if kind in ("packaged", "portable", "reference"):
        options.enable_mem_pattern = options.enable_mem_reuse = False
        as_written(options, kind, prepack=prepack)
    return options


def as_written(options: ort.SessionOptions, kind: Kind, *, prepack: bool) -> None:
    """Have a graph of a package opened as it was written: nothing optimised again, nothing rounded."""
    # 4-bit products in full precision: by default their activations are rounded to 8 bits, which breaks law 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    options.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
    options.graph_optimization_level = (
        ort.GraphOptimizationLevel.ORT_ENABLE_ALL if kind == "portable" else ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    )


def open_session(path: Path, kind: Kind, *, threads: int, prepack: bool) -> ort.InferenceSession:
    """The session of a function, by `session_options`.

    Raises:
        ModelError: the runtime refuses the file.
    """
    options = session_options(kind, threads=threads, prepack=prepack)
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding raises Fail, NoSuchFile, InvalidProtobuf, ... without a common base
        text = str(error).splitlines()[0][:400]
        if "Protobuf" in text or "NoSuchFile" in type(error).__name__:
            raise PackageError(f"{path.name} cannot be loaded: {text}", where=str(path)) from error
        raise ModelError(f"the runtime refuses {path.name}: {text}", where=str(path)) from error
