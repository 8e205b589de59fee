"""`exact` against every other planner within a latency SLO, under enforced limits: `python -m benchmarks.quality`.

A case is a model on a platform's rules within an SLO: 0.7, 1, 1.5 or 3 times the p95 that the plan of the
tuned single function promises, `single` with no SLO. Set A: twelve models on `openfaas` at 1x. Set B: six of
them at every SLO on `openfaas` and `aws-lambda`. Every contender plans; plans that decide the same are deployed once;
all take turns in at least ten rounds. A contender without a plan is listed with its reason.

Each case is a file of its own in `benchmarks/results/quality/`, written as soon as it is known: run it again and it
goes on, delete a file and that case is taken again. Cases come in the order of what they tell. Let the machine do
nothing else meanwhile. `--plan-only` makes the plans of what is not measured yet, and labels them so. The page is
`docs/benchmarks-quality.md`.

    python -m benchmarks.quality --time-s 3600                  start no new case after an hour
    python -m benchmarks.quality --profile-s 900                on a machine that is slower at some hours: profiles anew
    python -m benchmarks.quality --only vgg19/openfaas/1x       one case; vgg19, or vgg19/openfaas: all of its cases
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.models import Subject, p95_ms, subject
from benchmarks.quality_cases import CONTENDERS, Base, Case, Place, chosen, draw_up, measure_case, places
from benchmarks.quality_page import write
from lamella import documents
from lamella.plan.make import make_plan

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "quality"
DOCS = ROOT / "docs"
REQUESTS = 48
"""Per plan, four in a round: twelve rounds."""
MADE_BY = "python -m benchmarks.quality"


class Campaign:
    """The cases in a folder, and taking what is missing."""

    def __init__(self, folder: Path = RESULTS, requests: int = REQUESTS, oldest_s: float = math.inf) -> None:
        """Results in `folder`; `requests` per plan; a profile older than `oldest_s` is taken anew."""
        self.folder = folder
        self.requests = requests
        self.oldest_s = oldest_s

    def known(self, place: Place) -> Case | None:
        """The case as far as it is known."""
        path = self.folder / place.file
        return documents.read(path, Case, made_by=MADE_BY) if path.exists() else None

    def all(self) -> list[Case]:
        """Every case that is known, in the order of the campaign; others that are there behind it."""
        paths = sorted(self.folder.glob("*x.json"))
        found = [documents.read(path, Case, made_by=MADE_BY) for path in paths]
        order = {place: k for k, place in enumerate(places())}
        return sorted(found, key=lambda case: order.get(case.place, len(order)))

    def save(self, case: Case) -> None:
        """Write the case, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        documents.write(self.folder / case.place.file, case)

    def take(self, place: Place, *, measuring: bool) -> Case:
        """Plan the case, or measure it, and keep it."""
        it = subject(place.model, place.platform, self.oldest_s)
        drawn = draw_up(it, place.factor, base_of(it))
        case = measure_case(it, drawn, self.requests) if measuring else drawn.case
        self.save(case)
        return case

    def missing(self, wanted: Sequence[Place], *, measuring: bool) -> Iterator[Place]:
        """Those of `wanted` that are not measured yet; where none is to be measured, not even planned."""
        for place in wanted:
            case = self.known(place)
            if case is None or (measuring and not case.measured):
                yield place


def base_of(it: Subject) -> Base:
    """The latency that the SLOs of a model on a platform are multiples of, from the profile alone."""
    return Base(p95_ms(make_plan(it.graph, it.profile, it.platform, "single", given=it.given).predicted))


def said(case: Case) -> str:
    """One line of a case for who waits for it."""
    costs = []
    for contender in CONTENDERS:
        plan, promise = case.of(contender), case.promised.get(contender)
        if plan:
            costs.append(f"{contender} {plan.cost_usd_per_million:.4g} $ p95 {plan.latency_ms.p95:.1f}")
        elif promise and not case.measured:
            costs.append(f"({contender} {promise.cost_usd_per_million:.4g} $ p95 {promise.p95_ms:.1f})")
        else:
            costs.append(f"{contender} -")
    return f"{case.place}: SLO {case.slo_ms:.1f} ms; {', '.join(costs)}"


def main(argv: Sequence[str] | None = None) -> None:
    """Take what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="MODEL, MODEL/PLATFORM or MODEL/PLATFORM/SLO")
    parser.add_argument("--time-s", type=float, default=float("inf"), help="start no new case after so long")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="per plan, four in a round")
    parser.add_argument("--profile-s", type=float, default=math.inf, help="take a profile that is older anew")
    parser.add_argument("--plan-only", action="store_true", help="plan what is not measured yet, deploy nothing")
    parser.add_argument("--page-only", action="store_true", help="only write the page from earlier results")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page and its figures go")
    options = parser.parse_args(argv)
    campaign = Campaign(options.results, options.requests, options.profile_s)
    try:
        wanted = chosen(options.only)
    except ValueError as error:
        parser.error(str(error))
    begun = time.monotonic()
    for place in campaign.missing([] if options.page_only else wanted, measuring=not options.plan_only):
        now = time.monotonic()
        if now - begun > options.time_s:
            print(f"{place} and what follows is left for another run", flush=True)
            break
        try:
            case = campaign.take(place, measuring=not options.plan_only)
        except Exception as error:  # noqa: BLE001 - one case's failure must not lose the others' hours
            print(f"{place}: FAILED {type(error).__name__}: {error}", flush=True)
            continue
        print(f"{said(case)} ({time.monotonic() - now:.0f} s)", flush=True)
    write(campaign.all(), options.docs)


if __name__ == "__main__":
    main()
