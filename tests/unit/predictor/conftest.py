"""A calibration of small networks, measured once: seconds, and worth nothing as a prediction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from lamella.predictor import networks
from lamella.predictor.calibrate import calibrate
from lamella.predictor.document import Calibration
from lamella.predictor.networks import Network

TINY = (
    Network("convolutions", partial(networks._convolutional, 16, 12, 6)),
    Network("dense", partial(networks._dense, 4, 3)),
    Network("attention", partial(networks._attention, 8, 32, 2)),
    Network("gru", partial(networks._recurrent, "GRU", 4, 16, 16, True)),
    Network("tables", partial(networks._tables, 3, 1000, 4)),
)


@dataclass(frozen=True)
class Calibrated:
    """A cache and the calibration that lies in it."""

    cache: Path
    calibration: Calibration
    steps: tuple[str, ...]


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calibrated]:
    """This machine, calibrated by the tiny networks in a cache of its own."""
    cache = tmp_path_factory.mktemp("calibrated")
    steps: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAMELLA_CACHE", str(cache))
        made = calibrate(budget_s=0.5, progress=lambda _, what: steps.append(what), networks=TINY)
        yield Calibrated(cache, made, tuple(steps))
