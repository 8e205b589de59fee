"""Platforms from files: those of the catalogue, and files of one's own, which may say only what differs.

A file of one's own is a platform file, or begins with `base = "NAME"` of the catalogue and has only what is
other there. Its platform is called as the file, so that a plan for it finds it again:

    base = "aws-lambda"

    [start]
    fetch_mb_per_s = { value = 180, source = "our functions", date = "2026-11-22", confidence = "measured" }
"""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from lamella.errors import ConfigError
from lamella.platforms.figures import Figure, figures, named
from lamella.platforms.platform import Memory, Platform

SUFFIX = ".toml"
MOST_SIZES = 100_000
"""That a platform may sell: each is looked at. Lambda sells 10,113."""


def names() -> tuple[str, ...]:
    """The platforms of the catalogue."""
    folder = resources.files(__package__) / "catalogue"
    return tuple(sorted(p.name.removesuffix(SUFFIX) for p in folder.iterdir() if p.name.endswith(SUFFIX)))


@cache
def platform(name: str) -> Platform:
    """The platform of that name, or of a file that is called `*.toml`.

    Raises:
        ConfigError: there is none, with the names there are; or the file is not one of a platform.
    """
    if name.endswith(SUFFIX):
        return read_platform(Path(name))
    if name not in names():
        raise ConfigError(
            f"no platform {name!r}; there are {', '.join(names())}", try_=f"--platform {names()[0]}, or FILE.toml"
        )
    return _decoded(_catalogued(name), f"the catalogue's {name}")


def read_platform(path: Path) -> Platform:
    """A platform from a file of one's own, called as the file.

    Raises:
        ConfigError: it cannot be read, or is not a platform; says where.
    """
    told = _read(path)
    base = told.pop("base", None)
    whole = told if base is None else _merged(_catalogued(base), told)
    return _decoded({**whole, "name": str(path)}, str(path))


def base_of(path: Path) -> str | None:
    """Of which platform a file tells the differences."""
    base: str | None = _read(path).get("base")
    return base


def _read(path: Path) -> dict[str, Any]:
    try:
        told = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} cannot be read: {why}", where=str(path), try_="lamella platforms") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path} is not TOML: {error}", where=str(path), try_="lamella platforms show openfaas -o FILE.toml"
        ) from error
    base = told.get("base")
    if base is not None and base not in names():
        raise ConfigError(
            f"{path}: no platform {base!r} to begin with; there are {', '.join(names())}",
            where=str(path),
            try_=f'base = "{names()[0]}"',
        )
    return told


def text(name: str) -> str:
    """The catalogue's file, as it is."""
    return (resources.files(__package__) / "catalogue" / f"{name}{SUFFIX}").read_text()


def _catalogued(name: str) -> dict[str, Any]:
    return tomllib.loads(text(name))


def _merged(base: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """What is told takes the place of what was; a figure as a whole."""
    made = dict(base)
    for key, value in told.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict) and "value" not in value
        made[key] = _merged(base[key], value) if both else value
    return made


def _decoded(told: Mapping[str, Any], where: str) -> Platform:
    try:
        found = msgspec.convert(told, Platform)
        for path, figure in figures(found):
            _check_source(path, figure.source, figure.date, figure.what)
        _check(found)
    except ValueError as error:  # msgspec's, and those of _check
        raise ConfigError(f"{where}: {error}", where=where, try_="lamella platforms check FILE") from error
    return named(found, found.name)


def _check_source(path: str, source: str, date: str, what: str) -> None:
    if what:
        raise ValueError(f"{path}: `what` is not for files")
    if not source.strip():
        raise ValueError(f"{path} has no source; where is it from?")
    try:
        datetime.date.fromisoformat(date)
    except ValueError as error:
        raise ValueError(f"{path}: {date!r} is no date; as in 2026-11-22") from error


def _check_sizes(memory: Memory) -> None:
    """Sizes are whole megabytes, and so few that each can be looked at."""
    for path, figure in figures(memory, "memory"):
        if isinstance(figure, Figure) and figure.known and not figure.value.is_integer():
            raise ValueError(f"{path} is {figure.value:g}: sizes are whole MB")
    if memory.step_mb and all(f.known for f in (memory.min_mb, memory.max_mb, memory.step_mb)):
        count = (memory.max_mb.value - memory.min_mb.value) / memory.step_mb.value
        if count > MOST_SIZES:
            raise ValueError(
                f"memory is sold in {count:.3g} sizes, at most {MOST_SIZES:,} can be looked at: a larger step_mb"
            )


def _check_divisors(one: Platform) -> None:
    """What something is divided by is above nought."""
    divisors = {
        "cpu.max_vcpu": one.cpu.max_vcpu,
        "cpu.period_ms": one.cpu.period_ms,
        "cpu.mb_per_vcpu": one.cpu.mb_per_vcpu,
        "node.memory_mb": one.node.memory_mb if one.node else None,
        "node.vcpu": one.node.vcpu if one.node else None,
    }
    for path, figure in divisors.items():
        if figure and figure.known and not figure.value:
            raise ValueError(f"{path} is 0, it must be above")


def _check(one: Platform) -> None:
    """What a schema does not say."""
    _check_divisors(one)
    if not one.name.strip():
        raise ValueError("a platform has a name")
    if bool(one.memory.step_mb) == bool(one.memory.only_mb):
        raise ValueError("memory is sold in steps (step_mb) or in a few sizes (only_mb): one of them")
    if one.memory.step_mb and one.memory.step_mb.known and one.memory.step_mb.value < 1:
        raise ValueError(f"memory.step_mb is {one.memory.step_mb.value:g}, at least 1 MB is needed")
    _check_sizes(one.memory)
    if one.memory.min_mb.known and one.memory.max_mb.known and one.memory.min_mb.value > one.memory.max_mb.value:
        raise ValueError(f"memory.min_mb {one.memory.min_mb.value:g} is more than max_mb {one.memory.max_mb.value:g}")
    if (one.cpu.coupling == "memory") != (one.cpu.mb_per_vcpu is not None):
        raise ValueError('cpu.mb_per_vcpu goes with coupling = "memory", and only with it')
    if [r.vcpu for r in one.cpu.ranges] != sorted({r.vcpu for r in one.cpu.ranges}):
        raise ValueError("cpu.ranges come by vcpu, each once")
    if one.kind == "instance" and (one.node is None or one.node.usd_per_hour is None):
        raise ValueError('kind = "instance" needs [node] with usd_per_hour')
    for hop in (one.hop, *one.channels.values()):
        if hop.price is not None:
            raise ValueError(f"channel {hop.channel}: `price` is measured on a machine, never written in a file")
        if hop.emulated and hop.mb_per_s.known and not hop.mb_per_s.value:
            raise ValueError(f"channel {hop.channel} is emulated at 0 MB/s: nothing would ever arrive")
