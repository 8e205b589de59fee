"""A picture of how time grows: lines over two logarithmic axes, an SVG file that follows the reader's light or dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 56, 44

TEMPLATE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{ width }} {{ height }}"
  width="{{ width }}" height="{{ height }}" role="img">
<title>{{ title }}</title>
<style>
{{ colours }}
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--ink); }
svg text.axis { fill: var(--soft); font-size: 11px; } .title { font-weight: 600; font-size: 15px; }
.halo { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
.paper { fill: var(--paper); } .grid { stroke: var(--hair); }
.line { fill: none; stroke: var(--rest); stroke-width: 2; } .dot { fill: var(--rest); }
.best .line { stroke: var(--best); } .best .dot { fill: var(--best); }
</style>
<rect class="paper" width="100%" height="100%"/>
<text class="title" x="12" y="24">{{ title }}</text>
{% for y, label in rows -%}
<line class="grid" x1="{{ left }}" x2="{{ right }}" y1="{{ y }}" y2="{{ y }}"/>
<text class="axis" x="{{ left - 8 }}" y="{{ y + 4 }}" text-anchor="end">{{ label }}</text>
{% endfor -%}
{% for x, label in columns -%}
<line class="grid" x1="{{ x }}" x2="{{ x }}" y1="{{ top }}" y2="{{ bottom }}"/>
<text class="axis" x="{{ x }}" y="{{ bottom + 18 }}" text-anchor="middle">{{ label }}</text>
{% endfor -%}
<text class="axis" x="{{ right }}" y="{{ bottom + 36 }}" text-anchor="end">units</text>
{% for line in lines -%}
<g class="{{ 'best' if line.best }}">
<polyline class="line" points="{% for x, y, _ in line.points %}{{ x }},{{ y }} {% endfor %}"/>
{% for x, y, told in line.points -%}
<circle class="dot" cx="{{ x }}" cy="{{ y }}" r="3.5"><title>{{ told }}</title></circle>
{% endfor -%}
<text class="halo" x="{{ line.at[0] }}" y="{{ line.at[1] }}" text-anchor="{{ line.anchor }}">{{ line.name }}</text>
</g>
{% endfor -%}
</svg>
"""


class Line(NamedTuple):
    """One way of planning: (units, seconds), by units."""

    name: str
    points: tuple[tuple[float, float], ...]
    best: bool = False


def growth_svg(title: str, lines: Sequence[Line]) -> str:
    """The picture; of lines without points nothing.

    Args:
        title: above it.
        lines: each named at its last point.
    """
    lines = [line for line in lines if line.points]
    low_x, high_x = _decades([x for line in lines for x, _ in line.points])
    low_y, high_y = _decades([y for line in lines for _, y in line.points])

    def place(units: float, seconds: float) -> tuple[float, float]:
        across = (math.log10(units) - low_x) / (high_x - low_x)
        up = (math.log10(seconds) - low_y) / (high_y - low_y)
        return round(LEFT + across * (WIDTH - LEFT - RIGHT), 1), round(
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1
        )

    drawn = []
    for line in lines:
        points = [(*place(*p), f"{p[0]:,.0f} units: {_time(p[1])}") for p in line.points]
        x, y, _ = points[-1]
        right = x > WIDTH * 0.6  # no room behind it
        at = (x, y - 12) if right else (x + 10, y + 4)
        anchor = "end" if right else "start"
        drawn.append({"name": line.name, "best": line.best, "points": points, "at": at, "anchor": anchor})
    colours = (resources.files("lamella.report") / "templates" / "colours.css").read_text()
    template = Environment(undefined=StrictUndefined, autoescape=False).from_string(TEMPLATE)
    return template.render(
        title=title,
        colours=colours,
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        top=TOP,
        bottom=HEIGHT - BOTTOM,
        rows=[(place(10**low_x, 10.0**k)[1], _time(10.0**k)) for k in range(low_y, high_y + 1)],
        columns=[(place(10.0**k, 10.0**low_y)[0], f"{10**k:,}") for k in range(low_x, high_x + 1)],
        lines=drawn,
    )


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten around them, at least one apart."""
    if not values:
        return 0, 1
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _time(seconds: float) -> str:
    """As one reads it."""
    return f"{seconds:,.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
