"""The demo: the real recogniser, and a small model in place of vgg19."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from lamella.cli.demo import read_twice
from lamella.demo.reading import decode, picture
from lamella.errors import ConfigError
from lamella.graph.model import Graph
from tests.unit.cli.conftest import MODEL, Lamella


@pytest.fixture
def recogniser() -> None:
    """Skips where the wheel that holds the recogniser, or pillow, is not installed."""
    for name in ("rapidocr", "PIL"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not here")


@pytest.mark.usefixtures("recogniser")
def test_the_demo_reads_a_picture_and_serves_a_model_three_ways(lamella: Lamella, graph: Graph) -> None:
    done = lamella("demo", "--model", MODEL, "--requests", "3")
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "Both read the same." in said
    assert "cnn-tiny on openfaas" in said
    assert "x less than ort and" in said
    assert f"lamella plan {MODEL} --platform openfaas says why." in said


@pytest.mark.usefixtures("recogniser")
def test_the_recogniser_reads_the_same_whole_and_in_slices(capsys: pytest.CaptureFixture[str]) -> None:
    read_twice(None)
    lines = [line for line in capsys.readouterr().out.splitlines() if "function(s)" in line]
    whole, sliced = (line.partition("ms: ")[2] for line in lines)
    assert whole == sliced
    assert len(whole) > 4
    assert [line.split()[0] for line in lines] == ["1", "4"]


def test_a_file_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ConfigError, match=r"cannot read the picture .*text\.png"):
        picture(tmp_path / "text.png")


def test_repeats_are_merged_and_blanks_dropped() -> None:
    best = [0, 1, 1, 0, 1, 2, 2, 0, 0, 3]
    assert decode(np.eye(4)[best], ["", "a", "b", "c"]) == "aabc"


def test_a_number_of_requests_below_one_is_usage(lamella: Lamella) -> None:
    assert lamella("demo", "--requests", "0").code == 2
