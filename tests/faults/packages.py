"""Small packages to break: hand-made plans of hand-made models, and what is left of them afterwards."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from lamella.deploy.local import Deployment
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.limits import Limiter
from lamella.machine import this_machine
from lamella.package import build
from lamella.plan.document import FunctionPlan, Hop, ModelRef, Plan, Predicted
from lamella.plan.layout import crossing
from lamella.runtime.function import Kind, open_session

Shape = Sequence[int | str]
Border = Mapping[str, tuple[str, Shape]]
PATIENCE_S = 10.0
BUSY_ROWS = 256


def eventually(true: Callable[[], bool], patience_s: float = PATIENCE_S) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + patience_s
    while not true():
        if time.monotonic() > deadline:
            return False
        os.sched_yield()
    return True


def graph_of(
    directory: Path,
    name: str,
    nodes: Sequence[NodeProto],
    inputs: Border,
    outputs: Border,
    constants: Mapping[str, np.ndarray] | None = None,
) -> Graph:
    """The imported graph of a model written by hand; borders are name -> (dtype, shape)."""

    def infos(border: Border) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(shape))
            for n, (dtype, shape) in border.items()
        ]

    weights = [numpy_helper.from_array(array, n) for n, array in (constants or {}).items()]
    model = helper.make_model(
        helper.make_graph(list(nodes), name, infos(inputs), infos(outputs), weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    path = directory / f"{name}.onnx"
    path.write_bytes(model.SerializeToString())
    return import_model(str(path), {n: shape for n, (_, shape) in inputs.items()})


def plan_of(
    graph: Graph,
    cuts: Sequence[int] = (),
    *,
    kind: Kind = "packaged",
    memory_mb: int = 128,
    floor_mb: float = 0.0,
    codec: str = "none",
) -> Plan:
    """A plan made by hand: one function between each two cuts."""
    marks = [0, *cuts, len(graph.operators)]
    functions = tuple(
        FunctionPlan(
            name=f"stage-{i + 1}",
            stage=i,
            first=marks[i],
            last=marks[i + 1],
            kind=kind,
            memory_mb=memory_mb,
            vcpu=1.0,
            threads=1,
            layout="plain",
            peak_mb=64.0,
            floor_mb=floor_mb,
            run_ms=1.0,
            cost_usd=0.0,
            package_mb=1.0,
            why="a test",
        )
        for i in range(len(marks) - 1)
    )
    shapes = {name: graph.tensors[name].shape for name in graph.inputs}
    return Plan(
        model=ModelRef(str(graph.source), graph.name, graph.hash, shapes, graph.outputs),
        machine=this_machine(),
        platform="openfaas",
        planner="by-hand",
        slo_ms=None,
        batch=1,
        shards=(),
        at_once=(1,) * len(functions),
        functions=functions,
        hops=tuple(_hop(graph, position, codec) for position in cuts) if codec != "none" else (),
        predicted=Predicted(1.0, float(memory_mb * len(functions)), 0.0),
        slack=(),
        losers=(),
        why="a test",
    )


def _hop(graph: Graph, position: int, codec: str) -> Hop:
    tensors, side = crossing(graph, position)
    return Hop(
        position=position,
        tensors=tensors,
        side=side,
        bytes=1,
        encoded_bytes=1,
        channel="shared-memory",
        codec=codec,
        time_ms=0.0,
        cost_usd=0.0,
        why="a test",
    )


def package(
    graph: Graph,
    directory: Path,
    cuts: Sequence[int] = (),
    *,
    kind: Kind = "packaged",
    memory_mb: int = 128,
    floor_mb: float = 0.0,
    codec: str = "none",
) -> Path:
    """The package of a plan made by hand; its directory."""
    build(plan_of(graph, cuts, kind=kind, memory_mb=memory_mb, floor_mb=floor_mb, codec=codec), graph, directory)
    return directory


def whole(graph: Graph, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the whole model answers, unoptimised."""
    session = open_session(graph.skeleton, "reference", threads=1, prepack=False)
    return dict(zip(graph.outputs, session.run(list(graph.outputs), dict(inputs)), strict=True))


def assert_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Within 1e-4 of the output's range, same names, dtypes and shapes; other kinds of numbers exactly."""
    assert sorted(found) == sorted(expected)
    for name, right in expected.items():
        assert (found[name].dtype, found[name].shape) == (right.dtype, right.shape), name
        if right.dtype.kind == "f" and right.size:
            worst = float(np.max(np.abs(found[name].astype(np.float64) - right)))
            assert worst <= 1e-4 * (float(np.ptp(right)) or 1.0), name
        else:
            np.testing.assert_array_equal(found[name], right)


def slow_graph(directory: Path) -> Graph:
    """`rounds` times a product of 256 x 256 matrices (about a millisecond each), after a cheap first operator."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["carried", "w"], ["product"]),
            helper.make_node("Identity", ["go_in"], ["go_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", onnx.TensorProto.FLOAT, [BUSY_ROWS, BUSY_ROWS]),
        ],
        [
            helper.make_tensor_value_info("go_out", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("product", onnx.TensorProto.FLOAT, [BUSY_ROWS, BUSY_ROWS]),
        ],
    )
    rng = np.random.default_rng(0)
    orthogonal = np.linalg.qr(rng.standard_normal((BUSY_ROWS, BUSY_ROWS)))[0].astype(np.float32)
    nodes = [
        helper.make_node("Neg", ["x"], ["negative"], name="negate"),
        helper.make_node("Loop", ["rounds", "", "negative"], ["y"], name="loop", body=body),
    ]
    shape = (BUSY_ROWS, BUSY_ROWS)
    return graph_of(
        directory,
        "slow",
        nodes,
        {"x": ("float32", shape), "rounds": ("int64", ())},
        {"y": ("float32", shape)},
        {"w": orthogonal},
    )


def slow_request(rounds: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Keeps `slow_graph` busy for about `rounds` milliseconds."""
    x = np.random.default_rng(seed).standard_normal((BUSY_ROWS, BUSY_ROWS)).astype(np.float32)
    return {"x": x, "rounds": np.array(rounds, np.int64)}


def greedy_graph(directory: Path) -> Graph:
    """Allocates as many floats as its input says, on top of a first operator of its own."""
    nodes = [
        helper.make_node("Neg", ["x"], ["negative"], name="negate"),
        helper.make_node("ConstantOfShape", ["floats"], ["zeros"], name="allocate"),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], name="sum", keepdims=1),
        helper.make_node("Add", ["negative", "sum"], ["y"], name="add"),
    ]
    return graph_of(
        directory,
        "greedy",
        nodes,
        {"x": ("float32", (4,)), "floats": ("int64", (1,))},
        {"y": ("float32", (4,))},
    )


def greedy_request(megabytes: int) -> dict[str, np.ndarray]:
    """Lets `greedy_graph` allocate so much."""
    return {"x": np.arange(4, dtype=np.float32), "floats": np.array([megabytes << 18], np.int64)}


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def children(pid: int) -> list[int]:
    """The living children of a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        if is_running(int(path.name)) and _stat(int(path.name))[1] == str(pid):
            found.append(int(path.name))
    return sorted(found)


def cpu_ticks(pid: int) -> int:
    """User and system time of a process, in clock ticks; 0 when it is gone."""
    fields = _stat(pid)
    return int(fields[11]) + int(fields[12])


def _stat(pid: int) -> list[str]:
    """Fields of proc(5)'s stat from the third on; zeros when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["0"] * 50


def own_groups(limiter: Limiter) -> list[str]:
    """Groups of this process."""
    return [name for name in limiter.names() if name.startswith(f"lamella-{os.getpid()}-")]


def open_files() -> int:
    """How many descriptors this process holds."""
    return len(os.listdir("/proc/self/fd"))


def mapped_segments() -> int:
    """How many shared segments this process has mapped."""
    return Path("/proc/self/maps").read_text().count("/memfd:lamella")


def pids(deployment: Deployment) -> dict[str, int]:
    """The worker process of each function."""
    return {name: instance.pid for name, instance in deployment.instances.items()}
