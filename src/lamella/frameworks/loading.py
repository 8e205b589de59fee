"""From whatever a user calls a model to its graph."""

from __future__ import annotations

import os
from pathlib import Path

from lamella.errors import ConfigError
from lamella.frameworks.attribute import find, is_attribute
from lamella.frameworks.exported import keep
from lamella.frameworks.from_keras import KerasModel, keras_model
from lamella.frameworks.from_torch import TorchModel, evaluating, torch_model
from lamella.frameworks.kinds import is_keras, is_torch
from lamella.graph.load import GIVE, Shapes, import_model
from lamella.graph.model import Graph


def load(model: object, example_inputs: object = None, *, shapes: Shapes | None = None) -> Graph:
    """The graph of a model: what `lamella.plan` and the other parts take.

    A torch or Keras model is exported to ONNX and compared with the original on three requests; it is put into eval
    mode meanwhile, and back. `Graph.source` is the exported file, which the later verbs take without the framework.

    Args:
        model: a path to an .onnx file, `zoo:NAME`, `package.module:attribute`, a `torch.nn.Module` or a Keras model.
        example_inputs: of one request: an array or tensor, several in a tuple, or by name in a dict. A Keras model and
            a torch module with `shapes` need none.
        shapes: for each input its dimensions; `N` on the first axis keeps the batch axis free.

    Raises:
        ConfigError: examples for an ONNX file, or no kind of model that is known.
        ExportRefused: it cannot be exported, or answers differently once it is.
        MissingExtra: the framework is not installed.
        ModelError: as `lamella.graph.load.import_model`.
        UnboundShape: nothing is known of an input.
    """
    if isinstance(model, (str, os.PathLike)):
        text = os.fspath(model)
        if not is_attribute(str(text)):
            if example_inputs is not None:
                raise ConfigError("example_inputs are for models of torch and Keras; an ONNX file declares its inputs")
            return import_model(str(text), shapes)
        named = find(str(text))
        name = str(text).rpartition(":")[2]
        return _exported(named.model, named.example_inputs if example_inputs is None else example_inputs, shapes, name)
    return _exported(model, example_inputs, shapes, str(getattr(model, "name", "") or type(model).__name__))


def named_for_later(model: str, graph: Graph) -> str:
    """What a plan calls its model, so that later verbs find it from any directory: `zoo:NAME`, or the file.

    For `package.module:attribute` it is the exported file: the very weights that were planned for, and no framework.
    """
    return model if model.startswith("zoo:") else str(Path(graph.source).resolve())


def _exported(model: object, example_inputs: object, shapes: Shapes | None, name: str) -> Graph:
    original: TorchModel | KerasModel
    if is_keras(model):
        original = keras_model(model, example_inputs, shapes or {})
    elif is_torch(model):
        original = torch_model(model, example_inputs, shapes or {})
    else:
        raise ConfigError(f"a {type(model).__name__} is no model that lamella reads", try_=GIVE)
    with evaluating(original.module):
        path = keep(original, name)
    examples = original.examples
    return import_model(str(path), {e.name: e.shape for e in examples}, [spec for e in examples if (spec := e.spec())])
