"""The benchmark of plans within an SLO: its cases, what its page says of them, and one of them for real."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest

from benchmarks import quality, quality_page
from benchmarks.quality_cases import CONTENDERS, SIX, Base, Case, Place, Promise, chosen, places
from lamella.compare.record import PlanRecord, Turn
from tests.docs.records import comparison, plan

NOISE = np.linspace(0.9, 1.1, 12)


def test_the_cases_are_those_of_the_two_sets_each_once_and_the_most_telling_first() -> None:
    found = places()
    assert len(set(found)) == len(found) == 12 + 6 * 4 * 2 - 6
    assert {p.model for p in found if (p.platform, p.factor) == ("openfaas", 1.0)} >= {"vit-large", "gcn", *SIX}
    assert all((p.platform, p.factor) == ("openfaas", 1.0) for p in found[:12])


def test_cases_are_asked_for_by_model_platform_and_slo() -> None:
    assert chosen([]) == places()
    assert chosen(["vgg19/openfaas/1x"]) == chosen(["vgg19/openfaas/1"]) == [Place("vgg19", "openfaas", 1.0)]
    assert len(chosen(["vgg19/openfaas"])) == 4
    assert len(chosen(["vgg19", "gcn"])) == 9
    assert chosen(["cnn-tiny/cloud-run/2.5x"]) == [Place("cnn-tiny", "cloud-run", 2.5)]
    with pytest.raises(ValueError, match="vgg20: no such case"):
        chosen(["vgg20"])


def ran(name: str, sizes: list[int], cost: float, p95: float, noise: np.ndarray = NOISE) -> PlanRecord:
    return plan(name, sizes, 100.0, cost, turns=tuple(Turn(cost * n, 100.0) for n in noise), p95=p95)


def case(model: str, plans: list[PlanRecord], *, same: dict[str, str] | None = None, factor: float = 1.0) -> Case:
    stands = {p.planner: p.planner for p in plans} | (same or {})
    return Case(
        model=model,
        platform="openfaas",
        factor=factor,
        base=Base(110.0),
        slo_ms=110.0 * factor,
        stands=stands,
        promised=dict.fromkeys(stands, Promise(1, 1, 100.0, 105.0, 1.0)),
        failed={"gillis": "no planner 'gillis'; there are others\n  try: another"},
        measured=True,
        record=comparison("openfaas", plans),
    )


def lines(cases: list[Case]) -> list[str]:
    return quality_page.page(cases).splitlines()


def test_a_row_says_what_the_others_cost_over_exact_and_who_is_late_or_has_no_plan() -> None:
    plans = [ran("exact", [80, 64], 2.0, 105.0), ran("ort", [900], 9.0, 111.0), ran("uniform-4", [70] * 4, 2.5, 90.0)]
    found = lines([case("vgg19", plans, same={"mopar": "exact", "uniform": "uniform-4"})])
    assert "| vgg19 | 110.0 | 2 | 2-2 | 2 | 100.0 | 105.0 | 4.50x late | - | = | - | - | 1.25x | 0 |" in found
    assert "| `openfaas` | 1x | 1 | 4.50x (1) |  | 1.00x (1) |  |  | 1.25x (1) |" in found
    assert "| `gillis` | vgg19/openfaas/1x | no planner 'gillis'; there are others |" in found
    assert "| `ort` | 1 | 0 | 0% | 1.009 | vgg19/openfaas/1x |" in found
    assert "- Measured p95 is within the SLO in **1 of 1** cases where it has a plan, 100%; 95% are wanted." in found


def test_a_loss_beyond_the_paired_interval_is_told_and_one_within_it_or_of_few_rounds_is_not() -> None:
    dear = case("vgg19", [ran("exact", [80], 2.1, 105.0), ran("mopar", [70], 2.0, 105.0)])
    assert any("**1** of 1 comparisons:" in line for line in lines([dear]))
    assert any(line.strip().startswith("- vgg19/openfaas/1x to `mopar`: +5.0% (") for line in lines([dear]))
    late = case("vgg19", [ran("exact", [80], 2.1, 105.0), ran("mopar", [70], 2.0, 115.0)])
    assert any(
        "**1** of 1 comparisons, in 1 of them to one whose p95 is beyond the SLO:" in line for line in lines([late])
    )
    loud = case("vgg19", [ran("exact", [80], 2.02, 105.0), ran("mopar", [70], 2.0, 105.0, NOISE[::-1])])
    assert any("**0** of 1 comparisons." in line for line in lines([loud]))
    few = case("vgg19", [ran("exact", [80], 2.1, 105.0, NOISE[:9]), ran("mopar", [70], 2.0, 105.0, NOISE[:9])])
    assert any("**0** of 1 comparisons, 1 of which have fewer than 10 rounds" in line for line in lines([few]))


def promising(name: str, latency_ms: float) -> PlanRecord:
    """A plan that takes 100 ms and was predicted to take so long."""
    made = ran(name, [300], 1.0, 120.0)
    return msgspec.structs.replace(made, predicted=msgspec.structs.replace(made.predicted, latency_ms=latency_ms))


def test_what_is_off_since_the_machine_is_slower_than_it_was_is_told_apart() -> None:
    slower = case("vgg19", [promising("exact", 88.0), promising("single", 80.0)])
    wrong = case("resnet50", [promising("exact", 80.0), promising("single", 100.0)])
    alone = case("gcn", [promising("exact", 50.0)])
    (said,) = [line for line in lines([slower, wrong, alone]) if "than `single` in the same rounds" in line]
    assert said.endswith("is predicted 15.0% off, -5.0% on average, -20.0% at worst, over 2 plans.")
    assert not any("than `single` in the same rounds" in line for line in lines([alone]))


def test_how_far_two_measurements_of_the_same_slices_differ_is_told() -> None:
    first = case("vgg19", [plan("exact", [100], 100.0, 1.0)])
    again = case("vgg19", [plan("exact", [100], 120.0, 1.0)], factor=3.0)
    other = case("gcn", [plan("exact", [100], 50.0, 1.0)])
    (said,) = [line for line in lines([first, again, other]) if "in two comparisons" in line]
    assert "in two comparisons 1 times, and took 20.0% longer in one of them than in the other, 20.0% at worst" in said
    assert not any("in two comparisons" in line for line in lines([first, other]))


def test_errors_at_the_rounds_pace_are_of_the_plans_whose_pace_is_known() -> None:
    slow = msgspec.structs.replace(ran("exact", [100], 1.0, 105.0), slowdown=1.1)
    (row,) = [line for line in lines([case("vgg19", [slow, ran("single", [200], 2.0, 105.0)])]) if "**all**" in line]
    assert row.startswith("| **all** | 2 | 0.0% |")
    assert row.endswith("| 1 | 0.0% | 10.0% |")
    (row,) = [line for line in lines([case("vgg19", [ran("exact", [100], 1.0, 105.0)])]) if "**all**" in line]
    assert row.endswith("| 0 |  |  |")


def test_what_is_only_planned_is_in_brackets() -> None:
    planned = Case(
        model="gcn",
        platform="openfaas",
        factor=1.0,
        base=Base(50.0),
        slo_ms=50.0,
        stands={"exact": "exact", "single": "exact", "ort": "ort"},
        promised={n: Promise(1, 3, 48.0, 49.0, cost) for n, cost in (("exact", 2.0), ("single", 2.0), ("ort", 5.0))},
    )
    found = lines([planned])
    assert "| gcn | 50.0 | (2) | | (3) | (48.0) | (49.0) | (2.50x) | (=) | - | - | - | - | |" in found
    assert any("0 of 54 cases are measured, 1 more are planned and in brackets" in line for line in found)
    assert not any(line.startswith("## What it comes to") for line in found)


def test_without_cases_the_page_says_so() -> None:
    assert "Nothing is measured yet. 0 of 54 cases are measured." in quality_page.page([])


def test_figures_show_every_plan_that_a_profile_predicted_once(tmp_path: Path) -> None:
    plans = [ran("exact", [80, 64], 2.0, 105.0), ran("ort", [900], 9.0, 111.0)]
    quality_page.write([case("vgg19", plans, same={"mopar": "exact"})], tmp_path)
    for name, dots in ((quality_page.LATENCY, 1), (quality_page.MEMORY, 2)):
        titles = [
            t.text for t in ElementTree.parse(tmp_path / name).getroot().iter("{http://www.w3.org/2000/svg}title")
        ]
        assert titles.count("vgg19/openfaas/1x exact") == dots
        assert not any("ort" in str(t) for t in titles)


def test_a_case_is_measured_for_real_kept_and_not_taken_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--only", "cnn-tiny/openfaas/3x", "--requests", "3", "--results", str(tmp_path), "--docs", str(tmp_path)]
    quality.main([*asked, "--time-s", "0"])
    assert "is left for another run" in capsys.readouterr().out
    quality.main([*asked, "--plan-only"])
    planned = quality.Campaign(tmp_path).known(Place("cnn-tiny", "openfaas", 3.0))
    assert planned
    assert not planned.measured
    quality.main(asked)
    (found,) = quality.Campaign(tmp_path).all()
    assert found.measured
    assert found.slo_ms == pytest.approx(3 * found.base.ms)
    assert found.record
    assert {p.planner for p in found.record.plans} == set(found.stands.values()), "every plan once"
    assert set(found.stands) | set(found.failed) == set(CONTENDERS), "every contender ran or has its reason"
    for contender in ("exact", "single", "ort"):
        ours = found.of(contender)
        assert ours
        assert ours.predicted.latency_ms == pytest.approx(found.promised[contender].latency_ms, rel=0.2)
        assert len(ours.turns) == 3
    kept = (tmp_path / "cnn-tiny-openfaas-3x.json").read_bytes()
    capsys.readouterr()
    quality.main(asked)
    assert capsys.readouterr().out == "", "nothing is left to be done"
    assert (tmp_path / "cnn-tiny-openfaas-3x.json").read_bytes() == kept
    assert "| cnn-tiny |" in (tmp_path / quality_page.PAGE).read_text()
