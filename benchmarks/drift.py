"""How a machine's speed drifts, and which known load sees it: `python -m benchmarks.drift`.

Runs a model whole, on one thread, in turns with four known loads: a loop in a core's cache, products of 256 x 256
matrices, streaming through memory, and short calls. `serving` in place of a model is a request of 27 tensors to a
function that does next to nothing. Printed is how much the medians of windows of some seconds differ from each
other, of the model, of each load, and of the model over each load: where the last is small, that load tells how fast
the machine is for this model. Let the machine do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lamella.graph.extract import Extractor
from lamella.graph.load import import_model
from lamella.graph.requests import request
from lamella.machine import on_cores, this_machine
from lamella.profile.hops import PER_TURN, ROWS, serving, small_request
from lamella.profile.pace import calls, products, took_ms
from lamella.profile.quiet import streaming
from lamella.runtime.function import open_session
from lamella.scratch import scratch

WINDOWS_S = (1.0, 5.0, 10.0, 60.0)
LOADS = ("core", "products", "streaming", "calls")
SERVING = "serving"
TENSORS = 27


@contextmanager
def work(name: str) -> Iterator[Callable[[], object]]:
    """Runs a model of the zoo whole, or a request to next to nothing."""
    if name != SERVING:
        yield model_run(name)
        return
    with tempfile.TemporaryDirectory() as space, on_cores(1):
        request = small_request(ROWS, TENSORS)
        with serving(Path(space), [0], request) as chain:
            yield lambda: [chain.infer(request) for _ in range(PER_TURN)]


def model_run(name: str) -> Callable[[], object]:
    """Runs a model of the zoo whole."""
    graph = import_model(f"zoo:{name}")
    with scratch("drift", graph.directory) as space:
        session = open_session(
            Extractor(graph).write(0, len(graph.operators), space), "portable", threads=1, prepack=False
        )
    values = request(graph, np.random.default_rng(0))
    return lambda: session.run(None, values)


def sample(run: Callable[[], object], seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """When, s [n], and what the model and each load took, ms [n, 5], the loads on average of before and behind it."""
    core = np.full(1 << 15, 0.5, np.float32)
    loads = (lambda: [np.sqrt(core, out=core) for _ in range(400)], products(1), streaming, lambda: [calls(), calls()])
    for warm in (run, *loads):
        warm()
    at, rows, begun = list[float](), list[list[float]](), time.monotonic()
    while time.monotonic() - begun < seconds:
        before = [took_ms(load) for load in loads]
        took = took_ms(run)
        behind = [took_ms(load) for load in loads]
        at.append(time.monotonic() - begun)
        rows.append([took, *((a + b) / 2 for a, b in zip(before, behind, strict=True))])
    return np.array(at), np.array(rows)


def spreads(at: np.ndarray, rows: np.ndarray, window_s: float) -> list[float]:
    """Relative standard deviations of windows' medians: of the model, each load, the model over each load."""
    number = (at // window_s).astype(int)
    medians = np.array([np.median(rows[number == k], axis=0) for k in np.unique(number) if (number == k).sum() > 1])
    columns = [*medians.T, *(medians[:, 0] / medians[:, k + 1] for k in range(len(LOADS)))]
    return [float(column.std() / column.mean()) for column in columns]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet50,gru-seq2seq")
    parser.add_argument("--seconds", type=float, default=90.0, help="of each model")
    asked = parser.parse_args()
    machine = this_machine()
    print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {machine.cpu}, {machine.cores} cores")
    print(" | ".join(["model", "window s", "model", *LOADS, *(f"over {load}" for load in LOADS)]))
    for name in asked.models.split(","):
        with work(name) as run:
            at, rows = sample(run, asked.seconds)
        for window_s in WINDOWS_S:
            print(" | ".join([name, f"{window_s:g}", *(f"{s:.1%}" for s in spreads(at, rows, window_s))]))


if __name__ == "__main__":
    main()
