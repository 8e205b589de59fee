"""Which framework an object is of, without importing one: whoever made the object has imported it."""

from __future__ import annotations

import sys


def is_keras(value: object) -> bool:
    """Whether it is a Keras model. On the torch backend it is a torch.nn.Module too, so this is asked first."""
    return _is("keras", "Model", value)


def is_torch(value: object) -> bool:
    """Whether it is a torch.nn.Module."""
    return _is("torch.nn", "Module", value)


def is_model(value: object) -> bool:
    """Whether it is a model of one of the frameworks."""
    return is_keras(value) or is_torch(value)


def _is(module: str, name: str, value: object) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)
