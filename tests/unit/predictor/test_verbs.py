"""`lamella calibrate` and what is predicted by it, in a cache where five small networks are known."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from lamella import documents
from lamella.cli import calibrate as verb
from lamella.plan.document import read_plan
from lamella.predictor.calibrate import calibrate
from lamella.predictor.document import Calibration
from lamella.profile.document import Profile
from tests.unit.cli.conftest import MODEL, Lamella, lamella
from tests.unit.predictor.conftest import TINY, Calibrated

__all__ = ["lamella"]


@pytest.fixture
def known(calibrated: Calibrated, monkeypatch: pytest.MonkeyPatch) -> Calibrated:
    """The cache of the calibration, and the command measures its networks only."""
    monkeypatch.setenv("LAMELLA_CACHE", str(calibrated.cache))
    monkeypatch.setattr(verb, "measure", functools.partial(calibrate, networks=TINY))
    return calibrated


def test_calibrate_prints_each_kind_with_its_errors(lamella: Lamella, known: Calibrated, tmp_path: Path) -> None:
    done = lamella("calibrate", "-o", str(tmp_path / "calibration.json"))
    assert done.code == 0
    assert "in 5 of 5 networks" in done.out
    assert "on networks left out" in done.out
    assert "gmac" in done.out
    assert documents.read(tmp_path / "calibration.json", Calibration, made_by="") == known.calibration
    assert lamella("calibrate", "--json").document["networks"] == 5


def test_a_predicted_profile_says_so(lamella: Lamella, known: Calibrated, tmp_path: Path) -> None:
    done = lamella("profile", MODEL, "--predicted", "--batch", "1,2", "-o", str(tmp_path / "profile.json"))
    assert done.code == 0
    assert "not run: times and memory are predicted" in done.out
    assert documents.read(tmp_path / "profile.json", Profile, made_by="").predicted


def test_a_plan_by_prediction_says_so_and_keeps_the_laws(lamella: Lamella, known: Calibrated, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    done = lamella("plan", MODEL, "--platform", "openfaas", "--predicted", "--batch", "2", "-o", str(path))
    assert done.code == 0
    assert "predicted from single operators" in read_plan(path).why
    assert lamella("check", str(path)).code == 0


def test_what_is_measured_whole_is_not_predicted(lamella: Lamella, known: Calibrated) -> None:
    done = lamella("plan", MODEL, "--platform", "openfaas", "--predicted", "--planner", "ort")
    assert done.code != 0
    assert "ort is measured whole, it is not predicted" in done.err


def test_without_a_calibration_it_says_what_to_do(
    lamella: Lamella, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path))
    done = lamella("profile", MODEL, "--predicted")
    assert done.code != 0
    assert "lamella calibrate" in done.err
