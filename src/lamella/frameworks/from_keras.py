"""A Keras model as ONNX, from Keras' torch backend.

Where every dimension is bound, by Keras' own export. With a free batch axis that one leaves torch's exporter for the
deprecated TorchScript one, which refuses Xception (keras 3.15, torch 2.13); there a Keras model is a `torch.nn.Module`
like any other, and goes that way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lamella.errors import ConfigError, ExportRefused, ModelError
from lamella.frameworks.examples import Example, check_names, given, made, traced
from lamella.frameworks.extras import quiet, require
from lamella.frameworks.from_torch import array, convert, leaves, output_names
from lamella.graph.load import Shapes

_UNNAMED = re.compile(r"keras_tensor(_\d+)?")


@dataclass(frozen=True, slots=True, eq=False)
class KerasModel:
    """A model with its inputs, in the order of `model.inputs`."""

    module: Any
    examples: tuple[Example, ...]

    def answer(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Its outputs, flat."""
        return [array(tensor) for _, tensor in leaves(self.call(self._tensors(feeds)))]

    def write(self, path: Path) -> None:
        """Export it.

        Raises:
            ExportRefused: Keras, or torch, cannot export it.
        """
        feeds = traced(self.examples)
        tensors = self._tensors(feeds)
        answer = self.call(tensors)
        if any(e.free for e in self.examples):
            convert(self.call, self.examples, tensors, self._outputs(answer), path)
            return
        keras = require("keras")
        require("onnxscript")
        specs = [keras.InputSpec(shape=e.values.shape, dtype=e.values.dtype.name, name=e.name) for e in self.examples]
        with quiet():
            try:
                self.module.export(str(path), format="onnx", verbose=False, input_signature=[self._packed(specs)])
            except Exception as error:  # Keras and torch raise dozens of kinds
                first = next(iter(str(error).strip().splitlines()), "")[:300]
                raise ExportRefused(f"Keras cannot export the model: {type(error).__name__}: {first}") from error

    def call(self, tensors: Sequence[Any]) -> Any:
        """What the model returns."""
        return self.module(self._packed(tensors), training=False)

    def _packed(self, flat: Sequence[Any]) -> Any:
        """The inputs in the structure the model was made with."""
        structure = getattr(self.module, "input", self.module.inputs[0])  # a Sequential has one, and no `input`
        return require("keras").tree.pack_sequence_as(structure, list(flat))

    def _tensors(self, feeds: Mapping[str, np.ndarray]) -> list[Any]:
        keras = require("keras")
        return [keras.ops.convert_to_tensor(feeds[e.name]) for e in self.examples]

    def _outputs(self, answer: Any) -> list[str]:
        """The names of the layers that give the answer, where Keras says them."""
        taken = [e.name for e in self.examples]
        found, told = output_names(answer, taken), [str(n) for n in getattr(self.module, "output_names", None) or ()]
        fits = len(told) == len(found) and len({*told, *taken}) == len(told) + len(taken)
        return told if fits and not isinstance(answer, Mapping) else found


def keras_model(model: Any, example_inputs: object, shapes: Shapes) -> KerasModel:
    """The model with its inputs as it declares them: an axis without a length first is the free batch.

    Raises:
        ConfigError: Keras runs on another backend than torch.
        ModelError: it does not declare its inputs, or the examples do not fit their number.
        UnboundShape: an axis other than the first has no length, or `shapes` contradicts an example.
    """
    backend = require("keras").backend.backend()
    if backend != "torch":
        raise ConfigError(
            f"Keras runs on {backend} here; its models are exported from the torch backend",
            try_="KERAS_BACKEND=torch; a model saved as .keras opens there too",
        )
    declared = _inputs(model)
    check_names(shapes, declared)
    if example_inputs is None:
        dims = {n: tuple(shapes.get(n) or _dims(tensor)) for n, tensor in declared.items()}
        return KerasModel(model, tuple(made(n, dims[n], np.dtype(str(tensor.dtype))) for n, tensor in declared.items()))
    values = _values(example_inputs, declared)
    return KerasModel(model, tuple(given(n, a, shapes) for n, a in values.items()))


def _inputs(model: Any) -> dict[str, Any]:
    """What the model declares, by name; inputs that Keras had to name itself are input, or input_0, input_1, ..."""
    declared = list(getattr(model, "inputs", None) or ())
    if not declared:
        raise ModelError(
            f"{type(model).__name__} does not declare its inputs: it is not built, or subclasses keras.Model",
            try_="x = keras.Input(shape); keras.Model(x, model(x))",
        )
    own = "input" if len(declared) == 1 else "input_{}"
    names = [own.format(i) if _UNNAMED.fullmatch(t.name) else str(t.name) for i, t in enumerate(declared)]
    return dict(zip(names, declared, strict=True))


def _dims(tensor: Any) -> tuple[int | str, ...]:
    """Its shape; N for an unknown first axis, `?` for another one, which is then refused."""
    return tuple(int(d) if d is not None else ("?" if axis else "N") for axis, d in enumerate(tensor.shape))


def _values(example_inputs: object, declared: Mapping[str, Any]) -> dict[str, np.ndarray]:
    if isinstance(example_inputs, Mapping):
        given_names, values = [str(n) for n in example_inputs], list(example_inputs.values())
    else:
        values = list(example_inputs) if isinstance(example_inputs, (tuple, list)) else [example_inputs]
        given_names = list(declared)[: len(values)]
    if sorted(given_names) != sorted(declared) or len(values) != len(declared):
        raise ModelError(
            f"the model takes {', '.join(declared)}; the examples are {len(values)}: {', '.join(given_names)}"
        )
    found = dict(zip(given_names, values, strict=True))
    return {name: array(found[name], name) for name in declared}
