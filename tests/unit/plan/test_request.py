"""A contender's name says what it is asked beyond the rest."""

import pytest

from lamella.errors import ConfigError
from lamella.plan.request import Request, variant


@pytest.mark.parametrize(
    ("name", "base", "asked"),
    [
        ("mopar", "mopar", Request(10.0)),
        ("single@2", "single", Request(10.0, vcpu=2.0)),
        ("ort@0.5", "ort", Request(10.0, vcpu=0.5)),
        ("mopar-no-shards", "mopar", Request(10.0, shards=False)),
        ("mopar-no-codec-no-similarity@2", "mopar", Request(10.0, codec=False, similarity=False, vcpu=2.0)),
        ("mopar-no-shared-memory", "mopar", Request(10.0, channel="socket")),
        ("ort-default", "ort-default", Request(10.0)),
        ("uniform-4", "uniform-4", Request(10.0)),
    ],
)
def test_names_ask(name: str, base: str, asked: Request) -> None:
    assert variant(name, Request(10.0)) == (base, asked)


@pytest.mark.parametrize(
    "name", ["single@", "single@two", "single@-1", "single@inf", "single@nan", "single@0", "exact@1e9"]
)
def test_odd_shares_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="number of vCPU"):
        variant(name, Request())
