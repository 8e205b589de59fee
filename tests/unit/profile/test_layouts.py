"""The third layout in a profile: which units it changes, and that the plan made of it ships what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from lamella.deploy.local import Deployment
from lamella.graph.blocked import block
from lamella.graph.extract import Extractor
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.optimise import optimise
from lamella.graph.requests import request
from lamella.package import build
from lamella.plan.make import make_plan
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request
from lamella.platforms import platform
from lamella.profile.document import Profile, Timing, UnitMemory, Variant
from lamella.profile.layouts import ProductSize, blocked_graph, starts_blocked
from lamella.profile.measure import measure
from lamella.profile.products import ProductShape, ProductTimes, unknown
from lamella.runtime.function import Function, Layout
from tests.unit.graph.compose import answer, worst_share

pytestmark = pytest.mark.skipif(block() == 0, reason="the runtime has no blocked layout on this CPU")


@dataclass
class Wide:
    """Times by which the products with 512 rows of weights run blocked and no others; remembers what was asked."""

    asked: list[ProductShape]

    def __call__(self, shape: ProductShape) -> ProductTimes:
        self.asked.append(shape)
        return ProductTimes(shape, 2.0, 1.0, 0.5 if shape.inner == 512 else 3.0)


def never(shape: ProductShape) -> ProductTimes:
    return ProductTimes(shape, 2.0, 1.0, 3.0)


@dataclass
class Measured:
    graph: Graph
    profile: Profile
    asked: list[ProductShape]
    steps: list[str]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    """bert-tiny, whose two layers end with a product of 512 rows of weights each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAMELLA_CACHE", str(tmp_path_factory.mktemp("cache")))
        graph, timer, steps = import_model("zoo:bert-tiny"), Wide([]), list[str]()
        profile = measure(graph, budget_s=0.2, timer=timer, progress=lambda share, what: steps.append(what))
        yield Measured(graph, profile, timer.asked, list(dict.fromkeys(steps)))


def by_layout(times: Sequence[Timing], threads: int = 1) -> dict[Layout, Timing]:
    return {t.variant.layout: t for t in times if t.variant.threads == threads}


def test_every_unit_is_measured_in_the_layouts_that_change_it(measured: Measured) -> None:
    assert measured.profile.variants == tuple(Variant(1, way, 1) for way in ("plain", "prepacked", "blocked"))
    wide = [u for u in measured.profile.units if not by_layout(u.times)["blocked"].shared]
    assert len(wide) == 2
    for unit in measured.profile.units:
        blocked = ["blocked"] * (unit in wide)
        assert [m.layout for m in unit.memory] == ["plain", "prepacked", *blocked]
        assert all(m.load_ms > 0 for m in unit.memory)


def test_a_unit_without_blocked_products_is_not_timed_twice(measured: Measured) -> None:
    for unit in measured.profile.units:
        times = by_layout(unit.times)
        same = times["blocked"].median_ms == times["plain"].median_ms
        assert same == times["blocked"].shared
        assert not times["plain"].shared
        assert not times["prepacked"].shared


def test_a_cut_is_shared_where_the_units_beside_it_are(measured: Measured) -> None:
    units = [by_layout(u.times)["blocked"].shared for u in measured.profile.units]
    for k, cut in enumerate(measured.profile.cuts):
        saving = {s.variant.layout: s for s in cut.savings}
        assert saving["blocked"].shared == (units[k] and units[k + 1])
        if saving["blocked"].shared:
            assert saving["blocked"].ms == saving["plain"].ms


def test_products_are_found_and_timed_before_the_units_are(measured: Measured) -> None:
    sizes = [(128, 128), (128, 512), (512, 128)]
    assert set(measured.asked) == {ProductShape(32, *size, 1) for size in sizes}
    told = [s for s in measured.steps if s.startswith("time of")]
    assert len(told) == 3
    assert "[32, 512] x [512, 128]" in " ".join(told)
    order = ["products that can run blocked", *told, "times, batch 1, 1 thread"]
    assert [s for s in measured.steps if s in order] == order


def test_a_span_where_nothing_is_quicker_blocked_is_not_written(measured: Measured, tmp_path: Path) -> None:
    extractor = Extractor(measured.graph)
    optimised = optimise(extractor.write(0, len(measured.graph.operators), tmp_path / "all"))
    path = tmp_path / "made" / "graph.onnx"
    assert not blocked_graph(measured.graph, optimised, 1, 1, never, path)
    assert not path.parent.exists()
    assert blocked_graph(measured.graph, optimised, 1, 1, Wide([]), path)
    assert {p.name for p in path.parent.iterdir()} == {"graph.onnx", "graph.bin"}


def test_a_product_of_unknown_rows_stays_plain() -> None:
    assert starts_blocked(ProductSize(("N", 32), 512, 128), 4, 1, Wide([]))
    assert not starts_blocked(ProductSize(("?",), 512, 128), 4, 1, Wide([]))


def test_both_one_request_and_the_batch_decide() -> None:
    def many(shape: ProductShape) -> ProductTimes:
        return ProductTimes(shape, 2.0, 1.0, 0.5 if shape.rows < 64 else 3.0)

    assert starts_blocked(ProductSize(("N", 32), 512, 128), 1, 1, many)
    assert not starts_blocked(ProductSize(("N", 32), 512, 128), 2, 1, many)


def test_what_is_in_the_table_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path))
    shape = ProductShape(1, 128, 128, 1)
    assert unknown([shape, shape]) == [shape]


def test_blocked_is_looked_at_only_where_it_changes_something(measured: Measured) -> None:
    model = SliceModel(measured.graph, measured.profile, platform("openfaas"))
    wide = [u for u, unit in enumerate(measured.profile.units) if not by_layout(unit.times)["blocked"].shared]
    for unit in range(model.units):
        assert ("blocked" in model.layouts_of(unit, unit + 1)) == (unit in wide)
        plain, blocked = (model.compute_ms(unit, unit + 1, layout=way, threads=1) for way in ("plain", "blocked"))
        assert plain == pytest.approx(blocked, rel=1e-9) or unit in wide  # differences of running sums
    assert "blocked" in model.layouts_of(0, model.units)


def quick_when(profile: Profile, layout: Layout) -> Profile:
    """The same measurements, but the units are ten times as quick, and half as large, in one layout."""

    def timing(t: Timing) -> Timing:
        return msgspec.structs.replace(t, median_ms=t.median_ms / 10) if t.variant.layout == layout else t

    def memory(m: UnitMemory) -> UnitMemory:
        return msgspec.structs.replace(m, live_mb=m.live_mb / 2) if m.layout == layout else m

    units = (
        msgspec.structs.replace(u, times=tuple(map(timing, u.times)), memory=tuple(map(memory, u.memory)))
        for u in profile.units
    )
    return msgspec.structs.replace(profile, units=tuple(units))


@pytest.mark.parametrize("planner", ["single", "mopar"])
def test_a_plan_is_blocked_where_that_is_quicker_and_ships_and_answers_so(
    planner: str, measured: Measured, tmp_path: Path
) -> None:
    profile = quick_when(measured.profile, "blocked")
    where, asked = platform("openfaas"), Request(shards=False)
    plan = make_plan(measured.graph, profile, where, planner, given="zoo:bert-tiny", request=asked)
    assert "blocked" in {f.layout for f in plan.functions}
    assert "weights blocked:" in plan.functions[0].why
    assert "the next best, p" in plan.functions[0].why
    build(plan, measured.graph, tmp_path / "p", timer=Wide([]))
    made = [function(tmp_path / "p" / f.name) for f in plan.functions]
    assert sum(f.layouts.blocked for f in made if f.layouts) == 2
    feeds = request(measured.graph, np.random.default_rng(1))
    with Deployment(tmp_path / "p") as deployment:
        whole = answer(Extractor(measured.graph), [], feeds, tmp_path / "slices")
        assert worst_share(deployment.infer(feeds).outputs, whole) < 1e-4


def function(directory: Path) -> Function:
    return msgspec.json.decode((directory / "function.json").read_bytes(), type=Function)
