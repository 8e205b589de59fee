"""`lamella calibrate`: measure the machine once, network by network, each kept when it is done.

The measurements lie in the cache under the machine and the runtime version; what was interrupted, or stopped when its
time was spent, goes on at the next network. Formulas are made anew from all there is, and kept beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from lamella import documents
from lamella.documents import Document
from lamella.errors import ConfigError
from lamella.machine import on_cores, this_machine
from lamella.predictor.document import Calibration
from lamella.predictor.fitting import FOLDS, fit_kinds, fit_memory, network_error
from lamella.predictor.networks import SPREAD, Network
from lamella.predictor.sampling import Sampled, call_time, sample
from lamella.profile.document import Floor, HopCosts
from lamella.profile.hops import floor_and_hops
from lamella.profile.quiet import Load, quietly
from lamella.scratch import scratch

CALIBRATION_VERSION = "4"
"""Part of the cache key: raise it when measuring changes."""
LEAST_NETWORKS = FOLDS
"""One of each family: fewer tell nothing of whole kinds of operators."""
MADE_BY = "lamella calibrate"
FLOOR_S = 8.0

Progress = Callable[[float, str], None]


class CalibrationState(Document, frozen=True, kw_only=True):
    """What is measured so far."""

    floor: Floor | None = None
    hop: HopCosts | None = None
    call_ms: float = 0.0
    threads: tuple[int, ...] = ()
    samples: tuple[Sampled, ...] = ()
    loads: tuple[Load, ...] = ()


def calibrate(
    *,
    budget_s: float = 300.0,
    progress: Progress = lambda share, what: None,
    networks: Sequence[Network] = SPREAD,
) -> Calibration:
    """The calibration of this machine; measures only what the cache does not hold.

    Args:
        budget_s: no further network is begun when this is spent; at least one of each family is measured, ever.
        progress: told how far it is.
        networks: what to measure, in this order.

    Raises:
        StorageError: the disk is full or refuses.
    """
    path = _path()
    state = _held() if path.exists() else CalibrationState()
    begun = time.monotonic()
    with scratch("calibrate") as space:
        if state.floor is None or state.hop is None:
            progress(0.0, "runtime floor and hops")
            state = _keep(path, _floor(state, space))
        done = {s.network for s in state.samples}
        todo = [n for n in networks if n.name not in done]
        each = budget_s / max(1, len(networks)) / 2  # as much goes into making networks and starting processes
        for place, network in enumerate(todo):
            spent = time.monotonic() - begun
            if spent > budget_s and len(state.samples) >= LEAST_NETWORKS:
                break
            progress(min(0.99, max(place / len(todo), min(spent / budget_s, 0.99))), network.name)
            state = _keep(path, _sampled(state, network, space, each))
    progress(1.0, "fitting")
    made = assemble(state, len(networks))
    documents.write(_fitted(), made)
    progress(1.0, "done")
    return made


def held_calibration() -> Calibration:
    """This machine's, as far as it was measured.

    Raises:
        ConfigError: it was not.
    """
    if not _fitted().exists():
        raise ConfigError("this machine is not calibrated: nothing says what operators take on it", try_=MADE_BY)
    return documents.read(_fitted(), Calibration, made_by=f"rm {_fitted()}; {MADE_BY}")


def _path() -> Path:
    return documents.cache_dir() / "calibrations" / f"{this_machine().key}-v{CALIBRATION_VERSION}.json"


def _fitted() -> Path:
    return _path().with_suffix(".fitted.json")


def _held() -> CalibrationState:
    return documents.read(_path(), CalibrationState, made_by=f"rm {_path()}")


def _keep(path: Path, state: CalibrationState) -> CalibrationState:
    documents.write(path, state)
    return state


def _floor(state: CalibrationState, space: Path) -> CalibrationState:
    """The runtime without a model, what a hop takes, and a call."""
    with on_cores(1):
        (floor, hop), loads = quietly(partial(floor_and_hops, space), state.loads)
        call_ms = call_time(space)
    threads = tuple(sorted({1, this_machine().cores}))
    return msgspec.structs.replace(state, floor=floor, hop=hop, call_ms=call_ms, threads=threads, loads=loads)


def _sampled(state: CalibrationState, network: Network, space: Path, budget_s: float) -> CalibrationState:
    """One network more; taken again while the machine is busy."""

    def measure() -> Sampled:
        with scratch(network.name, space) as place:
            return sample(network, place, threads=state.threads, budget_s=budget_s, call_ms=state.call_ms)

    found, loads = quietly(measure, state.loads, retakes=1)
    return msgspec.structs.replace(state, samples=(*state.samples, found), loads=loads)


def assemble(state: CalibrationState, spread: int) -> Calibration:
    """Formulas from what is measured; `spread` is how many networks there are."""
    assert state.floor
    assert state.hop
    kinds, left_out = fit_kinds(state.samples)
    error, whole = network_error(state.samples, left_out)
    return Calibration(
        machine=this_machine(),
        networks=len(state.samples),
        spread=spread,
        operators=sum(len(s.works) for s in state.samples),
        threads=state.threads,
        call_ms=state.call_ms,
        floor=state.floor,
        hop=state.hop,
        kinds=kinds,
        memory=fit_memory(state.samples),
        error=error,
        network_error=whole,
        loads=state.loads,
    )
