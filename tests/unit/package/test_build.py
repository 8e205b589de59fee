"""A package: whole or not at all, verified to the byte, and answering as the model does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from lamella import documents
from lamella.errors import LamellaError, LawBroken, PackageError, PlatformLimit, StorageError
from lamella.graph.extract import Extractor
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.graph.weights import alignment
from lamella.package import Manifest, build, read_sealed, seal, verify
from lamella.package.build import MANIFEST_BYTES, held_bytes, room_bytes
from lamella.plan.document import Plan
from lamella.platforms import platform
from lamella.runtime.function import Function, Kind, open_session
from lamella.scratch import scratch
from lamella.units import MB
from tests.unit.graph.compose import Tensors, answer, step, worst_share
from tests.unit.package.plans import limited_to, plan_of
from tests.unit.plan.test_make import make

FILES = ("function.json", "graph.onnx", "portable.onnx", "weights.bin")


def function(package: Path, name: str) -> Function:
    return documents.read(package / name / "function.json", Function, made_by="")


def externals(path: Path) -> dict[str, tuple[int, int]]:
    """Offset and length of every weight outside the graph, by name."""
    found = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            entry = {e.key: e.value for e in tensor.external_data}
            assert entry["location"] == "weights.bin"
            found[tensor.name] = (int(entry["offset"]), int(entry["length"]))
    return found


def chain(package: Path, plan: Plan, graph: Graph, feeds: Tensors, kind: Kind) -> Tensors:
    tensors = dict(feeds)
    for f in plan.functions:
        told = function(package, f.name)
        file = told.portable if kind == "portable" else told.graph
        step(graph, f.first, f.last, open_session(package / f.name / file, kind, threads=1, prepack=False), tensors)
    return {n: tensors[n] for n in graph.outputs}


# --------------------------------------------------------------------------------------------------------- contents


def test_every_function_has_its_files_and_nothing_else(pristine: Path, plan: Plan) -> None:
    assert sorted(p.name for p in pristine.iterdir()) == [
        "manifest.json",
        "manifest.sha256",
        "plan.json",
        *(f.name for f in plan.functions),
    ]
    for f in plan.functions:
        assert sorted(p.name for p in (pristine / f.name).iterdir()) == list(FILES)


def test_the_manifest_says_what_was_built_from_what(pristine: Path, plan: Plan, cnn: Graph) -> None:
    manifest, read = verify(pristine)
    assert read == plan
    assert (manifest.model, manifest.model_hash, manifest.planner) == (cnn.name, cnn.hash, "by hand")
    assert manifest.functions == ("stage-1", "stage-2", "stage-3")


def test_a_function_says_what_it_takes_and_gives(pristine: Path, plan: Plan, cnn: Graph) -> None:
    for f in plan.functions:
        told = function(pristine, f.name)
        takes, gives = cnn.border(f.first, f.last)
        assert tuple(t.name for t in told.inputs) == takes
        assert tuple(t.name for t in told.outputs) == gives
        assert all(t.shape == cnn.tensors[t.name].shape for t in (*told.inputs, *told.outputs))
        assert set(told.sha256) == {"graph.onnx", "portable.onnx", "weights.bin"}


def test_weights_are_aligned_for_mapping_and_inside_the_file(pristine: Path, plan: Plan) -> None:
    for f in plan.functions:
        size = (pristine / f.name / "weights.bin").stat().st_size
        assert size % 4096 == 0
        for file in ("graph.onnx", "portable.onnx"):
            for offset, length in externals(pristine / f.name / file).values():
                assert offset % alignment(length) == 0
                assert offset + length <= size


@pytest.mark.parametrize("name", ["zoo:cnn-tiny", "zoo:lstm-tiny"])
def test_equal_tensors_are_stored_once_for_both_graphs(name: str, tmp_path: Path) -> None:
    graph = import_model(name)
    build(plan_of(graph, []), graph, tmp_path / "p")
    place = tmp_path / "p" / "stage-1"
    data = (place / "weights.bin").read_bytes()
    ranges = {*externals(place / "graph.onnx").values(), *externals(place / "portable.onnx").values()}
    stored = Counter(data[offset : offset + length] for offset, length in ranges)
    assert max(stored.values()) == 1
    both = set(externals(place / "graph.onnx").values()) & set(externals(place / "portable.onnx").values())
    assert both or name == "zoo:cnn-tiny"  # a CNN's layouts differ; an LSTM's do not


def test_the_same_plan_gives_the_same_bytes(pristine: Path, plan: Plan, cnn: Graph, tmp_path: Path) -> None:
    again = build(plan, cnn, tmp_path / "again")
    assert again == verify(pristine)[0]


# ----------------------------------------------------------------------------------------------------------- limits


def test_the_graph_for_any_cpu_can_be_left_out_with_the_weights_that_only_it_reads(
    pristine: Path, plan: Plan, cnn: Graph, tmp_path: Path
) -> None:
    build(plan, cnn, tmp_path / "here", portable=False)
    verify(tmp_path / "here")
    for f in plan.functions:
        place, whole = tmp_path / "here" / f.name, pristine / f.name
        assert sorted(p.name for p in place.iterdir()) == ["function.json", "graph.onnx", "weights.bin"]
        assert function(tmp_path / "here", f.name).portable == ""
        assert (place / "graph.onnx").read_bytes() == (whole / "graph.onnx").read_bytes()
        data = (place / "weights.bin").read_bytes()
        assert (whole / "weights.bin").read_bytes().startswith(data)
    assert held_bytes(tmp_path / "here" / "stage-2") < 0.7 * held_bytes(pristine / "stage-2")


@given(st.floats(0, 1))
@settings(max_examples=15)
def test_a_package_is_never_beyond_the_plans_limit(cnn: Graph, share: float) -> None:
    """It has its graph for any CPU where there is room, none where there is not, or is refused with the numbers."""
    with scratch("limits") as place:
        build(plan_of(cnn, []), cnn, place / "whole")
        build(plan_of(cnn, []), cnn, place / "here", portable=False)
        whole, here = (held_bytes(place / name / "stage-1") for name in ("whole", "here"))
        limit = int(here * 0.9 + share * (whole * 1.05 - here * 0.9))
        limited = limited_to(plan_of(cnn, []), limit)
        if limit < here:
            with pytest.raises(PlatformLimit, match=f"is {here / MB:.1f} MB, the limit {limit / MB:g};"):
                build(limited, cnn, place / "p")
            assert not (place / "p").exists()
            return
        build(limited, cnn, place / "p")
        fits = whole <= limit - MANIFEST_BYTES
        assert held_bytes(place / "p" / "stage-1") == (whole if fits else here) <= limit
        verify(place / "p")
        for name in ("graph.onnx", "weights.bin"):
            expected = (place / ("whole" if fits else "here") / "stage-1" / name).read_bytes()
            assert (place / "p" / "stage-1" / name).read_bytes() == expected


def test_a_plain_file_is_held_to_the_limit_too(cnn: Graph, tmp_path: Path) -> None:
    with pytest.raises(PlatformLimit, match="law 5: the package of stage-1 is"):
        build(limited_to(plan_of(cnn, [], "plain"), cnn.source.stat().st_size), cnn, tmp_path / "p")


def test_the_limit_is_what_planning_has_held_the_plan_against() -> None:
    assert room_bytes(make("single")) == platform("openfaas").limits.package_mb.value * MB
    assert room_bytes(msgspec.structs.replace(make("single"), slack=())) == float("inf")


# ---------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", ["packaged", "portable"])
def test_the_functions_together_answer_as_the_whole_model(
    kind: Kind, batch: int, pristine: Path, plan: Plan, cnn: Graph, tmp_path: Path
) -> None:
    feeds = request(cnn, np.random.default_rng(7), batch)
    whole = answer(Extractor(cnn), [], feeds, tmp_path)
    found = chain(pristine, plan, cnn, feeds, kind)
    assert found[cnn.outputs[0]].shape == (batch, 10)
    assert worst_share(found, whole) < 1e-4


def test_opening_a_packaged_graph_changes_nothing_in_it(pristine: Path, plan: Plan, tmp_path: Path) -> None:
    import onnxruntime as ort

    for f in plan.functions:
        path = pristine / f.name / "graph.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.optimized_model_filepath = str(tmp_path / f"{f.name}.onnx")
        options.log_severity_level = 4
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        before = onnx.load(path, load_external_data=False).graph.node
        after = onnx.load(tmp_path / f"{f.name}.onnx", load_external_data=False).graph.node
        assert sorted(n.op_type for n in after) == sorted(n.op_type for n in before)
        fewer = onnx.load(pristine / f.name / "portable.onnx", load_external_data=False).graph.node
        assert len(before) <= len(fewer) + 2  # fused, plus what changes the layout at the borders


@pytest.mark.parametrize("kind", ["plain", "default"])
def test_a_plain_function_ships_the_users_own_file(kind: Kind, cnn: Graph, tmp_path: Path) -> None:
    build(plan_of(cnn, [], kind), cnn, tmp_path / "p")
    assert (tmp_path / "p" / "stage-1" / "model.onnx").read_bytes() == cnn.source.read_bytes()
    assert function(tmp_path / "p", "stage-1").weights == ""
    verify(tmp_path / "p")


def test_a_model_that_is_one_subgraph_ships_whole_and_answers_the_same(tmp_path: Path) -> None:
    try:
        graph = import_model("zoo:silero-vad")
    except LamellaError as error:
        pytest.skip(error.message)
    build(plan_of(graph, []), graph, tmp_path / "p")
    feeds = request(graph, np.random.default_rng(0))
    whole = answer(Extractor(graph), [], feeds, tmp_path / "slices")
    for kind in ("packaged", "portable"):
        assert worst_share(chain(tmp_path / "p", plan_of(graph, []), graph, feeds, kind), whole) < 1e-4


# ----------------------------------------------------------------------------------------------------------- damage


PACKAGED = ("manifest.json", "manifest.sha256", "plan.json", *(f"stage-{k}/{name}" for k in (1, 3) for name in FILES))


@pytest.fixture(scope="session")
def fragile(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy for tests that put back what they damage."""
    return Path(shutil.copytree(pristine, tmp_path_factory.mktemp("fragile") / "package"))


@pytest.mark.parametrize("file", PACKAGED)
@settings(max_examples=20)
@given(place=st.floats(0, 1), flip=st.integers(1, 255))
@example(place=0, flip=1)
@example(place=1, flip=0x2A)  # the last byte, a line feed, becomes a space: the same JSON
def test_a_changed_byte_anywhere_is_one_error_that_names_the_file_and_the_next_command(
    file: str, place: float, flip: int, fragile: Path
) -> None:
    whole = (fragile / file).read_bytes()
    damaged = bytearray(whole)
    damaged[int(place * (len(whole) - 1))] ^= flip
    (fragile / file).write_bytes(damaged)
    try:
        with pytest.raises(PackageError, match=re.escape(file)) as caught:
            verify(fragile)
    finally:
        (fragile / file).write_bytes(whole)
    assert "changed since it was packaged" in caught.value.message
    assert caught.value.try_ == f"lamella package plan.json -o {fragile}"
    verify(fragile)


@pytest.mark.parametrize("file", PACKAGED)
@pytest.mark.parametrize("length", [0, 1, -1])
def test_a_file_cut_short_is_named(file: str, length: int, package: Path) -> None:
    (package / file).write_bytes((package / file).read_bytes()[:length])
    with pytest.raises(PackageError, match=f"{re.escape(file)} changed since it was packaged"):
        verify(package)


@pytest.mark.parametrize("file", PACKAGED)
def test_a_missing_file_is_named(file: str, package: Path) -> None:
    (package / file).unlink()
    with pytest.raises(PackageError, match=f"{file} is missing from the package"):
        verify(package)


def test_a_file_that_cannot_be_read_is_named(package: Path) -> None:
    (package / "stage-2" / "weights.bin").unlink()
    (package / "stage-2" / "weights.bin").mkdir()
    with pytest.raises(PackageError, match=r"stage-2/weights\.bin cannot be read: Is a directory"):
        verify(package)


def test_the_plan_is_not_read_before_it_is_checked(package: Path) -> None:
    (package / "plan.json").write_text("{}")
    with pytest.raises(PackageError, match=r"^plan\.json changed since it was packaged"):
        read_sealed(package)


def test_other_programs_can_check_the_manifest(package: Path) -> None:
    if not shutil.which("sha256sum"):
        pytest.skip("no sha256sum here")
    check = ["sha256sum", "--check", "--strict", "manifest.sha256"]
    assert subprocess.run(check, cwd=package, capture_output=True).returncode == 0
    with (package / "manifest.json").open("a") as file:
        file.write(" ")
    assert subprocess.run(check, cwd=package, capture_output=True).returncode == 1


@pytest.mark.parametrize("text", ["", "{}", "no json", '{"lamella": 2}'])
@pytest.mark.parametrize("sealed", [False, True])
def test_a_manifest_that_is_none_is_a_damaged_package(text: str, sealed: bool, package: Path) -> None:
    (package / "manifest.json").write_text(text)
    if sealed:
        seal(package)
    with pytest.raises(PackageError, match=r"manifest\.json"):
        verify(package)


@pytest.mark.parametrize("file", ["manifest.json", "manifest.sha256", "plan.json"])
@pytest.mark.parametrize("damage", [b"", None], ids=["emptied", "removed"])
def test_a_damaged_package_may_be_replaced_as_its_error_says(
    file: str, damage: bytes | None, package: Path, plan: Plan, cnn: Graph
) -> None:
    (package / file).unlink()
    if damage is not None:
        (package / file).write_bytes(damage)
    build(plan, cnn, package)
    verify(package)


def test_a_directory_without_a_manifest_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="holds no package"):
        verify(tmp_path)


# --------------------------------------------------------------------------------------------- whole or not at all


def test_a_plan_for_another_model_breaks_the_law(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(LawBroken, match="the plan is for model cnn-tiny"):
        build(plan, import_model("zoo:lstm-tiny"), tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["notes.txt", "manifest.json"])
def test_a_directory_with_something_else_in_it_is_left_alone(name: str, plan: Plan, cnn: Graph, tmp_path: Path) -> None:
    target = tmp_path / "p"
    target.mkdir()
    (target / name).write_text('{"name": "a web extension"}')
    with pytest.raises(PackageError, match="is not empty and holds no package"):
        build(plan, cnn, target)
    assert [p.name for p in target.iterdir()] == [name]
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


def test_a_file_is_not_overwritten_by_a_package(plan: Plan, cnn: Graph, tmp_path: Path) -> None:
    (tmp_path / "p").write_text("mine")
    with pytest.raises(PackageError, match="is a file"):
        build(plan, cnn, tmp_path / "p")
    assert (tmp_path / "p").read_text() == "mine"


def test_a_directory_below_a_file_is_a_storage_error(plan: Plan, cnn: Graph, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError):
        build(plan, cnn, tmp_path / "file" / "p")


def test_an_older_package_is_replaced(package: Path, cnn: Graph) -> None:
    build(plan_of(cnn, [5]), cnn, package)
    assert verify(package)[0].functions == ("stage-1", "stage-2")
    assert not (package / "stage-3").exists()
    assert [p.name for p in package.parent.iterdir()] == ["package"]


def test_an_empty_directory_is_filled_even_when_it_is_the_current_one(
    plan: Plan, cnn: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    build(plan, cnn, Path("."))
    verify(tmp_path / "here")
    assert os.listdir(tmp_path) == ["here"]


def stop_at(name: str) -> Callable[[float, str], None]:
    def progress(share: float, what: str) -> None:
        if what == name:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("name", ["stage-1", "stage-3"])
def test_an_interrupted_build_leaves_nothing_behind(name: str, plan: Plan, cnn: Graph, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(plan, cnn, tmp_path / "p", stop_at(name))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_build_keeps_the_older_package(package: Path, plan: Plan, cnn: Graph) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(plan_of(cnn, [5]), cnn, package, stop_at("stage-2"))
    assert verify(package)[1] == plan
    assert [p.name for p in package.parent.iterdir()] == ["package"]


def test_a_build_that_fails_at_the_last_step_keeps_the_older_package(
    package: Path, plan: Plan, cnn: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(one: Path, other: Path) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lamella.package.place.exchange", refuse)
    with pytest.raises(StorageError, match="No space left"):
        build(plan_of(cnn, [5]), cnn, package)
    assert verify(package)[1] == plan
    assert [p.name for p in package.parent.iterdir()] == ["package"]


def test_progress_is_the_share_of_functions_that_are_done(plan: Plan, cnn: Graph, tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    build(plan, cnn, tmp_path / "p", lambda share, what: told.append((share, what)))
    assert told == [(0, "stage-1"), (1 / 3, "stage-2"), (2 / 3, "stage-3")]


def test_a_manifest_survives_being_written_and_read(pristine: Path) -> None:
    manifest, _ = verify(pristine)
    assert msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest) == manifest
