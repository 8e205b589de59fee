"""From which request rate on a hosted instance is cheaper than a plan on Lambda: `python -m benchmarks.hosted`.

AMPS-Inf says that a divided serverless plan costs up to 98 % less than hosting. That depends on the rate of requests:
an instance is paid while it idles, a function is not. Nothing is deployed here: costs are those of plans, of a model's
own profile, and the instance's throughput is that of the same profile.

*Serverless*, by the hour: every request pays its plan. Requests are a Poisson process; one that finds its functions
expired (none came for as long as idle instances are kept) pays a start of each function besides. Instances that start
because requests overlap are not counted.

*Hosted*, by the hour: as many instances as the rate needs, at least one. An instance answers one request at a time
on all its cores, or one on each core as if they did not slow each other (that favours it), whichever is more; and it is
used to 70 %, beyond which waiting takes over.

Results go to `benchmarks/results/hosted.json` after each model, and are not made again (`--fresh` does); the page is
`docs/benchmarks-hosted.md`. `--usd-per-hour` asks for another price of the instance.
"""

from __future__ import annotations

import argparse
import datetime
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.charts import Axis, Guide, Series, chart
from benchmarks.models import MODELS, Subject, between, subject
from benchmarks.quality_cases import SIX
from lamella import documents
from lamella.documents import Document
from lamella.errors import LamellaError
from lamella.machine import Machine
from lamella.plan.make import make_plan
from lamella.plan.request import Request
from lamella.platforms import Platform, platform

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "hosted.json"
DOCS = ROOT / "docs"
PAGE, SAVING, FLIPS = "benchmarks-hosted.md", "hosted-saving.svg", "hosted-flips.svg"
SERVERLESS, HOSTED = "aws-lambda", "hosted"
UTILISATION = 0.7
"""How much of its time an instance is busy at most."""
CLAIM = 0.98
"""What AMPS-Inf saves at most."""
ANY_MS = 3_600_000.0
"""As good as no bound on latency."""
WAYS: dict[str, tuple[str, float | None]] = {
    "single": ("single", None),
    "exact": ("exact", None),
    "exact, any latency": ("exact", ANY_MS),
}
"""Plans: the planner, and its SLO; without one `exact` stays within 2.5 % of the single function's latency."""
DRAWN = "exact"
PRICES = (0.0425, 0.085, 0.17, 0.34, 1.0)
"""Of an instance, dollars an hour, for the table."""
MADE_BY = "python -m benchmarks.hosted"


class Way(msgspec.Struct, frozen=True):
    """A serverless plan: what a request costs, and what a start of all its functions costs besides."""

    functions: int
    latency_ms: float
    request_usd: float
    start_usd: float


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A model served both ways."""

    ways: dict[str, Way]
    failed: dict[str, str]
    """Plans that could not be made, and why."""
    alone_ms: float
    """On the instance: one request at a time, all cores."""
    beside_ms: float
    """One on each core."""
    peak_mb: float
    """Of a process that serves the model."""
    machine: Machine
    date: str


class Results(Document, frozen=True, kw_only=True):
    """`hosted.json`, by model."""

    offers: dict[str, Offer]


def offer(it: Subject) -> Offer:
    """What a model costs on Lambda by each plan, and how long it takes on the instance."""
    ways, failed = {}, {}
    for name, (planner, slo_ms) in WAYS.items():
        try:
            plan = make_plan(it.graph, it.profile, it.platform, planner, given=it.given, request=Request(slo_ms))
        except LamellaError as error:
            failed[name] = str(error)
            continue
        if plan.cold is None:
            failed[name] = f"what starts cost on {it.platform.name} is not known"
            continue
        predicted, starts = plan.predicted, plan.cold.usd_per_million_starts
        ways[name] = Way(len(plan.functions), predicted.latency_ms, predicted.cost_usd_per_million / 1e6, starts / 1e6)
    machine = platform(HOSTED)
    assert machine.node
    alone, beside = (
        make_plan(it.graph, it.profile, machine, "single", given=it.given, request=Request(vcpu=vcpu))
        for vcpu in (machine.node.vcpu.value, 1.0)
    )
    return Offer(
        ways=ways,
        failed=failed,
        alone_ms=alone.predicted.latency_ms,
        beside_ms=beside.predicted.latency_ms,
        peak_mb=beside.functions[0].peak_mb,
        machine=it.profile.machine,
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    )


class Instance(NamedTuple):
    """A hosted instance for one model: how many requests it answers in a second at the bound, at which latency."""

    capacity: float
    latency_ms: float
    """Of a request that does not wait."""
    lanes: int
    """Requests at a time."""

    @property
    def waiting_ms(self) -> float:
        """Mean wait at the bound: that of M/M/c by Erlang's C, halved, since all requests take equally long."""
        load = self.lanes * UTILISATION
        terms = [load**k / math.factorial(k) for k in range(self.lanes)]
        last = load**self.lanes / math.factorial(self.lanes) / (1 - UTILISATION)
        return last / (sum(terms) + last) / (self.lanes * (1 - UTILISATION)) / 2 * self.latency_ms


def instance(one: Offer, rules: Platform) -> Instance:
    """How the instance serves a model: the way that answers more."""
    assert rules.node
    cores = int(rules.node.vcpu.value)
    lanes = cores if one.peak_mb * cores <= rules.node.memory_mb.value else 1
    ways = [Instance(UTILISATION * 1000 / one.alone_ms, one.alone_ms, 1)]
    ways += [Instance(UTILISATION * lanes * 1000 / one.beside_ms, one.beside_ms, lanes)]
    return max(ways, key=lambda way: way.capacity)


class Market(NamedTuple):
    """A serverless plan against hosted instances of a price."""

    way: Way
    keep_alive_s: float
    """How long an idle function stays."""
    capacity: float
    """Requests a second of an instance."""
    usd_per_hour: float
    """Of an instance."""

    def serverless(self, rate: float) -> float:
        """Dollars an hour at so many requests a second."""
        cold = math.exp(-rate * self.keep_alive_s)
        return 3600 * rate * (self.way.request_usd + cold * self.way.start_usd)

    def instances(self, rate: float) -> int:
        """How many the rate needs."""
        return max(1, math.ceil(rate / self.capacity - 1e-9))

    def hosted(self, rate: float) -> float:
        """Dollars an hour."""
        return self.usd_per_hour * self.instances(rate)

    def saving(self, rate: float) -> float:
        """What serverless saves, as a share of hosting; below nought it is dearer."""
        return 1 - self.serverless(rate) / self.hosted(rate)

    @property
    def equal(self) -> float:
        """The rate at which warm requests cost as much as one instance, however many it could answer."""
        return self.usd_per_hour / 3600 / self.way.request_usd

    def upto(self, saving: float) -> float:
        """The highest rate up to which serverless saves so much beside one instance; 0 where it never does."""
        low, high = 0.0, min((1 - saving) * self.equal, self.capacity)
        rare = 1 / self.keep_alive_s  # the rate at which starts cost most
        if rare < high and self.saving(rare) < saving:
            high = rare
        if self.saving(high) >= saving:
            return high
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if self.saving(middle) >= saving else (low, middle)
        return low

    @property
    def flips(self) -> tuple[float, float] | None:
        """From which rate on hosting is cheaper at times, and from which on always; None where it never is.

        Each further instance makes serverless the cheaper one for a while, until instances are full enough: with a rate
        of x at which requests cost an instance and a capacity of C, of n instances all those with n >= C / (C - x).
        """
        if self.equal >= self.capacity:
            return None
        many = math.ceil(self.capacity / (self.capacity - self.equal) - 1e-9) - 1
        return self.upto(0.0), max(self.upto(0.0), many * self.equal)


def market(one: Offer, way: str, usd_per_hour: float) -> Market:
    """A model's plan against instances of a price."""
    rules = platform(SERVERLESS)
    return Market(one.ways[way], rules.start.keep_alive_s.value, instance(one, platform(HOSTED)).capacity, usd_per_hour)


def page(offers: Mapping[str, Offer], usd_per_hour: float) -> str:
    """`docs/benchmarks-hosted.md`."""
    if not offers:
        return "# Serverless or hosted\n\nNothing is planned yet: `python -m benchmarks.hosted`.\n"
    machine = next(iter(offers.values())).machine
    rules, hosted = platform(SERVERLESS), platform(HOSTED)
    assert hosted.node
    assert hosted.node.usd_per_hour
    lines = [
        "# Serverless or hosted",
        "",
        f"Printed by `python -m benchmarks.hosted` on {between(o.date for o in offers.values())} from profiles of: "
        f"{machine.cpu}, {machine.cores} cores, {machine.isa}, onnxruntime {machine.onnxruntime}. **Nothing here was "
        "deployed**: costs are predicted, what plans cost in reality is on "
        "[the page of measured ones](benchmarks-quality.md).",
        "",
        f"Up to which rate of requests is a plan on {rules.title} cheaper than a {hosted.title} at "
        f"${usd_per_hour:g} an hour ({hosted.node.usd_per_hour.source})? Requests are a Poisson process. A request "
        f"pays its plan, and where no other came in the {rules.start.keep_alive_s.value:g} s before, the start of "
        "every function besides. An instance answers one request at a time on all cores, or one on each as if they did "
        f"not slow each other, whichever is more, and is busy for at most {UTILISATION:.0%} of its time; with the rate "
        "their number grows. Batch 1. The instance is taken to be as quick as the profiled machine, and a vCPU of the "
        "functions too.",
        "",
        *_finding(offers, usd_per_hour),
        "",
        f"![What serverless saves, by the rate of requests]({SAVING})",
        "",
    ]
    for way in WAYS:
        lines += [f"## `{way}`", "", *_table(offers, way, usd_per_hour), ""]
    lines += ["## The price of the instance", "", *_prices(offers), "", f"![Where it flips]({FLIPS})", ""]
    return "\n".join(lines)


def _finding(offers: Mapping[str, Offer], usd_per_hour: float) -> list[str]:
    markets = {n: market(o, DRAWN, usd_per_hour) for n, o in offers.items() if DRAWN in o.ways}
    if not markets:
        return [f"`{DRAWN}` has no plan."]
    divided = sum(m.way.functions > 1 for m in markets.values())
    claims = {n: m.upto(CLAIM) for n, m in markets.items()}
    flips = {n: found[0] for n, m in markets.items() if (found := m.flips)}
    least, most = min(claims, key=claims.__getitem__), max(claims, key=claims.__getitem__)
    lines = [
        f"- `{DRAWN}` divides {divided} of {len(markets)} models.",
        f"- It costs at least {CLAIM:.0%} less than hosting, AMPS-Inf's claim, up to {_rate(claims[least])} ({least}) "
        f"to {_rate(claims[most])} ({most}).",
    ]
    if flips:
        first, last = min(flips, key=flips.__getitem__), max(flips, key=flips.__getitem__)
        lines.append(f"- Hosting is cheaper from {_rate(flips[first])} ({first}) to {_rate(flips[last])} ({last}) on.")
    never = [n for n in markets if n not in flips]
    if never:
        lines.append(f"- At no rate is it cheaper for {', '.join(never)}: full instances cost more a request.")
    return lines


def _rate(per_s: float) -> str:
    """A rate in the unit that reads best."""
    for per, name in ((1, "second"), (60, "minute"), (3600, "hour")):
        if per_s * per >= 1:
            return f"{per_s * per:.3g} requests a {name}"
    return f"{per_s * 86400:.3g} requests a day"


def _table(offers: Mapping[str, Offer], way: str, usd_per_hour: float) -> list[str]:
    lines = [
        "| model | functions | $/million | of starts | ms | hosted ms, waiting | an instance answers | saves "
        f"{CLAIM:.0%} up to | saves half up to | hosting is cheaper from | always from | saves at 1 a minute "
        "| at 1 a second |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in offers.items():
        if way not in one.ways:
            lines.append(f"| {name} | {one.failed[way].splitlines()[0]} |" + " |" * 11)
            continue
        m, there = market(one, way, usd_per_hour), instance(one, platform(HOSTED))
        first, last = (f"{r:.3g}/s" for r in m.flips) if m.flips else ("never", "never")
        lines.append(
            f"| {name} | {m.way.functions} | {m.way.request_usd * 1e6:.4g} | {m.way.start_usd * 1e6:.4g} "
            f"| {m.way.latency_ms:.1f} "
            f"| {there.latency_ms:.1f} + {there.waiting_ms:.1f} | {there.capacity:.3g}/s | {m.upto(CLAIM):.3g}/s "
            f"| {m.upto(0.5):.3g}/s | {first} | {last} | {m.saving(1 / 60):.1%} | {m.saving(1.0):.1%} |"
        )
    return lines


def _prices(offers: Mapping[str, Offer]) -> list[str]:
    lines = [
        f"From which rate on hosting is cheaper than `{DRAWN}`, requests a second, by what an instance costs an hour:",
        "",
        "| model | " + " | ".join(f"${p:g}" for p in PRICES) + " |",
        "|---|" + "---:|" * len(PRICES),
    ]
    for name, one in offers.items():
        if DRAWN in one.ways:
            found = [market(one, DRAWN, price).flips for price in PRICES]
            lines.append(f"| {name} | " + " | ".join(f"{f[0]:.3g}" if f else "never" for f in found) + " |")
    return lines


def _drawn(offers: Mapping[str, Offer]) -> list[str]:
    """Models in the figures: as many as there are colours."""
    able = [n for n in offers if DRAWN in offers[n].ways]
    return ([n for n in SIX if n in able] or able)[:6]


def saving_svg(offers: Mapping[str, Offer], usd_per_hour: float) -> str:
    """What serverless saves against the rate of requests; the teeth are further instances."""
    rates = [10 ** (k / 200) for k in range(-800, 401)]
    series = []
    for name in _drawn(offers):
        m = market(offers[name], DRAWN, usd_per_hour)
        series.append(Series(name, [(rate, m.saving(rate)) for rate in rates], line=True))
    guides = [
        Guide([(rates[0], 0.0), (rates[-1], 0.0)]),
        Guide([(rates[0], CLAIM), (rates[-1], CLAIM)], f"{CLAIM:.0%}", dashed=True),
    ]
    x = Axis("requests a second", rates[0], rates[-1], log=True)
    y = Axis("saved of hosting", -1.0, 1.0, percent=True)
    title = f"What `{DRAWN}` on Lambda saves against instances at ${usd_per_hour:g} an hour"
    return chart(title.replace("`", ""), x, y, series, guides)


def flips_svg(offers: Mapping[str, Offer], usd_per_hour: float) -> str:
    """From which rate on hosting is cheaper, against the price of an instance; a line ends where it never is."""
    prices = [10 ** (k / 50) for k in range(-100, 51)]
    series, rates = [], []
    for name in _drawn(offers):
        found = [(p, f[0]) for p in prices if (f := market(offers[name], DRAWN, p).flips)]
        if found:
            series.append(Series(name, found, line=True))
            rates += [rate for _, rate in found if rate > 0]
    low, high = (min(rates) / 2, max(rates) * 2) if rates else (0.1, 10.0)
    x = Axis("an instance costs, dollars an hour", prices[0], prices[-1], log=True)
    y = Axis("hosting is cheaper from, requests a second", low, high, log=True)
    guide = Guide([(usd_per_hour, low), (usd_per_hour, high)], f"${usd_per_hour:g}", dashed=True)
    return chart("Where hosting becomes cheaper than Lambda", x, y, series, [guide])


def main(argv: Sequence[str] | None = None) -> None:
    """Plan what is missing, write page and figures."""
    own = platform(HOSTED).node
    assert own
    assert own.usd_per_hour
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--usd-per-hour", type=float, default=own.usd_per_hour.value, help="of an instance")
    parser.add_argument("--fresh", action="store_true", help="forget earlier plans")
    parser.add_argument("--page-only", action="store_true", help="only write the page from earlier results")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page and its figures go")
    options = parser.parse_args(argv)
    offers: dict[str, Offer] = {}
    if options.results.exists() and not options.fresh:
        offers = documents.read(options.results, Results, made_by=MADE_BY).offers
    names = [] if options.page_only else [n for n in options.models.split(",") if n not in offers]
    for name in names:
        try:
            offers[name] = offer(subject(name, SERVERLESS))
        except LamellaError as error:
            print(f"{name}: {error}", flush=True)
            continue
        offers = {n: offers[n] for n in sorted(offers, key=lambda n: MODELS.index(n) if n in MODELS else len(MODELS))}
        documents.write(options.results, Results(offers=offers))
        print(f"{name}: {offers[name]}", flush=True)
    (options.docs / PAGE).write_text(page(offers, options.usd_per_hour))
    if any(DRAWN in one.ways for one in offers.values()):
        (options.docs / SAVING).write_text(saving_svg(offers, options.usd_per_hour))
        (options.docs / FLIPS).write_text(flips_svg(offers, options.usd_per_hour))


if __name__ == "__main__":
    main()
