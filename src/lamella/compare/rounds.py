"""Interleaved rounds: every plan takes its turn in every round, a known load before and after tells a noisy round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lamella.compare.field import OWN_FAULTS
from lamella.deploy.local import Answer, Deployment
from lamella.errors import LamellaError
from lamella.profile.document import Pace
from lamella.profile.pace import Watch, median
from lamella.profile.quiet import known_load, slowdown

NOISY = 1.15
"""A round is rejected when the known load beside it took this much longer than the fastest seen."""


SETTLING = 4
"""So many requests of a turn are not counted where a plan answers in `SHORT_MS`: a process that was frozen takes three
or four of them to be as quick as in a closed loop (dlrm: 0.6, 0.45, 0.38, 0.34, then 0.31 ms)."""
SHORT_MS = 20.0


class Sample(NamedTuple):
    """One request: end to end, and per stage the run and its CPU time; ms."""

    round: int
    latency_ms: float
    stage_ms: tuple[float, ...]
    cpu_ms: float
    emulated_ms: float = 0.0
    """Taken off the latency for shards beyond this machine's cores."""

    def waiting(self, waits_ms: Sequence[float]) -> Sample:
        """The same where functions run longer, each by what it waits for an emulated channel."""
        runs = tuple(run + wait for run, wait in zip(self.stage_ms, waits_ms, strict=True))
        return self._replace(stage_ms=runs)


class Rounds(NamedTuple):
    """Samples of kept rounds by plan, and how the rounds went."""

    samples: dict[str, list[Sample]]
    kept: int
    rejected: int
    """Noisy rounds whose samples were thrown away; they were run again."""
    noisy_kept: int
    """Of the kept ones those that were noisy as well, when too many had been rejected."""
    lost: dict[str, LamellaError]
    """Plans that failed on the way, and why; they have no samples."""
    paces: dict[str, Pace]
    """The machine's while each plan had its turns in kept rounds."""


def run_rounds(
    deployments: Mapping[str, Deployment],
    requests: Callable[[], dict[str, np.ndarray]],
    *,
    rounds: int,
    per_round: int,
    tick: Callable[[float], None],
    max_rejected: int | None = None,
    over_s: float = 0.0,
) -> Rounds:
    """Send `per_round` fresh requests to every plan in each of `rounds` rounds.

    A function with a fraction of a vCPU gets its request after a pause of two to three periods, at any phase of one:
    its grant is unspent then, as it is for a request on a platform. Without pauses it would only ever be seen exhausted
    by its predecessor: requests in a closed loop take CPU time over quota, whatever the run takes by itself.

    A plan's instances are frozen while it is not their turn: the threads of the default session spin on after an
    answer, and would take the core from whoever comes next.

    A noisy round is rejected and run again, at most `max_rejected` times in all (as many as rounds by default); after
    that noisy rounds are kept and counted apart: their figures then carry the noise, and say so.

    Rounds begin evenly over `over_s` at least: a core that is shared with somebody else takes 1.65 times as long for
    some seconds and not for others, and all rounds of a plan of a millisecond are over in ten of them.

    A plan that fails to answer is stopped and lost; the others go on.
    """
    limit = rounds if max_rejected is None else max_rejected
    samples: dict[str, list[Sample]] = {name: [] for name in deployments}
    loads = [known_load() for _ in range(5)]
    kept = rejected = noisy_kept = 0
    order = list(deployments)
    rng = np.random.default_rng(0)
    lost: dict[str, LamellaError] = {}
    watch = Watch()
    paces: dict[str, list[Pace]] = {name: [] for name in deployments}
    begun = time.monotonic()
    while kept < rounds and order:
        time.sleep(max(0.0, begun + over_s * kept / rounds - time.monotonic()))
        drawn: dict[str, list[Sample]] = {}
        at: dict[str, list[Pace]] = {}
        before = known_load()
        for name in order:
            at[name] = [watch.look()]
            try:
                with deployments[name].awake() as awake:
                    first = _settled(awake, requests, kept, rng)
                    drawn[name] = [first, *(_send(awake, requests(), kept, rng) for _ in range(per_round - 1))]
                at[name].append(watch.look())
            except OWN_FAULTS as error:
                lost[name] = error
                deployments[name].close()
        after = known_load()
        loads += [before, after]
        order = [str(n) for n in rng.permutation([n for n in order if n not in lost])]  # none always after the same one
        if slowdown([before, after], loads) > NOISY:
            if rejected < limit:
                rejected += 1
                continue
            noisy_kept += 1
        for name, found in drawn.items():
            samples[name] += found
            paces[name] += at[name]
        kept += 1
        tick(kept / rounds)
    watch.keep()
    left = {n: s for n, s in samples.items() if n not in lost}
    return Rounds(left, kept, rejected, noisy_kept, lost, {n: median(paces[n]) for n in left})


def _settled(
    deployment: Deployment, requests: Callable[[], dict[str, np.ndarray]], round_: int, rng: np.random.Generator
) -> Sample:
    """The first request of a turn that counts: behind a pause, and where it takes long, that is the first."""
    sample = _send(deployment, requests(), round_, rng)
    for _ in range(SETTLING if sample.latency_ms < SHORT_MS and not deployment.throttled else 0):
        sample = _send(deployment, requests(), round_, rng)
    return sample


def _send(deployment: Deployment, inputs: dict[str, np.ndarray], round_: int, rng: np.random.Generator) -> Sample:
    if deployment.throttled:
        time.sleep((2 + rng.random()) * deployment.period_ms / 1000)
    answer: Answer = deployment.infer(inputs, sent=time.monotonic())
    runs = tuple(s.run_ms for s in answer.stages)
    return Sample(round_, answer.latency_ms, runs, sum(s.cpu_ms for s in answer.stages), answer.emulated_ms)


def interval(rounds: Sequence[Sequence[float]], statistic: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """95 % bootstrap interval of a statistic of all samples, whole rounds drawn; (value, value) below three rounds."""
    value = float(statistic(np.concatenate([np.asarray(r, float) for r in rounds])))
    if len(rounds) < 3:
        return value, value
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(1000):
        picks = rng.integers(0, len(rounds), len(rounds))
        drawn.append(statistic(np.concatenate([np.asarray(rounds[p], float) for p in picks])))
    return float(np.percentile(drawn, 2.5)), float(np.percentile(drawn, 97.5))
