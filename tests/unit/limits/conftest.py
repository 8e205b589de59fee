"""A place of our own in the real tree, so that tests neither meet nor sweep the groups of other runs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from lamella.errors import ConfigError
from lamella.limits import detect
from lamella.limits.owner import full_name
from lamella.limits.v1 import V1Limiter

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def v1() -> Iterator[V1Limiter]:
    """Real cgroup v1 limits in a private corner; fails the test that leaves anything behind."""
    try:
        real = detect(env={"LAMELLA_LIMITS": "v1"})
    except ConfigError as error:
        pytest.skip(error.message)
    assert isinstance(real, V1Limiter)
    corner = {controller: place / full_name("tests") for controller, place in real.places.items()}
    for place in dict.fromkeys(corner.values()):
        place.mkdir()
    limiter = V1Limiter(corner)
    try:
        yield limiter
        left = limiter.names()
    finally:
        for name in limiter.names():
            with limiter.open(name):
                pass
        for place in dict.fromkeys(corner.values()):
            with contextlib.suppress(FileNotFoundError):
                place.rmdir()
    assert left == []
    assert [name for name in real.names() if name == full_name("tests")] == []
