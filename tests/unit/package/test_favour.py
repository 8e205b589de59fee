"""What a package favours decides the layouts, by times; answers stay, and what answers otherwise is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from lamella.cli.package import told
from lamella.deploy.local import Deployment
from lamella.errors import LamellaError
from lamella.graph.blocked import DOMAIN, block
from lamella.graph.extract import Extractor
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.package import Favour, build, verify
from lamella.package.build import held_bytes
from lamella.plan.document import Plan
from lamella.profile.layouts import FAVOURS, choose
from lamella.profile.products import ProductShape, ProductTimes, Timer, measure_product, product_times
from lamella.runtime.function import LOSSLESS, Function, Layout, Layouts
from tests.unit.graph.compose import answer, worst_share
from tests.unit.graph.onnx_models import model, node
from tests.unit.package.plans import limited_to, plan_of

needs_blocks = pytest.mark.skipif(block() == 0, reason="the runtime has no blocked layout on this CPU")
SOME = ProductShape(8, 128, 128, 1)


def taking(plain: float, prepacked: float, blocked: float) -> Timer:
    return lambda shape: ProductTimes(shape, plain, prepacked, blocked)


QUICKEST = taking(2.0, 1.0, 0.9)


@pytest.fixture(scope="module")
def bert(cache_dir: Path) -> Graph:
    return import_model("zoo:bert-tiny")


def prepacking(plan: Plan) -> Plan:
    functions = (msgspec.structs.replace(f, layout="prepacked") for f in plan.functions)
    return msgspec.structs.replace(plan, functions=tuple(functions))


def function(directory: Path, name: str = "stage-1") -> Function:
    return msgspec.json.decode((directory / name / "function.json").read_bytes(), type=Function)


def layouts(directory: Path, name: str = "stage-1") -> Layouts:
    found = function(directory, name).layouts
    assert found
    return found


def externals(path: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if tensor.external_data:
            entry = {e.key: e.value for e in tensor.external_data}
            found[tensor.name] = int(entry["offset"]), int(entry["length"])
    return found


def convolutions(directory: Path, name: str = "stage-1") -> int:
    nodes = onnx.load(directory / name / "graph.onnx", load_external_data=False).graph.node
    return Counter((n.domain, n.op_type) for n in nodes)[DOMAIN, "Conv"]


times = st.builds(ProductTimes, st.just(SOME), st.floats(0.5, 2), st.floats(0.5, 2), st.floats(0.5, 2))


@given(favour=st.sampled_from(FAVOURS), seen=st.lists(times, min_size=1, max_size=3), planned=st.sampled_from(LOSSLESS))
def test_only_steady_prepacks_and_only_where_the_plan_does_and_nothing_is_slow(
    favour: Favour, seen: list[ProductTimes], planned: Layout
) -> None:
    layout = choose(favour, seen, planned=planned)
    if layout == "prepacked":
        assert favour == "steady"
        assert planned == "prepacked"
    if layout == "blocked":
        other: Layout = "prepacked" if favour == "steady" and planned == "prepacked" else "plain"
        assert all(t.blocked_ms <= 1.05 * t.of(other) for t in seen)
    else:
        assert any(t.blocked_ms > t.of(layout) for t in seen)


@needs_blocks
@pytest.mark.parametrize("favour", FAVOURS)
@pytest.mark.parametrize("cuts", [[], [12]])
def test_a_transformer_answers_the_same_through_package_and_run(
    favour: Favour, cuts: list[int], bert: Graph, tmp_path: Path
) -> None:
    plan = prepacking(plan_of(bert, cuts, batch=2))
    build(plan, bert, tmp_path / "p", favour=favour, timer=QUICKEST)
    verify(tmp_path / "p")
    names = [f.name for f in plan.functions]
    assert sum(layouts(tmp_path / "p", n).blocked for n in names) == 12
    assert sum(convolutions(tmp_path / "p", n) for n in names) == 12
    assert all(function(tmp_path / "p", n).prepack == (favour == "steady") for n in names)
    with Deployment(tmp_path / "p") as deployment:
        for batch in (1, 2, 5):
            feeds = request(bert, np.random.default_rng(batch), batch)
            whole = answer(Extractor(bert), [], feeds, tmp_path / f"slices-{batch}")
            assert worst_share(deployment.infer(feeds).outputs, whole) < 1e-4


@needs_blocks
def test_without_a_favour_a_package_is_what_it_was(bert: Graph, tmp_path: Path) -> None:
    build(plan_of(bert, []), bert, tmp_path / "p")
    assert function(tmp_path / "p").layouts is None
    assert convolutions(tmp_path / "p") == 0


def laid_out(plan: Plan, *ways: Layout) -> Plan:
    functions = (msgspec.structs.replace(f, layout=way) for f, way in zip(plan.functions, ways, strict=True))
    return msgspec.structs.replace(plan, functions=tuple(functions))


@needs_blocks
def test_a_function_that_is_planned_blocked_is_what_favouring_a_start_makes_of_it(bert: Graph, tmp_path: Path) -> None:
    build(laid_out(plan_of(bert, []), "blocked"), bert, tmp_path / "planned", timer=QUICKEST)
    build(prepacking(plan_of(bert, [])), bert, tmp_path / "favoured", favour="start", timer=QUICKEST)
    for file in ("graph.onnx", "weights.bin", "portable.onnx"):
        planned, favoured = (tmp_path / way / "stage-1" / file for way in ("planned", "favoured"))
        assert planned.read_bytes() == favoured.read_bytes()
    found = layouts(tmp_path / "planned")
    assert (found.favour, found.blocked, found.refused) == ("", 12, "")
    assert not function(tmp_path / "planned").prepack


@needs_blocks
def test_each_function_has_the_layout_of_the_plan(bert: Graph, tmp_path: Path) -> None:
    plan = laid_out(plan_of(bert, [12, 40]), "prepacked", "blocked", "plain")
    build(plan, bert, tmp_path / "p", timer=QUICKEST)
    verify(tmp_path / "p")
    names = [f.name for f in plan.functions]
    made = [function(tmp_path / "p", n) for n in names]
    assert [f.prepack for f in made] == [True, False, False]
    assert [bool(f.layouts) for f in made] == [False, True, False]
    assert [convolutions(tmp_path / "p", n) > 0 for n in names] == [False, True, False]
    assert layouts(tmp_path / "p", "stage-2").refused == ""  # so it was asked with what the first one gives
    with Deployment(tmp_path / "p") as deployment:
        feeds = request(bert, np.random.default_rng(3), 2)
        whole = answer(Extractor(bert), [], feeds, tmp_path / "slices")
        assert worst_share(deployment.infer(feeds).outputs, whole) < 1e-4


@needs_blocks
def test_a_planned_layout_that_answers_otherwise_is_refused_and_ships_plain(
    bert: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamella.package.favour.block", lambda: 24 - block())
    made = build(laid_out(plan_of(bert, []), "blocked"), bert, tmp_path / "p", timer=QUICKEST)
    found = layouts(tmp_path / "p")
    assert made.refused == {"stage-1": found.refused}
    assert "blocked as planned: refused, plain instead: answers differ by" in told(found)
    assert not function(tmp_path / "p").prepack
    assert convolutions(tmp_path / "p") == 0


def test_a_cpu_without_blocks_ships_plain_and_says_so(
    bert: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamella.package.favour.block", lambda: 0)
    made = build(laid_out(plan_of(bert, []), "blocked"), bert, tmp_path / "p", timer=QUICKEST)
    assert not function(tmp_path / "p").prepack
    assert convolutions(tmp_path / "p") == 0
    why = "the runtime has no blocked layout on this CPU"
    assert made.refused == {"stage-1": why}
    assert told(layouts(tmp_path / "p")) == f"blocked as planned: refused, plain instead: {why}"


@needs_blocks
@pytest.mark.parametrize(
    ("favour", "timer", "kinds"),
    [
        ("start", taking(1.0, 1.0, 1.04), (12, 0, 0)),
        ("start", taking(1.0, 1.0, 1.06), (0, 0, 12)),
        ("start", taking(1.5, 1.0, 1.4), (12, 0, 0)),
        ("steady", taking(1.0, 1.0, 1.04), (0, 12, 0)),
        ("steady", taking(1.5, 1.0, 1.0), (12, 0, 0)),
        ("memory", taking(1.2, 1.0, 1.3), (0, 0, 12)),
    ],
)
def test_times_decide(favour: Favour, timer: Timer, kinds: tuple[int, int, int], bert: Graph, tmp_path: Path) -> None:
    build(prepacking(plan_of(bert, [])), bert, tmp_path / "p", favour=favour, timer=timer)
    found = layouts(tmp_path / "p")
    assert (found.blocked, found.prepacked, found.plain) == kinds
    assert convolutions(tmp_path / "p") == found.blocked


@needs_blocks
def test_products_are_timed_at_one_request_and_at_the_plans_batch(bert: Graph, tmp_path: Path) -> None:
    asked: set[ProductShape] = set()

    def timer(shape: ProductShape) -> ProductTimes:
        asked.add(shape)
        return QUICKEST(shape)

    build(plan_of(bert, [], batch=4), bert, tmp_path / "p", favour="start", timer=timer)
    sizes = [(128, 128), (128, 512), (512, 128)]
    assert asked == {ProductShape(rows, *size, 1) for rows in (32, 128) for size in sizes}


@needs_blocks
def test_many_rows_are_timed_as_512(bert: Graph, tmp_path: Path) -> None:
    asked: set[int] = set()

    def timer(shape: ProductShape) -> ProductTimes:
        asked.add(shape.rows)
        return QUICKEST(shape)

    build(plan_of(bert, [], batch=100), bert, tmp_path / "p", favour="start", timer=timer)
    assert asked == {32, 512}


@needs_blocks
def test_a_wrong_block_answers_otherwise_and_is_refused_with_the_reason(
    bert: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamella.package.favour.block", lambda: 24 - block())  # 8 for 16, 16 for 8
    plan = prepacking(plan_of(bert, [12]))
    build(plan, bert, tmp_path / "p", favour="start", timer=QUICKEST)
    build(plan, bert, tmp_path / "plain")
    for name in ("stage-1", "stage-2"):
        assert "answers differ by" in layouts(tmp_path / "p", name).refused
        assert function(tmp_path / "p", name).prepack
        for file in ("graph.onnx", "weights.bin", "portable.onnx"):
            made = (tmp_path / "p" / name / file).read_bytes()
            assert made == (tmp_path / "plain" / name / file).read_bytes()


@needs_blocks
def test_what_is_read_ahead_ends_where_the_portable_graphs_own_weights_begin(bert: Graph, tmp_path: Path) -> None:
    build(plan_of(bert, []), bert, tmp_path / "p", favour="start", timer=QUICKEST)
    place, end = tmp_path / "p" / "stage-1", function(tmp_path / "p").read_bytes
    best, portable = ({*externals(place / f).values()} for f in ("graph.onnx", "portable.onnx"))
    assert max(offset + length for offset, length in best) == end
    own = portable - best
    assert len(own) == 12
    assert min(offset for offset, _ in own) >= end
    assert len(best & portable) > 0


@needs_blocks
def test_what_is_favoured_goes_before_a_package_is_beyond_its_limit(bert: Graph, tmp_path: Path) -> None:
    plan = plan_of(bert, [])
    build(plan, bert, tmp_path / "blocked", favour="start", timer=QUICKEST)
    build(plan, bert, tmp_path / "plain")
    most, least = (held_bytes(tmp_path / name / "stage-1") for name in ("blocked", "plain"))
    assert most > 1.3 * least
    limited = limited_to(plan, most - 1)  # too small by a byte
    build(limited, bert, tmp_path / "p", favour="start", timer=QUICKEST)
    assert "with its graph for any CPU, the package limit is" in layouts(tmp_path / "p").refused
    assert convolutions(tmp_path / "p") == 0
    assert function(tmp_path / "p").portable
    verify(tmp_path / "p")
    build(limited, bert, tmp_path / "here", favour="start", timer=QUICKEST, portable=False)
    assert layouts(tmp_path / "here").refused == ""
    assert convolutions(tmp_path / "here") == 12
    assert held_bytes(tmp_path / "here" / "stage-1") < 1.02 * least


@needs_blocks
def test_a_blocked_function_holds_no_copy_of_its_weights(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {f"w{k}": rng.standard_normal((1024, 1024), np.float32) / 32 for k in range(4)}
    nodes = [node("MatMul", [f"x{k}" if k else "x", f"w{k}"], [f"x{k + 1}" if k < 3 else "y"]) for k in range(4)]
    proto = model(nodes, {"x": ("N", 1024)}, {"y": ("N", 1024)}, weights)
    onnx.save(proto, tmp_path / "m.onnx")
    graph = import_model(str(tmp_path / "m.onnx"), {"x": ("N", 1024)})
    plan = prepacking(plan_of(graph, []))
    build(plan, graph, tmp_path / "prepacked")
    build(plan, graph, tmp_path / "blocked", favour="start", timer=QUICKEST)
    private = {}
    for name in ("prepacked", "blocked"):
        with Deployment(tmp_path / name) as deployment:
            deployment.infer(request(graph, rng))
            report = deployment.instances["stage-1"].report()
            private[name] = report.load_anonymous_mb - report.floor_anonymous_mb
    assert private["prepacked"] - private["blocked"] > 12  # of 16 MB of weights


@needs_blocks
def test_a_model_that_refuses_the_requests_is_left_as_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has said how many rows its table has."""
    rng = np.random.default_rng(0)
    weights = {"t": rng.standard_normal((2, 256), np.float32), "w": rng.standard_normal((256, 256), np.float32)}
    nodes = [node("Gather", ["t", "i"], ["g"]), node("MatMul", ["g", "w"], ["y"])]
    proto = model(nodes, {"i": ("N",)}, {"y": ("N", 256)}, weights, {"i": TensorProto.INT64})
    onnx.save(proto, tmp_path / "m.onnx")
    graph = import_model(str(tmp_path / "m.onnx"), {"i": ("N",)})
    monkeypatch.setattr("lamella.package.favour.request", lambda graph, rng, size: {"i": np.full(size, 9)})
    build(prepacking(plan_of(graph, [1])), graph, tmp_path / "p", favour="start", timer=QUICKEST)
    assert layouts(tmp_path / "p", "stage-1").refused == ""  # nothing was blocked in it
    assert "refuses a random request" in layouts(tmp_path / "p", "stage-2").refused
    assert function(tmp_path / "p", "stage-2").prepack


@needs_blocks
def test_memory_never_maps_a_weight_twice(cache_dir: Path, tmp_path: Path) -> None:
    graph = import_model("zoo:gpt2-tiny")
    for favour in ("start", "memory"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lamella.graph.products.SMALL_BYTES", 0)
            build(plan_of(graph, []), graph, tmp_path / favour, favour=favour, timer=QUICKEST)
    assert layouts(tmp_path / "start").blocked == 13
    saved = layouts(tmp_path / "memory")
    assert (saved.blocked, saved.left) == (12, {"weights that others read too": 1})
    assert function(tmp_path / "memory").read_bytes < function(tmp_path / "start").read_bytes


@needs_blocks
@pytest.mark.parametrize("name", ["zoo:minilm-int8", "zoo:cnn-tiny", "zoo:lstm-tiny", "zoo:silero-vad"])
def test_models_of_other_kinds_answer_as_before(name: str, tmp_path: Path) -> None:
    try:
        graph = import_model(name)
    except LamellaError as error:
        pytest.skip(error.message)
    build(plan_of(graph, []), graph, tmp_path / "p", favour="start", timer=QUICKEST)
    assert layouts(tmp_path / "p").refused == ""
    feeds = request(graph, np.random.default_rng(1))
    with Deployment(tmp_path / "p") as deployment:
        whole = answer(Extractor(graph), [], feeds, tmp_path / "slices")
        assert worst_share(deployment.infer(feeds).outputs, whole) < 1e-4


def half() -> ModelProto:
    weight = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float16)
    kinds = {"x": TensorProto.FLOAT16, "y": TensorProto.FLOAT16}
    return model([node("MatMul", ["x", "w"], ["y"])], {"x": ("N", 256)}, {"y": ("N", 256)}, {"w": weight}, kinds)


def four_bits() -> ModelProto:
    rng = np.random.default_rng(0)
    nodes = [
        node("DequantizeLinear", ["q", "scale"], ["w"], axis=0, block_size=32),
        node("MatMul", ["x", "w"], ["y"]),
    ]
    made = model(nodes, {"x": ("N", 256)}, {"y": ("N", 256)}, {"scale": rng.random((8, 256), np.float32)})
    made.graph.initializer.append(
        helper.make_tensor("q", TensorProto.INT4, (256, 256), rng.integers(-8, 8, 256 * 256).tolist())
    )
    made.opset_import[0].version = 21
    return made


@needs_blocks
@pytest.mark.parametrize("made", [half, four_bits])
def test_models_of_other_types_answer_as_before(made: Callable[[], ModelProto], tmp_path: Path) -> None:
    onnx.save(made(), tmp_path / "m.onnx")
    graph = import_model(str(tmp_path / "m.onnx"), {"x": ("N", 256)})
    build(plan_of(graph, []), graph, tmp_path / "p", favour="start", timer=QUICKEST)
    assert layouts(tmp_path / "p").refused == ""
    feeds = request(graph, np.random.default_rng(1), 3)
    with Deployment(tmp_path / "p") as deployment:
        whole = answer(Extractor(graph), [], feeds, tmp_path / "slices")
        assert worst_share(deployment.infer(feeds).outputs, whole) < (2e-3 if made is half else 1e-4)


@needs_blocks
def test_times_are_measured_once_per_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path))
    shape = ProductShape(2, 256, 256, 1)
    found = product_times(shape)
    assert min(found.plain_ms, found.prepacked_ms, found.blocked_ms) > 0
    assert product_times(shape) == found != measure_product(shape)
    assert product_times(ProductShape(1, 256, 256, 1)) != found
    (table,) = (tmp_path / "products").iterdir()
    assert [t["shape"]["rows"] for t in json.loads(table.read_text())["times"]] == [1, 2]
