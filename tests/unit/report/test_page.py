"""The page as it is written: closed, escaped, by itself, complete, and legible by its colours."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from lamella.compare.record import Comparison
from lamella.compare.table import NODE_COLUMNS, columns
from lamella.errors import StorageError
from lamella.platforms.packing import Packing
from lamella.report import page, staircase_svg, write
from lamella.report import page as made_page
from tests.unit.report.made import comparison, plan, sample, sharded, whole
from tests.unit.report.parsed import Page

HOSTILE = '</title><script>alert(1)</script><img src="https://evil.example/x" onerror=alert(1)>&"\''


def test_every_tag_is_closed_and_every_drawing_is_xml() -> None:
    text = page(sample())
    Page(text)
    drawings = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(drawings) > 8
    for drawing in drawings:
        ElementTree.fromstring(drawing)


def test_it_asks_for_nothing_from_elsewhere_and_runs_nothing() -> None:
    read = Page(page(sample(model=HOSTILE)))
    assert not {e.tag for e in read.elements} & {"script", "link", "img", "iframe", "object", "image", "use", "base"}
    for element in read.elements:
        assert not set(element.attributes) & {"src", "href", "srcset", "xlink:href", "data", "action"}
        assert not [a for a in element.attributes if a.startswith("on")]
        assert "url(" not in element.attributes.get("style", "")
    styles = "".join(e.text for e in read.all("style"))
    assert not re.search(r"url\(|@import|@font-face|https?:|//", styles)
    (policy,) = (e for e in read.all("meta") if e.attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.attributes["content"].startswith("default-src 'none'")


def test_what_users_name_is_shown_as_it_is_and_never_as_markup() -> None:
    first = msgspec.structs.replace(sharded(HOSTILE), why=HOSTILE, emulated=HOSTILE)
    machine = msgspec.structs.replace(sample().machine, cpu=HOSTILE, isa=HOSTILE)
    units = tuple(msgspec.structs.replace(u, kinds=HOSTILE) for u in sample().units)
    record = comparison(
        [first, whole()],
        model=HOSTILE,
        platform=HOSTILE,
        date=HOSTILE,
        limits_reason=HOSTILE,
        failed={HOSTILE: HOSTILE},
        command=("compare", HOSTILE),
        model_hash=HOSTILE,
        version=HOSTILE,
    )
    record = msgspec.structs.replace(record, machine=machine, units=units)
    text = page(record)
    read = Page(text)
    assert "<script" not in text
    assert "<img" not in text
    assert HOSTILE in read.all("h1")[0].text
    assert HOSTILE in read.all("title")[0].text
    assert any(HOSTILE in e.attributes.get("aria-label", "") for e in read.all("svg"))
    for drawing in re.findall(r"<svg.*?</svg>", text, re.S):
        ElementTree.fromstring(drawing)
    ElementTree.fromstring(staircase_svg(record, HOSTILE))


def test_every_plan_is_in_every_figure_and_every_figure_of_the_terminal_in_the_table() -> None:
    record = sample()
    read = Page(page(record))
    names = [p.planner for p in record.plans]
    labels = [e.attributes["aria-label"] for e in read.all("svg") if "aria-label" in e.attributes]
    for name in names:
        assert sum(label.startswith(f"{name}: ") for label in labels) == 2  # its functions, its staircase
        assert sum(f"{name}: predicted" in label for label in labels) == 3
    shown = {t.text for t in read.all("text")}
    assert shown >= set(names)
    cells = [e.text for e in read.all("td")] + [e.text for e in read.all("th")]
    for column in columns(record):
        assert column.name in cells
        assert all(column.of(p) in cells for p in record.plans)
        assert column.about in {e.text for e in read.all("dd")}


def test_what_a_node_does_for_a_plan_is_told_where_it_is_known() -> None:
    packed = msgspec.structs.replace(sharded(), packing=Packing(7.5, 12345.6, "vcpu"))
    read = Page(page(comparison([whole(), packed])))
    assert len(read.all("table")) == 3
    assert {"7.5", "12,346", "vcpu"} <= {e.text for e in read.all("td")}
    assert all(c.about in {e.text for e in read.all("dd")} for c in NODE_COLUMNS[1:])
    assert len(Page(page(sample())).all("table")) == 2


def test_it_says_what_made_it() -> None:
    text = Page(page(sample())).all("body")[0].text
    for part in (
        "lamella compare zoo:made-up --platform openfaas",
        "0.1.0",
        "0123456789abcdef",
        "made up",
        "2026-11-22",
    ):
        assert part in text


def test_limits_that_were_not_enforced_are_said_loudly_and_first() -> None:
    assert "NOT" not in Page(page(sample())).all("body")[0].text
    read = Page(page(sample(limits_reason="no cgroup is writable")))
    text = read.all("body")[0].text
    assert text.index("Limits were NOT enforced: no cgroup is writable") < text.index("cheapest")
    assert "limits enforced" not in text


def test_failed_planners_and_broken_answers_are_said_before_the_figures() -> None:
    broken = plan("mopar", sharded().functions, off=0.5)
    record = comparison([whole(), broken], failed={"uniform-9": "killed at 128 MB\n  try:   less"})
    text = Page(page(record)).all("body")[0].text
    begin = text.index("Where each plan divides")
    for part in ("uniform-9", "killed at 128 MB", "Answers are BROKEN: those of mopar are 5e-01"):
        assert 0 <= text.index(part) < begin


def test_a_screen_reader_is_told_what_it_meets() -> None:
    read = Page(page(sample()))
    assert read.all("html")[0].attributes["lang"] == "en"
    assert any(e.attributes.get("name") == "viewport" for e in read.all("meta"))
    assert [e.tag for e in read.elements if e.tag in ("h1", "h2")] == ["h1", *["h2"] * 6]
    assert len(read.all("caption")) == len(read.all("table")) == 2
    assert all(e.attributes.get("scope") in ("col", "row") for e in read.all("th"))
    assert read.all("figcaption")
    for drawing in read.all("svg"):
        assert drawing.attributes.get("aria-hidden") or (
            drawing.attributes["role"] == "img" and drawing.attributes["aria-label"]
        )
    for table in (e for e in read.elements if e.attributes.get("class") == "scroll"):
        assert table.attributes["tabindex"] == "0"
        assert table.attributes["aria-label"]


def test_a_document_of_before_the_page_is_still_a_page() -> None:
    stored = msgspec.to_builtins(sample())
    for name in ("model_hash", "version", "command", "floor_mb", "units"):
        del stored[name]
    for one in stored["plans"]:
        del one["at_once"]
        for f in one["functions"]:
            for name in ("stage", "first", "last", "uses"):
                del f[name]
    read = Page(page(msgspec.convert(stored, Comparison)))
    assert "Where each plan divides" not in read.all("body")[0].text
    assert "used: runtime" not in read.all("body")[0].text
    assert len(read.all("svg")) > 5


def test_a_hundred_and_fifty_units_are_each_drawn_and_told() -> None:
    read = Page(page(sample(units=150)))
    assert sum("cell" in e.attributes.get("class", "").split() for e in read.all("rect")) == 2 * 150
    assert sum(e.text.startswith("unit ") for e in read.all("title")) == 2 * 150


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, two: str) -> float:
    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


SCHEMES = ("light", "dark")
ON = [
    *((text, ground) for text in ("ink", "soft", "best") for ground in ("paper",)),
    ("ink", "card"),
    ("ink", "best-fill"),
    ("ink", "rest-fill"),
    ("warn", "warn-fill"),
    *((f"on-{k}", f"{ramp}-{k}") for ramp in ("memory", "time") for k in range(7)),
]
LINES = [("rest", "paper"), ("best", "paper"), ("rest", "rest-fill"), ("best", "best-fill")]


@pytest.fixture(scope="module")
def colours() -> dict[str, dict[str, str]]:
    css = (Path(made_page.__code__.co_filename).parent / "templates" / "colours.css").read_text()
    light, dark = css.split("@media")
    return {
        name: dict(re.findall(r"--([\w-]+): (#\w{6});", part))
        for name, part in zip(SCHEMES, (light, dark), strict=True)
    }


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_has_contrast_and_lines_and_ramps_can_be_told_apart(
    scheme: str, colours: dict[str, dict[str, str]]
) -> None:
    found = colours[scheme]
    assert found.keys() == colours["light"].keys()
    for text, ground in ON:
        assert contrast(found[text], found[ground]) >= 4.5, (text, ground)
    for line, ground in LINES:
        assert contrast(found[line], found[ground]) >= 3, (line, ground)
    for ramp in ("memory", "time"):
        levels = [luminance(found[f"{ramp}-{k}"]) for k in range(7)]
        assert levels == sorted(levels, reverse=scheme == "light")  # light alone tells them apart: colours are extra


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "page.html"
    write(path, sample())
    assert path.read_text() == page(sample())
    with pytest.raises(StorageError, match="cannot write"):
        write(tmp_path, sample())
    assert [p.name for p in tmp_path.iterdir()] == ["deep"]


def test_the_staircase_alone_is_an_svg_file_with_its_own_colours() -> None:
    root = ElementTree.fromstring(staircase_svg(sample(), "Billed & used", ("single", "mopar")))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    text = "".join(root.itertext())
    assert "Billed & used" in text
    assert "prefers-color-scheme: dark" in text
    assert "single, one function" in text
    assert "ort," not in text
