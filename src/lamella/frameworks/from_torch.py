"""A `torch.nn.Module` as ONNX, by torch.export and `torch.onnx.export(dynamo=True)`.

The module is traced inside a wrapper that takes its inputs by name and gives a flat tuple of tensors, whatever
structure the module itself returns: so inputs and outputs have the names a user knows, and dataclasses need no
registration with torch.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lamella.errors import ExportRefused, ModelError, UnboundShape
from lamella.frameworks.examples import Example, check_names, given, made, traced
from lamella.frameworks.extras import quiet, require
from lamella.graph.load import Shapes

OPSET = 20
"""The oldest one that torch's exporter writes without a conversion, so that older runtimes read it as well."""

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True, eq=False)
class TorchModel:
    """A module with its inputs. `by_name` says which are given as keywords; the others come first, in order."""

    module: Any
    examples: tuple[Example, ...]
    by_name: frozenset[str] = frozenset()

    def answer(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Its outputs, flat."""
        return [array(tensor) for _, tensor in leaves(self.call(self.tensors(feeds)))]

    def write(self, path: Path) -> None:
        """Export it.

        Raises:
            ExportRefused: torch cannot export it.
        """
        feeds = traced(self.examples)
        tensors = self.tensors(feeds)
        try:
            names = output_names(self.call(tensors), list(feeds))
        except ModelError:
            raise
        except Exception as error:  # the user's code, which may raise anything
            raise _refused("the module refuses its example", error, self.examples) from error
        convert(self.call, self.examples, tensors, names, path)

    def call(self, tensors: Sequence[Any]) -> Any:
        """What the module returns."""
        named = dict(zip((e.name for e in self.examples), tensors, strict=True))
        positional = [tensor for name, tensor in named.items() if name not in self.by_name]
        return self.module(*positional, **{name: named[name] for name in named if name in self.by_name})

    def tensors(self, feeds: Mapping[str, np.ndarray]) -> list[Any]:
        """The request as tensors, where the module's weights are."""
        torch = require("torch")
        first = next(iter(self.module.parameters()), None)
        device = "cpu" if first is None else first.device
        return [torch.from_numpy(np.array(feeds[e.name])).to(device) for e in self.examples]


def torch_model(module: Any, example_inputs: object, shapes: Shapes) -> TorchModel:
    """The module with its inputs: the examples, or what `shapes` says of them, in float32.

    Raises:
        ModelError: an example is no tensor.
        UnboundShape: nothing is known of an input, or `shapes` contradicts the example.
    """
    parameters = [p for p in inspect.signature(module.forward).parameters.values() if p.kind not in _VARIADIC]
    if example_inputs is None:
        return _from_shapes(module, parameters, shapes)
    if isinstance(example_inputs, Mapping):
        arrays = {str(name): array(value, name) for name, value in example_inputs.items()}
        by_name = frozenset(arrays)
    else:
        values = example_inputs if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
        names = [p.name for p in parameters if p.kind in _POSITIONAL]
        names += [f"input_{i}" for i in range(len(names), len(values))]
        arrays = {name: array(value, name) for name, value in zip(names, values, strict=False)}
        by_name = frozenset()
    check_names(shapes, arrays)
    return TorchModel(module, tuple(given(n, a, shapes) for n, a in arrays.items()), by_name)


def _from_shapes(module: Any, parameters: Sequence[inspect.Parameter], shapes: Shapes) -> TorchModel:
    names = [p.name for p in parameters]
    if names:
        check_names(shapes, names)
    absent = [p.name for p in parameters if p.default is p.empty and p.name not in shapes]
    if absent or not shapes:
        name = type(module).__name__
        raise UnboundShape(
            f"{name}.forward takes {', '.join(names) or 'what it is given'}; nothing is known of "
            f"{', '.join(absent) or 'its inputs'}",
            where=f"{name}.forward",
            try_=f"--shape {next(iter(absent), 'x')}=N,3,224,224 for float32; for other types return the pair "
            "(model, example_inputs)",
        )
    examples = tuple(made(n, shapes[n], np.dtype(np.float32)) for n in names or shapes if n in shapes)
    return TorchModel(module, examples, frozenset(names))


def array(value: object, name: object = "output") -> np.ndarray:
    """A tensor or array as numpy has it; bfloat16, which numpy has not, as float32.

    Raises:
        ModelError: it is neither.
    """
    torch = require("torch")
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if isinstance(value, torch.Tensor):
        tensor: Any = value
        tensor = tensor.detach().cpu()
        found: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        return found
    raise ModelError(
        f"{name!r} is a {type(value).__name__}; a request carries tensors only",
        where=f"{name!r}",
        try_="a wrapper module that takes and gives tensors",
    )


def leaves(value: object, path: str = "") -> list[tuple[str, Any]]:
    """The tensors of a module's answer with their names: keys, fields, positions; None is left out.

    Raises:
        ModelError: something in it is no tensor.
    """
    if isinstance(value, require("torch").Tensor):
        return [(path or "output", value)]
    if value is None:
        return []
    inside: Iterator[tuple[Any, Any]]
    if isinstance(value, Mapping):
        inside = iter(value.items())
    elif dataclasses.is_dataclass(value):
        inside = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        inside = zip(value._fields, value, strict=True)
    elif isinstance(value, (tuple, list)):
        inside = ((i if path else f"output_{i}", item) for i, item in enumerate(value))
    else:
        raise ModelError(
            f"{path or 'the answer'} is a {type(value).__name__}; a model's answer carries tensors only",
            try_="a wrapper module that returns tensors",
        )
    return [leaf for key, item in inside for leaf in leaves(item, f"{path}.{key}" if path else str(key))]


def output_names(answer: object, taken: Sequence[str]) -> list[str]:
    """The names of an answer's tensors, none of them an input's."""
    names = [name for name, _ in leaves(answer)]
    if not names:
        raise ModelError("the model returns no tensor", try_="return what forward computes")
    return [f"{name}_out" if name in taken else name for name in names]


def convert(call: Any, examples: Sequence[Example], tensors: Sequence[Any], outputs: Sequence[str], path: Path) -> None:
    """Trace `call`, which takes a list of tensors, and write it as ONNX.

    Raises:
        ExportRefused: torch cannot export it.
    """
    torch = require("torch")
    require("onnxscript")
    rows = torch.export.Dim("N", min=1)
    free = tuple({0: rows} if e.free else None for e in examples)
    with quiet():
        try:
            wrapped = _wrapped(call)
            program = torch.export.export(wrapped, tuple(tensors), dynamic_shapes=(free,), strict=False)
            written = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=[e.name for e in examples],
                output_names=list(outputs),
            )
            written.save(str(path))
        except Exception as error:  # torch raises dozens of kinds, and the user's code any
            raise _refused("torch cannot export the model", error, examples) from error


def _wrapped(call: Any) -> Any:
    """A module around `call`: any tensors in, a flat tuple out."""
    flat = require("torch").nn.Module()
    flat.model = call.__self__.module  # its weights are this module's
    flat.forward = lambda *tensors: tuple(tensor for _, tensor in leaves(call(tensors)))
    return flat


@contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """The module in eval mode and without gradients; each part is put back into the mode it was in."""
    torch = require("torch")
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in before:
            part.training = training


def _refused(what: str, error: Exception, examples: Sequence[Example]) -> ExportRefused:
    """Torch's error in our words: the first relevant line, where in the user's code, what to do."""
    text = str(error).strip()
    lines = [line.strip(" -") for line in text.splitlines() if line.strip()] or [type(error).__name__]
    first, try_ = lines[0], "rewrite that part, or export the model to ONNX yourself and give the file"
    if "data-dependent" in text:
        what, try_ = "its control flow depends on the values of a tensor", "torch.where or torch.cond for the branch"
    elif "Constraints violated" in text or "specialized" in text:
        what = "the batch axis cannot stay free"
        first = next((line for line in lines if "specialized" in line), first)
        free = next((e for e in examples if e.free), examples[0])
        try_ = f"--shape {free.name}=" + ",".join(map(str, (1, *free.values.shape[1:])))
    return ExportRefused(f"{what}: {type(error).__name__}: {first[:300]}", where=_place(error, text), try_=try_)


def _place(error: BaseException, text: str) -> str:
    """The last line of the user's own code that torch names or that raised."""
    own = (str(Path(require("torch").__file__).parent), str(Path(__file__).parent))
    frames = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    frames += [(file, int(line)) for file, line in re.findall(r'File "([^"]+)", line (\d+)', text)]
    users = [f for f in frames if f[0].endswith(".py") and not f[0].startswith(own) and "site-packages" not in f[0]]
    return "{}, line {}".format(*users[-1]) if users else ""
