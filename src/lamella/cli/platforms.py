"""`lamella platforms`: what is known of each platform, from where, and whether a file of one's own is one."""

from __future__ import annotations

from pathlib import Path

import msgspec
from cyclopts import App

from lamella.cli.options import Json, Output
from lamella.cli.show import console, print_json, table
from lamella.documents import replacing
from lamella.platforms import Platform, names, platform
from lamella.platforms.figures import Figure, Flag, figures
from lamella.platforms.reading import base_of, read_platform, text

platforms = App(name="platforms", help_format="plaintext")


class Row(msgspec.Struct, frozen=True):
    """One platform in the list."""

    name: str
    title: str
    kind: str
    sizes: str
    cpu: str
    usd_per_gb_s: float | None
    granularity_ms: float | None
    channel: str
    unknown: tuple[str, ...]


class Named(msgspec.Struct, frozen=True):
    """One figure of a platform."""

    figure: str
    value: float | bool | str
    confidence: str
    date: str
    source: str


class Checked(msgspec.Struct, frozen=True):
    """`lamella platforms check --json`."""

    name: str
    figures: int
    unknown: tuple[str, ...]
    differs: tuple[str, ...]
    """Figures that are others than those of the base."""


@platforms.default
def list_all(*, json: Json = False) -> None:
    """List the platforms that can be planned for."""
    rows = [_row(platform(name)) for name in names()]
    if json:
        print_json(rows)
        return
    head = ["platform", "what it is ", "memory, MB ", "CPU ", "$ per million GB-s", "rounds to, ms", "hops ", "unknown"]
    cells = [
        (
            r.name, r.title, r.sizes, r.cpu, "-" if r.usd_per_gb_s is None else f"{r.usd_per_gb_s * 1e6:.2f}",
            "-" if r.granularity_ms is None else f"{r.granularity_ms:g}", r.channel, str(len(r.unknown)),
        )
        for r in rows
    ]  # fmt: skip
    console().print(table(head, cells))
    console().print(
        "All figures with their sources: lamella platforms show NAME. A file of your own: --platform FILE.toml"
    )


@platforms.command
def show(name: str, *, output: Output = None, json: Json = False) -> None:
    """Show every figure of a platform of the catalogue, or of a FILE.toml, with its source.

    Args:
        name: of the catalogue, or a file.
        output: write its file there, to begin one of one's own.
        json: print JSON.
    """
    one = platform(name)
    if output:
        with replacing(output) as file:
            file.write((text(one.name) if one.name in names() else Path(name).read_text()).encode())
        return
    found = [Named(path, _plain(f), f.confidence, f.date, f.source) for path, f in figures(one)]
    if json:
        print_json(found)
        return
    out = console()
    out.print(f"{one.name}: {one.title}", markup=False)
    rows = [(n.figure, _told(n.value), n.confidence, n.date, n.source) for n in found]
    out.print(table(["figure", "value", "confidence ", "date ", "source "], rows))


@platforms.command
def check(file: Path, *, json: Json = False) -> None:
    """Check a platform file of one's own: is it one, what is unknown, what is other than in the catalogue."""
    one = read_platform(file)
    mine = dict(figures(one))
    begun = base_of(file)
    base = dict(figures(platform(begun))) if begun else {}
    unknown = tuple(path for path, f in mine.items() if not f.known)
    differs = tuple(p for p, f in mine.items() if base and (p not in base or _plain(base[p]) != _plain(f)))
    if json:
        print_json(Checked(one.name, len(mine), unknown, differs))
        return
    print(f"{file}: {len(mine)} figures, each with a source" + (f"; based on {begun}" if begun else ""))
    for path in differs:
        before = _told(_plain(base[path])) if path in base else "nothing"
        print(f"  {path}: {_told(_plain(mine[path]))}, {begun} has {before}")
    for path in unknown:
        print(f"  {path} is unknown: a plan that needs it fails")


def _row(one: Platform) -> Row:
    sizes = one.memory.only_mb
    cpu = one.cpu.mb_per_vcpu
    return Row(
        name=one.name,
        title=one.title,
        kind=one.kind,
        sizes=", ".join(f"{f.value:g}" for f in sizes)
        if sizes
        else f"{one.memory.min_mb.value:g} to {one.memory.max_mb.value:g} by {one.step_mb}",
        cpu=f"1 per {cpu.value:g} MB" if cpu else f"up to {one.cpu.max_vcpu.value:g}",
        usd_per_gb_s=one.billing.usd_per_gb_s.value if one.billing.usd_per_gb_s.known else None,
        granularity_ms=one.billing.granularity_ms.value if one.billing.granularity_ms.known else None,
        channel=", ".join([one.hop.channel, *one.channels]),
        unknown=tuple(path for path, f in figures(one) if not f.known),
    )


def _plain(figure: Figure | Flag) -> float | bool | str:
    return figure.number if isinstance(figure, Figure) else figure.answer


def _told(value: float | bool | str) -> str:
    return str(value).lower() if isinstance(value, bool | str) else f"{value:.10g}"
