"""A number of the catalogue: with where it is from, when it was looked up, and how far it can be believed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeVar

import msgspec

from lamella.errors import ConfigError

Confidence = Literal["documented", "measured", "reported", "assumed", "unknown"]
"""By the platform itself; in an experiment that the source names; by a third party; our guess; by nobody."""


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a fact is from."""

    source: str
    date: str
    """Looked up, ISO."""
    confidence: Confidence
    what: str = ""
    """Which figure of which platform, for messages; set by whoever reads a file, never written in one."""


class Figure(Source, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A number, or `unknown`."""

    number: float | Literal["unknown"] = msgspec.field(name="value")

    def __post_init__(self) -> None:
        """An unknown number has no confidence, and no other lacks it."""
        if (self.number == "unknown") != (self.confidence == "unknown"):
            raise ValueError('a figure that is unknown has value = "unknown" and confidence = "unknown"')
        if not isinstance(self.number, str) and not 0 <= self.number < float("inf"):
            raise ValueError(f"a figure is a finite number from 0, not {self.number}")

    @property
    def value(self) -> float:
        """The number.

        Raises:
            ConfigError: nobody knows it; it may be given in a file of one's own.
        """
        if isinstance(self.number, str):
            raise _unknown(self)
        return self.number

    @property
    def known(self) -> bool:
        """Whether there is a number."""
        return self.number != "unknown"


class Flag(Source, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Yes or no, or `unknown`."""

    answer: bool | Literal["unknown"] = msgspec.field(name="value")

    def __post_init__(self) -> None:
        """As of a figure."""
        if (self.answer == "unknown") != (self.confidence == "unknown"):
            raise ValueError('what is unknown has value = "unknown" and confidence = "unknown"')

    @property
    def value(self) -> bool:
        """The answer.

        Raises:
            ConfigError: nobody knows it.
        """
        if isinstance(self.answer, str):
            raise _unknown(self)
        return self.answer

    @property
    def known(self) -> bool:
        """Whether there is an answer."""
        return self.answer != "unknown"


def _unknown(one: Source) -> ConfigError:
    name, _, path = one.what.partition(": ")
    table, _, key = path.rpartition(".")
    file = f"the file {name}" if name.endswith(".toml") else f'a file with base = "{name}"'
    return ConfigError(
        f"{path or 'a figure'} of {name or 'the platform'} is not known ({one.source}), and this needs it",
        try_=f'--platform FILE.toml: {file}, with [{table}] and {key} = {{ value = ..., source = "...", date = "...", '
        'confidence = "assumed" }',
    )


T = TypeVar("T")


def named(value: T, platform: str, path: str = "") -> T:
    """The same with `what` set in every figure beneath."""
    if isinstance(value, Source):
        return msgspec.structs.replace(value, what=f"{platform}: {path}")
    if isinstance(value, msgspec.Struct):
        inner = {f: named(getattr(value, f), platform, f"{path}.{f}".strip(".")) for f in value.__struct_fields__}
        return msgspec.structs.replace(value, **inner)
    if isinstance(value, dict):
        return type(value)({k: named(v, platform, f"{path}.{k}") for k, v in value.items()})
    if isinstance(value, tuple):
        return type(value)(named(v, platform, f"{path}[{k}]") for k, v in enumerate(value))
    return value


def figures(value: Any, path: str = "") -> Iterator[tuple[str, Figure | Flag]]:
    """Every figure beneath, with its path as in the file."""
    if isinstance(value, Figure | Flag):
        yield path, value
    elif isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            yield from figures(getattr(value, field), f"{path}.{field}".strip("."))
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from figures(one, f"{path}.{key}")
    elif isinstance(value, tuple):
        for k, one in enumerate(value):
            yield from figures(one, f"{path}[{k}]")
