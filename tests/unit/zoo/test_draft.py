"""A blueprint's file, against protobuf's own writer."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from lamella.zoo.draft import Draft


def test_the_streamed_file_is_what_protobuf_would_write() -> None:
    draft = Draft("stream")
    draft.weight("kernel", 300, 5, std=1.0, mean=2.0)
    draft.weight("positive", 7, std=0.1, log=True)
    draft.constant("axis", np.array([-1], np.int64))
    draft.constant("scalar", np.array(0.5, np.float32))
    draft.node("MatMul", "x", "kernel", name="y")
    blueprint = draft.finish({"x": ("float32", ("N", 300))}, "y", ("N", 5))
    model = onnx.ModelProto()
    model.CopyFrom(blueprint.frame)
    model.graph.initializer.extend(numpy_helper.from_array(w.values(), w.name) for w in blueprint.weights)
    streamed = b"".join(blueprint.stream())
    assert streamed == model.SerializeToString(deterministic=True)
    assert len(streamed) == blueprint.size_bytes
    assert blueprint.parameters == 300 * 5 + 7
    assert (blueprint.weights[1].values() > 0).all()
