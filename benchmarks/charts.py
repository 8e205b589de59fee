"""Charts of the benchmarks' pages: points and lines over two axes, as SVG files of the report's colours.

A chart is data (axes, series, marks) and one function that draws it. Colours are the report's, so that a page reads the
same in the light and in the dark; a series has a shape of its own beside its colour.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import NamedTuple
from xml.sax.saxutils import escape

from lamella.report.scales import LETTER_PX, tick, ticks

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 74, 20, 40, 52
LEGEND_PX = 18
COLOURS = ("best", "memory-5", "time-4", "warn", "rest", "ink")
"""Of series, in turn; names of the report's colours."""
RADIUS = 4


class Axis(NamedTuple):
    """What runs along it, from `low` to `high`; on a logarithmic one both are above nought."""

    title: str
    low: float
    high: float
    log: bool = False
    percent: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, from 0 to 1; outside where it is beyond the ends."""
        if self.log:
            return math.log(max(value, 1e-300) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def marks(self) -> list[float]:
        """Round values to write at it: powers of ten, thinned out, of a logarithmic one that spans two of them."""
        decades = math.log10(self.high / self.low) if self.log else 0.0
        if decades < 1:
            return ticks(self.low, self.high, 6)
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        if decades < 3:
            marks = [m * 10.0**e for e in range(first - 1, last + 1) for m in (1, 2, 5)]
            return [m for m in marks if self.low * (1 - 1e-9) <= m <= self.high * (1 + 1e-9)]
        return [10.0**e for e in range(first, last + 1, max(1, (last - first) // 8))]

    def label(self, value: float) -> str:
        """A value as it is written at it."""
        if self.percent:
            return f"{value:.0%}"
        return f"{value:,.0f}" if value >= 1000 else tick(value)


class Series(NamedTuple):
    """Points of one name; `line` joins them in order."""

    name: str
    points: Sequence[tuple[float, float]]
    line: bool = False
    titles: Sequence[str] = ()
    """What each point says when it is pointed at."""


class Guide(NamedTuple):
    """A thin line behind the series, from point to point, with a word at its end."""

    points: Sequence[tuple[float, float]]
    text: str = ""
    dashed: bool = False


def chart(title: str, x: Axis, y: Axis, series: Sequence[Series], guides: Sequence[Guide] = ()) -> str:
    """The chart as an SVG file.

    Args:
        title: above it.
        x: the axis across.
        y: the axis up.
        series: in the order of the legend; at most as many as there are colours look different.
        guides: lines to read the points by.
    """
    rows = _legend_rows([s.name for s in series])
    height = HEIGHT + LEGEND_PX * len(rows)
    frame = _Frame(x, y)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img"><title>{escape(title)}</title><style>{_style()}</style>',
        f'<rect width="{WIDTH}" height="{height}" fill="var(--paper)"/>',
        f'<text x="{LEFT}" y="22" class="title">{escape(title)}</text>',
        f'<clipPath id="plot"><rect x="{LEFT}" y="{TOP}" width="{frame.wide}" height="{frame.high}"/></clipPath>',
        *frame.axes(),
        *(frame.guide(g) for g in guides),
        *(frame.series(s, k) for k, s in enumerate(series)),
        *_legend(rows),
        "</svg>\n",
    ]
    return "\n".join(parts)


class _Frame(NamedTuple):
    """Where values come to lie, in pixels."""

    x: Axis
    y: Axis

    @property
    def wide(self) -> float:
        return WIDTH - LEFT - RIGHT

    @property
    def high(self) -> float:
        return HEIGHT - TOP - BOTTOM

    def at(self, point: tuple[float, float]) -> tuple[float, float]:
        return LEFT + self.x.place(point[0]) * self.wide, TOP + (1 - self.y.place(point[1])) * self.high

    def axes(self) -> Iterator[str]:
        ground = TOP + self.high
        for value in self.x.marks():
            across, _ = self.at((value, self.y.low))
            yield f'<path class="hair" d="M{across:.1f} {TOP}V{ground}"/>'
            yield f'<text x="{across:.1f}" y="{ground + 17}" text-anchor="middle">{self.x.label(value)}</text>'
        for value in self.y.marks():
            _, up = self.at((self.x.low, value))
            yield f'<path class="hair" d="M{LEFT} {up:.1f}H{LEFT + self.wide}"/>'
            yield f'<text x="{LEFT - 7}" y="{up + 4:.1f}" text-anchor="end">{self.y.label(value)}</text>'
        middle = LEFT + self.wide / 2, TOP + self.high / 2
        yield f'<text class="soft" x="{middle[0]}" y="{ground + 38}" text-anchor="middle">{escape(self.x.title)}</text>'
        yield (
            f'<text class="soft" transform="translate(16 {middle[1]}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y.title)}</text>"
        )

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{across:.1f} {up:.1f}" for across, up in map(self.at, points))

    def guide(self, guide: Guide) -> str:
        dashes = ' stroke-dasharray="5 4"' if guide.dashed else ""
        line = f'<path class="guide" clip-path="url(#plot)" d="{self.path(guide.points)}"{dashes}/>'
        if not guide.text:
            return line
        across, up = self.at(guide.points[-1])
        across, up = min(across, LEFT + self.wide) - 5, max(up, TOP) - 5
        near_top = up < TOP + 12
        return (
            f'{line}<text class="soft" x="{across:.1f}" y="{up + 20 if near_top else up:.1f}" text-anchor="end">'
            f"{escape(guide.text)}</text>"
        )

    def series(self, series: Series, k: int) -> str:
        colour = f"var(--{COLOURS[k % len(COLOURS)]})"
        if series.line:
            line = f'<path clip-path="url(#plot)" fill="none" stroke="{colour}" d="{self.path(series.points)}"/>'
            return f'<g stroke-width="2">{line}</g>'
        titles = series.titles or [series.name] * len(series.points)
        dots = [_dot(*self.at(p), k, colour, title) for p, title in zip(series.points, titles, strict=True)]
        return "\n".join(dots)


def _dot(across: float, up: float, k: int, colour: str, title: str = "") -> str:
    """A point of the `k`-th series: a disc, a square, a triangle or a diamond, full in the first four, then open."""
    r = RADIUS
    shapes = (
        f"M{across - r:.1f} {up:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z",
        f"M{across - r:.1f} {up - r:.1f}h{2 * r}v{2 * r}h{-2 * r}Z",
        f"M{across:.1f} {up - r:.1f}l{r} {2 * r}h{-2 * r}Z",
        f"M{across:.1f} {up - r - 1:.1f}l{r + 1} {r + 1}l{-r - 1} {r + 1}l{-r - 1} {-r - 1}Z",
    )
    fill = colour if k % (2 * len(shapes)) < len(shapes) else "none"
    said = f"<title>{escape(title)}</title>" if title else ""
    return f'<path d="{shapes[k % len(shapes)]}" fill="{fill}" stroke="{colour}" stroke-width="1.5">{said}</path>'


def _legend_rows(names: Sequence[str]) -> list[list[tuple[int, str, float]]]:
    """For each row of the legend the series' numbers and names, and where each begins, pixels."""
    rows: list[list[tuple[int, str, float]]] = [[]]
    across: float = LEFT
    for k, name in enumerate(names):
        need = 34 + len(name) * LETTER_PX
        if rows[-1] and across + need > WIDTH - RIGHT:
            rows.append([])
            across = LEFT
        rows[-1].append((k, name, across))
        across += need
    return rows


def _legend(rows: Sequence[Sequence[tuple[int, str, float]]]) -> Iterator[str]:
    for number, row in enumerate(rows):
        up = HEIGHT + 4 + LEGEND_PX * number
        for k, name, across in row:
            yield _dot(across + 5, up - 4, k, f"var(--{COLOURS[k % len(COLOURS)]})")
            yield f'<text x="{across + 15:.1f}" y="{up}">{escape(name)}</text>'


def _style() -> str:
    colours = (files("lamella.report") / "templates" / "colours.css").read_text()
    return (
        f"{colours}\nsvg text {{ font: 12px system-ui, 'DejaVu Sans', sans-serif; fill: var(--ink) }} "
        "svg .title { font-weight: 600; font-size: 15px } svg .soft { fill: var(--soft) } "
        ".hair { stroke: var(--hair); fill: none } .guide { stroke: var(--soft); fill: none }"
    )
