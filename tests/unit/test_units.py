"""Numbers as people are told them."""

from __future__ import annotations

import pytest

from lamella.units import digits


@pytest.mark.parametrize(
    ("value", "decimals", "said"),
    [
        (0.0, 3, "0.000"),
        (0.055, 3, "0.055"),
        (12.3456, 3, "12.346"),
        (0.000123, 3, "0.00012"),
        (-0.000123, 3, "-0.00012"),
        (0.000996, 3, "0.0010"),
        (1e-12, 3, "1e-12"),
        (1.25e302, 3, "1.25e+302"),
        (0.002, 1, "0.0020"),
        (6.71, 1, "6.7"),
        (0.5, 0, "0.50"),
        (549.2, 0, "549"),
    ],
)
def test_no_price_is_told_as_nought_that_is_not(value: float, decimals: int, said: str) -> None:
    assert digits(value, decimals) == said
