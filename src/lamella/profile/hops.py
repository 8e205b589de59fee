"""The runtime floor and the price of a hop, from chains made for it.

A chain of functions is measured against one function that does the same work, in turns. What the chain takes more is
the price of its hops: the driver's part, and a part that each function is billed for. Both grow with the memory that
a request touches, since driver and functions wake up with caches that others have filled: so it is done with
functions that do next to nothing and with functions that together read `COLD_MB` of weights. And both are several times
that behind a pause, when the cores themselves have to wake up: so it is done a third time, with requests one by one.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import NormalDist

import numpy as np
import onnx
from onnx import TensorProto, helper

from lamella.graph.weights import disk_error
from lamella.limits.unlimited import Unlimited
from lamella.profile.document import Floor, HopCost, HopCosts
from lamella.profile.probes import write_function
from lamella.runtime.chain import Answer, Chain, Size
from lamella.runtime.function import Function, TensorSpec
from lamella.runtime.instance import ColdStart
from lamella.runtime.tensors import Channel, Store

STAGES = 4
COLD_MB = 64
"""Measured with 16, 32, 64 and 128 MB on a 32 MB cache: the price grows up to here and no further."""
WIDTH = 1024
MATRIX_MB = 4
WEIGHTS = "optimised.bin"
ROWS = 16
TURNS = 30
COLD_TURNS = 60
"""Where functions read weights: what they take for a hop is the small difference of two times of milliseconds."""
PER_TURN = 4
PAUSE_S = 0.025
"""Before a request that comes alone, and before a pass over units that does: as between those of `compare.rounds`."""
TENSORS = 33
"""Of a request, where the price of one is measured."""
P95 = NormalDist().inv_cdf(0.95)
"""Standard deviations of a normal distribution from its median to its 95th percentile."""


def floor_and_hops(scratch: Path, look: Callable[[], object] = lambda: None) -> tuple[Floor, HopCosts]:
    """The runtime floor and what serving takes beyond the operators. Takes about ten seconds.

    Args:
        scratch: a directory to work in; what is made there is removed.
        look: called before every turn of what is measured in a closed loop.
    """
    floor, entry_mb_ms = _floor_and_entry(scratch / "floor")
    return floor, HopCosts(
        warm=_price(scratch / "warm", 0, entry_mb_ms, look=look),
        cold=_price(scratch / "cold", COLD_MB // MATRIX_MB // STAGES, entry_mb_ms),
        cold_mb=COLD_MB,
        paused=_price(scratch / "paused", 0, entry_mb_ms, PAUSE_S),
    )


def _price(
    directory: Path,
    matrices: int,
    entry_mb_ms: float,
    pause_s: float = 0.0,
    look: Callable[[], object] = lambda: None,
) -> HopCost:
    """The price where each of the stages multiplies with so many matrices, and requests come behind a pause."""
    shapes = [[STAGES * matrices], [matrices] * STAGES, [STAGES * matrices]]
    whole, divided, wide = in_turns(
        directory,
        shapes,
        ROWS,
        tensors=(1, 1, TENSORS),
        pause_s=pause_s,
        turns=COLD_TURNS if matrices else TURNS,
        undisturbed=not pause_s,
        look=look,
    )
    more = np.median(divided - whole, axis=0) / (STAGES - 1)
    fixed = max(0.0, float(more[0]))
    call = float(more[1]) if matrices else float(np.median(divided[:, 1])) / STAGES
    tensor = np.median(wide - whole, axis=0) / (TENSORS - 1)
    return HopCost(
        entry_ms=max(0.0, float(np.median(whole[:, 0])) - fixed),
        entry_mb_ms=entry_mb_ms,
        fixed_ms=fixed,
        call_ms=max(0.0, call),
        entry_tensor_ms=max(0.0, float(tensor[0])),
        call_tensor_ms=max(0.0, float(tensor[1])),
        deviation_ms=deviation(whole.sum(axis=1)) if pause_s else _deviation(directory, STAGES * matrices),
    )


def _deviation(directory: Path, matrices: int) -> float:
    """How far what a function takes beyond its work spreads, ms; its work counts, too, where it does next to nothing.

    Of every request, the first behind another function's work, too: the price of a hop is that of an undisturbed one.
    """
    every, _ = in_turns(directory, [[matrices], [COLD_MB // MATRIX_MB]], ROWS, undisturbed=False)
    return deviation(every[:, 0] if matrices else every.sum(axis=1))


def deviation(times_ms: Sequence[float] | np.ndarray) -> float:
    """Standard deviation of a normal distribution with the median and the 95th percentile of these, ms."""
    return float((np.percentile(times_ms, 95) - np.median(times_ms)) / P95)


def _floor_and_entry(directory: Path) -> tuple[Floor, float]:
    """The floor, and what a request takes per MB that is copied in and out, ms."""
    narrow, wide = ROWS, 64 * ROWS
    beyond = [float(np.median(in_turns(directory, [[0]], rows)[0][:, 0])) for rows in (narrow, wide)]
    chain = _functions(directory, [0], small_request(narrow, 1))
    with Chain(chain, ["x1"], {chain[0][0].name: Size(None, 1.0)}, limiter=Unlimited("profiling")) as served:
        cold: ColdStart = next(iter(served.start().values()))
        report = next(iter(served.instances.values())).report()
    shutil.rmtree(directory)
    copied_mb = 2 * (wide - narrow) * WIDTH * 4 / 2**20
    return (
        Floor(report.floor_mb, report.floor_anonymous_mb, cold.spawn + cold.imports),
        max(0.0, (beyond[1] - beyond[0]) / copied_mb),
    )


def in_turns(
    directory: Path,
    chains: Sequence[Sequence[int]],
    rows: int,
    *,
    turns: int = TURNS,
    tensors: Sequence[int] = (),
    channels: Sequence[Channel] = (),
    store: Store | None = None,
    undisturbed: bool = True,
    pause_s: float = 0.0,
    look: Callable[[], object] = lambda: None,
) -> list[np.ndarray]:
    """Times of chains that take turns, ms: [turns, 2], a request beyond its functions' runs and the sum of these.

    A chain is the number of matrices of each stage. Neighbouring turns see the same noise: compare turn by turn.

    Args:
        directory: to work in; removed afterwards.
        chains: what to measure.
        rows: of the tensor that goes from stage to stage, `WIDTH` floats each.
        turns: how many.
        tensors: of each chain's request; one by default.
        channels: of each chain; shared memory by default.
        store: for those on `s3`.
        undisturbed: the median of a turn, but for its first; else every request is a row.
        pause_s: before every request.
        look: called before every turn.
    """
    times: list[list[list[list[float]]]] = [[] for _ in chains]
    requests = [small_request(rows, tensors[number] if tensors else 1) for number in range(len(chains))]
    with ExitStack() as stack:
        served = [
            stack.enter_context(
                serving(
                    directory / str(number),
                    works,
                    requests[number],
                    channel=channels[number] if channels else "shared-memory",
                    store=store,
                )
            )
            for number, works in enumerate(chains)
        ]
        for _ in range(turns + 1):
            look()
            for found, chain, request in zip(times, served, requests, strict=True):
                answers = [_answer(chain, request, pause_s) for _ in range(PER_TURN)]
                runs = [sum(s.run_ms for s in a.stages) for a in answers]
                pairs = [(a.latency_ms - run, run) for a, run in zip(answers, runs, strict=True)]
                # the first one meets the other chain's leavings
                found.append([np.median(pairs[1:], axis=0).tolist()] if undisturbed else [list(pair) for pair in pairs])
    shutil.rmtree(directory)
    return [np.concatenate(found[1:]) for found in times]


@contextmanager
def serving(
    directory: Path,
    works: Sequence[int],
    request: dict[str, np.ndarray],
    *,
    channel: Channel = "shared-memory",
    store: Store | None = None,
) -> Iterator[Chain]:
    """A chain made for it, started, each of its stages with so many matrices.

    Args:
        directory: to work in.
        works: matrices of each stage.
        request: what it will be asked, as of `small_request`.
        channel: of its hops.
        store: for `s3`.
    """
    functions = _functions(directory, works, request)
    sizes = {f.name: Size(None, 1.0) for f, _ in functions}
    limiter = Unlimited("profiling")
    with Chain(functions, [f"x{len(works)}"], sizes, limiter=limiter, channel=channel, store=store) as chain:
        chain.start()
        yield chain


def small_request(rows: int, tensors: int) -> dict[str, np.ndarray]:
    """What the first function works on, and small tensors beside it that nobody reads."""
    return {
        "x0": np.ones((rows, WIDTH), np.float32),
        **{f"y{k}": np.ones((1, 1), np.float32) for k in range(1, tensors)},
    }


def _answer(chain: Chain, request: dict[str, np.ndarray], pause_s: float) -> Answer:
    time.sleep(pause_s)
    return chain.infer(request)


def _functions(directory: Path, works: Sequence[int], request: dict[str, np.ndarray]) -> list[tuple[Function, Path]]:
    """A function per stage: products with 4 MB matrices, or one Relu."""
    rows = len(request["x0"])
    functions = []
    for k, matrices in enumerate(works):
        folder = directory / f"stage-{k}"
        folder.mkdir(parents=True)
        names = [f"x{k}", *(f"x{k}.{j}" for j in range(1, matrices)), f"x{k + 1}"]
        weights = [_matrix(f"w{j}", j) for j in range(matrices)]
        if matrices:
            _write_matrices(folder / WEIGHTS, matrices)
        nodes = [helper.make_node("MatMul", [names[j], f"w{j}"], [names[j + 1]]) for j in range(matrices)]
        nodes = nodes or [helper.make_node("Relu", names[:1], names[1:])]
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (rows, WIDTH)) for n in (names[0], names[-1])]
        beside = [name for name in request if name != "x0"] if k == 0 else []
        unread = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 1)) for n in beside]
        graph = helper.make_graph(nodes, "stage", [ends[0], *unread], ends[1:], weights)
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
            folder / "optimised.onnx",
        )
        specs = [TensorSpec(n, "float32", (rows, WIDTH)) for n in (names[0], names[-1])]
        more = [TensorSpec(n, "float32", (1, 1)) for n in beside]
        functions.append((write_function(folder, (specs[0], *more), (specs[1],)), folder))
    return functions


def _write_matrices(path: Path, count: int) -> None:
    """So many matrices in a file.

    Raises:
        StorageError: the disk is full or refuses.
    """
    matrix = np.full((WIDTH, WIDTH), 1 / WIDTH, np.float32)
    try:
        with path.open("wb") as file:
            for _ in range(count):
                file.write(matrix.data)
    except OSError as error:
        raise disk_error(error, path) from error


def _matrix(name: str, number: int) -> TensorProto:
    """A matrix in the mapped file: in anonymous memory its speed would depend on the luck of getting huge pages."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=(WIDTH, WIDTH))
    tensor.data_location = TensorProto.EXTERNAL
    size = MATRIX_MB << 20
    for key, value in (("location", WEIGHTS), ("offset", number * size), ("length", size)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
