"""`package.module:attribute` -> the model it names. The current directory is importable, as with `python -m`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from lamella.errors import ModelError
from lamella.frameworks.extras import EXTRAS, missing
from lamella.frameworks.kinds import is_model

_PATTERN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


class Named(NamedTuple):
    """What a name stood for."""

    model: object
    example_inputs: object | None
    """The second of a pair (model, example_inputs)."""


def is_attribute(text: str) -> bool:
    """Whether `text` has the form `package.module:attribute`, and is neither `zoo:NAME` nor a file."""
    return bool(_PATTERN.fullmatch(text)) and not text.startswith("zoo:") and not Path(text).exists()


def find(text: str) -> Named:
    """The model called `package.module:attribute`: there itself, in a pair with its inputs, or made by a callable.

    Keras is imported with the backend that can be exported, unless KERAS_BACKEND says another.

    Raises:
        MissingExtra: the module imports a framework that is not installed.
        ModelError: no such module or attribute, it fails, or it is no model.
    """
    module_name, _, attribute = text.partition(":")
    if importlib.util.find_spec("torch"):
        os.environ.setdefault("KERAS_BACKEND", "torch")
    value: object = _imported(module_name)
    for part in attribute.split("."):
        value = _member(value, part, text)
    if callable(value) and not is_model(value):
        value = _made(value, text)
    model, example_inputs = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
    if not is_model(model):
        raise ModelError(
            f"{text} is a {type(model).__name__}, not a torch.nn.Module or a Keras model",
            where=text,
            try_="name a model, a pair (model, example_inputs), or a function without arguments that returns one",
        )
    return Named(model, example_inputs)


def _imported(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()  # the file may be younger than the directory's listing
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        absent = error.name or ""
        if absent == name or name.startswith(f"{absent}."):
            raise ModelError(
                f"there is no module {absent!r}, neither in {here} nor installed",
                try_="run lamella where the module's file or package lies",
            ) from error
        if absent.partition(".")[0] in EXTRAS:
            raise missing(absent) from error
        raise _failed(f"importing {name}", error, name) from error
    except (Exception, SystemExit) as error:  # the user's code, which may raise anything
        raise _failed(f"importing {name}", error, name) from error


def _member(value: object, part: str, text: str) -> object:
    try:
        return getattr(value, part)
    except AttributeError as error:
        where = getattr(value, "__name__", type(value).__name__)
        closest = difflib.get_close_matches(part, dir(value), n=1)
        hint = f"; did you mean {closest[0]!r}?" if closest else ""
        raise ModelError(f"{where} has no attribute {part!r}{hint}", where=text) from error


def _made(make: Callable[..., Any], text: str) -> object:
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise ModelError(
            f"{text} cannot be called without arguments: {error}",
            where=text,
            try_="write a function without arguments that returns the model",
        ) from error
    except ValueError:  # a builtin that does not tell its arguments: the call will
        pass
    try:
        return make()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in EXTRAS:
            raise missing(error.name or "") from error
        raise _failed(f"{text}()", error, text) from error
    except (Exception, SystemExit) as error:  # the user's code, which may raise anything
        raise _failed(f"{text}()", error, text) from error


def _failed(what: str, error: BaseException, text: str) -> ModelError:
    frames = traceback.extract_tb(error.__traceback__)
    last = next((f for f in reversed(frames) if not f.filename.startswith("<")), None)
    where = f"{last.filename}, line {last.lineno}" if last else text
    first = next(iter(str(error).strip().splitlines()), "")
    return ModelError(f"{what} raises {type(error).__name__}: {first}", where=where)
