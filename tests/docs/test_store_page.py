"""The page about the store comes from the results alone, and says which targets are missed."""

from benchmarks.store_table import (
    EXTERNAL,
    FORKED,
    PLAIN,
    STORE,
    ZYGOTE,
    Count,
    HandedOver,
    Result,
    Starts,
    Steady,
    Target,
    page,
    ratio,
    targets,
)
from benchmarks.store_ways import Began, Together
from lamella.machine import this_machine

ROUNDS = Count(3, 1, 0)


def began(session: float, ready: float, first: float) -> tuple[Began, ...]:
    return tuple(Began(session + k, ready + k, first + k, 10.0) for k in range(3))


def together(first: float, private: float, total: float) -> tuple[Together, ...]:
    return tuple(Together(first + k, (private,) * 4, total) for k in range(3))


def result(size: str = "434 MB") -> Result:
    starts = Starts(
        size=size,
        weights_mb=434.0,
        began={
            PLAIN: began(399, 449, 499),
            EXTERNAL: began(200, 250, 300),
            STORE: began(9, 89, 129),
            ZYGOTE: began(9, 19, 59),
            FORKED: began(0, 1, 41),
        },
        together={
            PLAIN: together(2000, 650, 2600),
            EXTERNAL: together(600, 350, 1450),
            STORE: together(300, 41, 500),
            ZYGOTE: together(200, 15, 460),
        },
        rounds=ROUNDS,
    )
    steady = Steady("bert", 32, 1, {PLAIN: (30.0, 31.0, 32.0), "start": (31.0, 32.0, 33.0)}, ROUNDS)
    handed = HandedOver(2, (0.1, 0.2, 0.1), (0.2, 0.2, 0.3))
    return Result(
        date="2026-11-22",
        machine=this_machine(),
        backing="huge-tmpfs",
        starts={"bert": starts},
        steady=(steady,),
        handover=(handed,),
    )


def found(measure: str) -> Target:
    return next(t for t in targets(result()) if t.measure == measure)


def test_a_target_is_met_or_missed_by_the_ratio_of_medians() -> None:
    session = found("session creation")
    assert (session.found.value, session.bound, session.met) == (40.0, 25.0, True)
    assert not found("private memory per worker, fresh Python").met
    assert found("private memory per worker, zygote").met
    assert found("handing over 2 descriptors").met
    assert found("steady latency to (a), `start`, 1 thread(s)").found.value == 32 / 31


def test_a_ratio_of_two_things_that_move_together_has_a_narrow_interval() -> None:
    together_ = ratio([100.0, 200.0, 300.0], [10.0, 20.0, 30.0])
    assert (together_.low, together_.value, together_.high) == (10.0, 10.0, 10.0)


def test_the_page_has_a_row_per_target_and_the_rounds_of_each_model() -> None:
    lines = page(result()).splitlines()
    assert sum(line.endswith(("| met |", "| **missed** |")) for line in lines) == len(list(targets(result())))
    assert any("3 rounds, 1 noisy ones rejected" in line for line in lines)
    assert any(line.startswith(f"| {ZYGOTE} |") for line in lines)


def test_a_model_of_no_size_that_was_asked_about_has_no_targets_of_starts() -> None:
    assert {t.model for t in targets(result(size=""))} == {"bert", ""}
    assert all("steady" in t.measure or "handing" in t.measure for t in targets(result(size="")))
