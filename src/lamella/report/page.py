"""From a comparison to the page: templates filled with the figures' geometry.

Everything a template is given is escaped by it, names, paths and error texts too. The page forbids itself every
request and script by a content security policy, so it reads the same from a disk, a mail or a server.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lamella.compare.record import Comparison
from lamella.compare.table import NODE_COLUMNS, columns
from lamella.documents import replacing
from lamella.report.scales import CLASSES
from lamella.report.scatter import scatter
from lamella.report.staircase import staircase
from lamella.report.strip import strip
from lamella.report.versus import versus
from lamella.report.words import alone_cheapest, cheapest, command, finding


def page(record: Comparison) -> str:
    """The page as HTML."""
    best = cheapest(record)
    return (
        templates()
        .get_template("page.html.j2")
        .render(
            record=record,
            model=record.model.removeprefix("zoo:"),
            best=best.planner,
            best_said="cheapest" if alone_cheapest(record) else "least cost, within the noise",
            finding=finding(record),
            strip=strip(record),
            staircase=staircase(record),
            scatter=scatter(record),
            versus=versus(record),
            columns=columns(record),
            node_columns=NODE_COLUMNS,
            on_nodes=[p for p in record.plans if p.packing],
            command=command(record),
            shades=range(CLASSES),
            broken=[p for p in record.plans if not p.output_error.within_tolerance],
        )
    )


def staircase_svg(record: Comparison, title: str, planners: Sequence[str] = ()) -> str:
    """The staircase alone as an SVG file of 760 pixels width.

    Args:
        record: the comparison.
        title: written above it.
        planners: of the plans to draw; all by default.
    """
    figure = staircase(record, planners)
    return templates().get_template("staircase.svg.j2").render(figure=figure, title=title)


def write(path: Path, record: Comparison) -> None:
    """Write the page, whole or not at all.

    Raises:
        StorageError: the disk is full or refuses; an older file at `path` is kept.
    """
    made = page(record).encode()
    with replacing(path) as file:
        file.write(made)


def templates() -> Environment:
    """Of all pages; what they are given is escaped."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
