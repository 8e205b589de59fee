"""Numbers of figures: ticks, classes of colour, what text fits where.

Across, figures are laid out in percent of their width and text in pixels, so that one drawing serves a desk and a
phone: it is not scaled, only stretched, and letters keep their size. A label that fits only a wide drawing says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CLASSES = 7
"""Colours of a ramp; the style sheet has as many."""
LETTER_PX = 6.8
"""Mean width of a letter at the figures' 12 pixels, on the wide side."""
NARROW_PX, WIDE_PX = 300, 900
"""Widths a figure has at least: on a phone, and where the style sheet shows `wide` labels."""


@dataclass(frozen=True, slots=True)
class Label:
    """A text of a figure: `x` in percent, `y` in pixels; `fits` is `always`, or `wide` drawings only."""

    x: float
    y: float
    text: str
    fits: str = "always"
    anchor: str = "middle"


def inside(left: float, width: float, y: float, text: str) -> tuple[Label, ...]:
    """The text in the middle of a box (percent), where it fits at all."""
    need = len(text) * LETTER_PX + 4
    for px, fits in ((NARROW_PX, "always"), (WIDE_PX, "wide")):
        if width / 100 * px >= need:
            return (Label(left + width / 2, y, text, fits),)
    return ()


def step(most: float, wanted: int) -> float:
    """A round distance of ticks, 1, 2 or 5 times a power of ten, for at most about `wanted` of them."""
    if most <= 0:
        return 1.0
    rough = most / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(m for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers from `low` to `high`."""
    distance = step(high - low, wanted)
    first = math.ceil(low / distance - 1e-9)
    return [i * distance for i in range(first, math.floor(high / distance + 1e-9) + 1)]


def shade(value: float, most: float) -> int:
    """The class of colour of a value between 0 and `most`, classes equally wide."""
    return min(CLASSES - 1, int(value / most * CLASSES)) if most > 0 else 0


def number(value: float) -> str:
    """Three significant digits, never in powers of ten: 0.0123, 4.56, 78.9, 1235."""
    if not math.isfinite(value) or value == 0:
        return f"{value:.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 8)}f}"


def tick(value: float) -> str:
    """A number at an axis, which is round already."""
    return f"{value:.10f}".rstrip("0").rstrip(".") if value else "0"
