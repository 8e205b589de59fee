"""The page from the command line, and outputs that are refused before anything is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lamella.graph.model import Graph
from tests.unit.cli.conftest import MODEL, Lamella
from tests.unit.report.parsed import Page

COMPARE = ("compare", MODEL, "--platform", "openfaas", "--planners", "single,uniform-3", "--requests", "2")


def test_compare_writes_the_page_and_report_the_same_from_the_document(
    lamella: Lamella, graph: Graph, tmp_path: Path
) -> None:
    page, document = tmp_path / "my page.html", tmp_path / "comparison.json"
    argv = (*COMPARE, "--report", page, "-o", document)
    assert lamella(*argv).code == 0
    text = page.read_text()
    read = Page(text)
    assert "--report '" + str(page) + "'" in read.all("code")[0].text
    assert sum("cell" in e.attributes.get("class", "").split() for e in read.all("rect")) == 2 * 5
    stored = json.loads(document.read_text())
    assert stored["command"] == [str(a) for a in argv]
    assert stored["model_hash"] == graph.hash
    assert [u["last"] for u in stored["units"]][-1] == len(graph.operators)
    for plan in stored["plans"]:
        spans = [(f["first"], f["last"]) for f in plan["functions"]]
        assert [a for a, _ in spans] == [0, *(b for _, b in spans[:-1])]
        assert spans[-1][1] == len(graph.operators)
        runs = [sum(u["share"] for u in f["uses"]) for f in plan["functions"]]
        assert runs == pytest.approx([1.0] * len(runs))
    done = lamella("report", document, "-o", tmp_path / "again.html")
    assert (done.code, done.out) == (0, f"wrote {tmp_path / 'again.html'}\n")
    assert (tmp_path / "again.html").read_text() == text


def test_report_names_what_is_no_comparison(lamella: Lamella, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"lamella": 1}')
    done = lamella("report", tmp_path / "plan.json", "-o", tmp_path / "page.html")
    assert done.code == 2
    assert "plan.json is not a comparison document" in done.err
    assert "lamella compare MODEL --platform openfaas -o comparison.json" in done.err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("verb", "option"), [("compare", "--report"), *((v, "-o") for v in ("compare", "plan", "profile"))]
)
def test_a_place_that_cannot_be_written_is_told_before_anything_is_measured(
    verb: str, option: str, lamella: Lamella, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path / "cache"))  # nothing is known yet: all would be measured
    (tmp_path / "file").write_text("in the way")
    argv = (verb, MODEL) if verb == "profile" else (verb, MODEL, "--platform", "openfaas")
    done = lamella(*argv, option, tmp_path / "file" / "out")
    assert done.code == 1
    assert "cannot write" in done.err
    assert not (tmp_path / "cache").exists()


def test_folders_that_are_missing_are_made(lamella: Lamella, graph: Graph, tmp_path: Path) -> None:
    page, document = tmp_path / "new" / "folder" / "page.html", tmp_path / "other" / "comparison.json"
    assert lamella(*COMPARE, "--report", page, "-o", document).code == 0
    assert Page(page.read_text()).all("table")
    assert lamella("report", document, "-o", tmp_path / "third" / "page.html").code == 0
    assert (tmp_path / "third" / "page.html").exists()


def test_two_outputs_of_one_name_are_refused(lamella: Lamella, tmp_path: Path) -> None:
    done = lamella(*COMPARE, "-o", tmp_path / "x", "--report", tmp_path / "x")
    assert done.code == 2
    assert "two outputs would be written to" in done.err
    assert not (tmp_path / "x").exists()
