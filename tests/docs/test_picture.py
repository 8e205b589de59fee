"""The README's table and picture come from the results alone."""

from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from benchmarks import picture, twelve
from lamella.compare import record
from tests.docs.records import comparison, plan


def compared(platform: str, divided: list[int]) -> record.Comparison:
    alone = plan("ort", [1008], 310.0, 5.0), plan("single", [688], 300.0, 3.5)
    return comparison(platform, (*alone, plan("mopar", divided, 303.0, 1.0)))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "twelve.json"
    measured = {
        "vgg19 openfaas": compared("openfaas", [112, 144, 464]),
        "vgg19 cloud-run": compared("cloud-run", [200, 400]),
        "vgg19 azure-consumption": compared("azure-consumption", [9]),
    }
    planned = {"vgg19 aws-lambda": twelve.Planned(2, 5, 2.0, 4.5), "vgg19 openfaas": twelve.Planned(1, 1, 1.0, 1.0)}
    path.write_bytes(msgspec.json.encode(twelve.Results(planned, measured)))
    return path


def test_table_and_picture_are_written_from_the_results(results: Path, tmp_path: Path) -> None:
    readme, svg = tmp_path / "README.md", tmp_path / "staircase.svg"
    readme.write_text(f"before\n{picture.BEGIN}\nold\n{picture.END}\nafter\n")
    for _ in range(2):  # the second time gives the same
        arguments = ["--results", str(results), "--readme", str(readme), "--picture", str(svg)]
        assert picture.main(arguments) == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| vgg19 | 5.00 | 3.50 | 1.00 | 3 | 5.00x | 3.50x | -2.3% | 3.50x, 2 functions |" in text
    assert "| 3.50x, 2 functions | one function | (2.25x, 5 functions) |" in text
    assert "2026-11-21" in text
    assert "144 MB" in "".join(ElementTree.parse(svg).getroot().itertext())


def test_without_results_it_says_so_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("as it was")
    assert picture.main(["--results", str(tmp_path / "none.json"), "--readme", str(readme)]) == 1
    assert "python -m benchmarks.twelve" in capsys.readouterr().err
    assert readme.read_text() == "as it was"
