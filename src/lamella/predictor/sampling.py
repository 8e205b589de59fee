"""One network measured: the time of each of its nodes, and what a process that serves it takes.

The runtime's own profiler gives the time of every node in its place; profiling itself takes a microsecond or two per
node, which is taken out again by what the same runs take without it. (For profiles the node times do not do, since
fused nodes do not map back to units: decision 3. Here there are no units.) Every run is timed twice: cold, after caches
were overwritten, as where a request touches more than they hold; and warm, one run behind the other.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from lamella.documents import replacing
from lamella.graph.optimise import optimise
from lamella.limits.pagecache import evict
from lamella.predictor.footprint import Footprint, footprint
from lamella.predictor.networks import INDICES, Inputs, Network
from lamella.predictor.optimised import Node, nodes_of
from lamella.predictor.work import Work, work_of
from lamella.profile.document import UnitMemory
from lamella.profile.layouts import written_shapes
from lamella.profile.probes import COPIES_MB, RUNS, Probe, memory_of, write_function
from lamella.runtime.function import Layout, TensorSpec, session_options
from lamella.units import Dim, dim_at
from lamella.zoo.draft import Blueprint, Fixed

LAYOUTS: tuple[Layout, ...] = ("plain", "prepacked")
"""What is calibrated. Blocked weights are not: which products run blocked is decided by times of their own."""
FLUSH_MB = 64
"""Written between cold runs: more than caches hold."""
LEAST_RUNS, MOST_RUNS = 3, 25
PROFILING_MS = 0.005
"""What profiling takes per node, at most."""
UNDISTURBED = 3
"""One of so many runs counts, the quickest: whoever else has the core only ever adds time."""


class NodeTimes(msgspec.Struct, frozen=True):
    """Of all nodes of a network in one variant, ms."""

    layout: Layout
    threads: int
    warm: bool
    ms: tuple[float, ...]


class Sampled(msgspec.Struct, frozen=True):
    """What was measured of a network."""

    network: str
    works: tuple[Work, ...]
    times: tuple[NodeTimes, ...]
    footprint: Footprint
    memory: tuple[UnitMemory, ...]


class _Made(NamedTuple):
    """A network on disk, optimised."""

    path: Path
    nodes: list[Node]
    values: dict[str, np.ndarray]
    takes: tuple[str, ...]
    gives: tuple[str, ...]


def sample(network: Network, space: Path, *, threads: Sequence[int], budget_s: float, call_ms: float) -> Sampled:
    """Measure a network.

    Args:
        network: of the spread.
        space: an empty directory.
        threads: intra-op threads to time with.
        budget_s: for the runs, about.
        call_ms: what a run of a session takes beyond its nodes.
    """
    made = _make(network, space)
    each = budget_s / (4 * len(LAYOUTS) * len(threads))
    times = tuple(
        NodeTimes(layout, count, warm, tuple(found))
        for layout in LAYOUTS
        for count in threads
        for warm, found in _node_times(made, layout, count, each, call_ms).items()
    )
    works = tuple(work_of(node) for node in made.nodes)
    held = footprint(made.nodes, made.takes, made.gives)
    return Sampled(network.name, works, times, held, tuple(_memory(made, layout) for layout in LAYOUTS))


def _make(network: Network, space: Path) -> _Made:
    blueprint, inputs = network.build(network.name)
    path = space / "network.onnx"
    with replacing(path) as file:
        for chunk in blueprint.stream():
            file.write(chunk)
    proto, weights = optimise(path)
    path.unlink()
    nodes = nodes_of(proto, weights, {**_shapes(blueprint), **written_shapes(proto)}, 1)
    gives = tuple(o.name for o in proto.graph.output)
    return _Made(space / "optimised.onnx", nodes, _request(inputs), tuple(inputs), gives)


def _shapes(blueprint: Blueprint) -> dict[str, tuple[Dim, ...]]:
    """Of every tensor of a network, which the optimiser names as before."""
    proto = onnx.ModelProto()
    proto.CopyFrom(blueprint.frame)
    for weight in blueprint.weights:
        if isinstance(weight, Fixed):
            proto.graph.initializer.append(numpy_helper.from_array(weight.array, weight.name))
        else:
            kind = onnx.TensorProto.FLOAT
            proto.graph.input.append(helper.make_tensor_value_info(weight.name, kind, weight.shape))
    return written_shapes(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def _request(inputs: Inputs) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {name: (dtype, [dim_at(d, 1) for d in shape]) for name, (dtype, shape) in inputs.items()}
    return {
        name: rng.standard_normal(shape, np.float32) if dtype == "float32" else rng.integers(0, INDICES, shape, dtype)
        for name, (dtype, shape) in shapes.items()
    }


def call_time(space: Path) -> float:
    """What a run of a session takes beyond its nodes, ms: of one that does next to nothing."""
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, (1,)) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "call", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), space / "call.onnx")
    session = _session(space / "call.onnx", "plain", 1)
    values = {"x": np.ones(1, np.float32)}
    return float(np.median([_run(session, values) for _ in range(200)]))


def _session(path: Path, layout: Layout, threads: int, profile: Path | None = None) -> ort.InferenceSession:
    options = session_options("packaged", threads=threads, prepack=layout == "prepacked")
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _run(session: ort.InferenceSession, values: Mapping[str, np.ndarray]) -> float:
    start = time.perf_counter()
    session.run(None, dict(values))
    return (time.perf_counter() - start) * 1000


def _node_times(made: _Made, layout: Layout, threads: int, budget_s: float, call_ms: float) -> dict[bool, list[float]]:
    """Of every node, cold and warm."""
    plain = _session(made.path, layout, threads)
    profiled = _session(made.path, layout, threads, made.path.with_name("runs"))
    walls: dict[bool, float] = {}
    runs: list[bool] = []
    for session in (plain, profiled):
        _run(session, made.values)
    for warm in (False, True):
        walls[warm], _ = _repeat(plain, made.values, warm, budget_s)
        _, count = _repeat(profiled, made.values, warm, budget_s)
        runs += [warm] * count
    taken = _kernels(profiled, len(made.nodes))[1:]  # without the run that touches weights for the first time
    found = {}
    for warm in (False, True):
        kernels = _undisturbed(np.array([t for t, w in zip(taken, runs, strict=True) if w == warm]))
        found[warm] = _without_profiling(kernels, walls[warm] - call_ms).tolist()
    return found


def _repeat(
    session: ort.InferenceSession, values: Mapping[str, np.ndarray], warm: bool, budget_s: float
) -> tuple[float, int]:
    """The time of a run, ms, and how many there were."""
    flush = np.zeros(FLUSH_MB << 18, np.float32)
    times: list[float] = []
    begun = time.monotonic()
    while len(times) < LEAST_RUNS or (len(times) < MOST_RUNS and time.monotonic() - begun < budget_s):
        if not warm:
            flush.fill(len(times))
        times.append(_run(session, values))
    return float(_undisturbed(np.array(times)[:, None])[0]), len(times)


def _undisturbed(runs: np.ndarray) -> np.ndarray:
    """The mean of the quickest third of the runs, column by column: [runs, nodes] to [nodes]."""
    kept = -(-len(runs) // UNDISTURBED)
    found: np.ndarray = np.sort(runs, axis=0)[:kept].mean(axis=0)
    return found


def _kernels(session: ort.InferenceSession, nodes: int) -> np.ndarray:
    """Of every run the time of every node in the graph's order, ms: [runs, nodes]."""
    path = Path(session.end_profiling())
    events = json.loads(path.read_bytes())
    path.unlink()
    seen = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    table = np.zeros((len(seen) // nodes, nodes))
    for place, event in enumerate(seen):
        table[place // nodes, int(event["args"]["node_index"])] = event["dur"] / 1000
    return table


def _without_profiling(kernels: np.ndarray, wall_ms: float) -> np.ndarray:
    """Times of nodes less what profiling takes of each, so that they add up to what a run takes without it.

    At most nine tenths of a node's time: some of it is its own. Where the runs without profiling were no quicker
    nothing is taken away, and nothing is ever added: that would be others' time, shared out among small nodes.
    """
    low, high = 0.0, PROFILING_MS
    for _ in range(30):  # a sum of maxima has no closed form
        middle = (low + high) / 2
        if np.maximum(kernels - middle, kernels / 10).sum() > wall_ms:
            low = middle
        else:
            high = middle
    return np.maximum(kernels - high, kernels / 10)


def _memory(made: _Made, layout: Layout) -> UnitMemory:
    """Of a process that serves the network."""
    place = made.path.parent
    plan = _session(made.path, layout, 1).run(list(made.gives), made.values)
    values = {**made.values, **dict(zip(made.gives, plan, strict=True))}
    specs = [tuple(TensorSpec(n, values[n].dtype.name, values[n].shape) for n in s) for s in (made.takes, made.gives)]
    write_function(place, specs[0], specs[1], layout)
    with Probe(place, values, made.takes, made.gives) as probe:
        for _ in range(RUNS):
            probe.run()
        memory = memory_of(probe.instance.report(), layout, probe.cold.session)
    held = made.path.with_suffix(".bin")
    if layout == "prepacked" and held.exists() and memory.private_mb > COPIES_MB:
        evict([held])
        with Probe(place, values, made.takes, made.gives) as probe:
            memory = msgspec.structs.replace(memory, read_ms=max(0.0, probe.cold.session - memory.load_ms))
    return memory
