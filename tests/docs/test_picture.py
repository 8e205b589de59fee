"""The README's table and picture come from the results alone."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import picture
from benchmarks.quality import Campaign
from lamella.compare.record import PlanRecord
from tests.docs.records import plan
from tests.docs.test_quality import case

ALONE = [plan("ort", [1008], 310.0, 5.0), plan("single", [688], 300.0, 3.5)]
DIVIDED = [plan("exact", [112, 144, 464], 303.0, 1.0), plan("mopar", [200, 400], 305.0, 1.2)]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    campaign = Campaign(tmp_path / "quality")
    shown: list[tuple[str, list[PlanRecord], dict[str, str]]] = [
        ("gcn", [*ALONE[1:], plan("mopar", [60], 310.0, 4.0)], {"exact": "single"}),
        ("vgg19", [*ALONE, *DIVIDED], {}),
    ]
    for name, plans, same in shown:
        campaign.save(case(name, plans, same=same))
    campaign.save(case("resnet50", [*ALONE, *DIVIDED], factor=3.0))
    return tmp_path / "quality"


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
    vgg19 = "| vgg19 | 5.00 | 3.50 | 1.20 | 1.00 | 3 | 5.00x | 3.50x | 1.20x | -2.3% | +175.5% |"
    gcn = "| gcn |  | 3.50 | 4.00 | 3.50 | 1 |  | 1.00x | 1.14x |  | +172.7% |"
    assert text.index(vgg19) < text.index(gcn), "in the order of the models"
    assert "resnet50" not in text
    assert "cost **5.00x** below `ort`, **1.87x** below `single`, **1.17x** below `mopar`; 1 of 2 models" in text
    assert "2026-11-21" in text
    assert "144 MB" in "".join(ElementTree.parse(svg).getroot().itertext())


def test_without_results_it_says_so_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("as it was")
    assert picture.main(["--results", str(tmp_path / "none"), "--readme", str(readme)]) == 1
    assert "python -m benchmarks.quality" in capsys.readouterr().err
    assert readme.read_text() == "as it was"
