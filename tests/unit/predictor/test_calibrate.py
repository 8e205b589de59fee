"""Measuring the machine: real networks, kept one by one, and a document that can be read again."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from lamella import documents
from lamella.errors import ConfigError
from lamella.machine import this_machine
from lamella.predictor.calibrate import calibrate, held_calibration
from lamella.predictor.document import Calibration
from lamella.predictor.networks import SPREAD
from tests.unit.predictor.conftest import TINY, Calibrated


def test_every_network_is_measured_once_and_says_so(calibrated: Calibrated) -> None:
    assert calibrated.steps == ("runtime floor and hops", *(n.name for n in TINY), "fitting", "done")
    again: list[str] = []
    assert calibrate(progress=lambda _, what: again.append(what), networks=TINY) == calibrated.calibration
    assert again == ["fitting", "done"]
    assert held_calibration() == calibrated.calibration


def test_a_spent_budget_stops_and_the_same_command_goes_on(calibrated: Calibrated) -> None:
    more = (*TINY, TINY[1].__class__("dense-2", TINY[1].build))
    stopped = calibrate(budget_s=1e-9, networks=more)
    assert stopped.networks == len(TINY)
    assert stopped.spread == len(more)


def test_the_document_is_read_as_it_was_written(calibrated: Calibrated, tmp_path: Path) -> None:
    documents.write(tmp_path / "calibration.json", calibrated.calibration)
    assert documents.read(tmp_path / "calibration.json", Calibration, made_by="") == calibrated.calibration


def test_the_calibration_names_its_machine_and_its_errors(calibrated: Calibrated) -> None:
    made = calibrated.calibration
    assert made.machine == this_machine()
    assert made.threads == tuple(sorted({1, this_machine().cores}))
    assert {"convolution", "product", "gru", "gather", "softmax", "layer norm"} <= {k.kind for k in made.kinds}
    assert made.network_error > 0
    assert all(f.formula.error >= 0 for k in made.kinds for f in k.fits)
    assert all(c >= 0 for k in made.kinds for f in k.fits for c in f.formula.coefficients.values())


def test_memory_follows_from_what_a_function_holds(calibrated: Calibrated) -> None:
    """Of weights that are mapped a process holds all: the slope is one, whatever else the machine does."""
    plain = next(m for m in calibrated.calibration.memory if m.layout == "plain")
    assert plain.figures["private_mb"].coefficients["session"] < 5
    assert plain.figures["live_mb"].error < 0.2


def test_without_a_calibration_the_next_command_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path))
    with pytest.raises(ConfigError) as refused:
        held_calibration()
    assert refused.value.try_ == "lamella calibrate"


def test_every_few_networks_of_the_spread_hold_all_families() -> None:
    assert len({n.name for n in SPREAD}) == len(SPREAD)
    families = [n.name.split("-")[0] for n in SPREAD[:5]]
    assert families == ["convolutions", "dense", "attention", "lstm", "tables"]


def test_the_document_of_an_older_calibration_still_reads(calibrated: Calibrated) -> None:
    held = msgspec.json.decode(msgspec.json.encode(calibrated.calibration))
    assert msgspec.convert(held, Calibration) == calibrated.calibration
