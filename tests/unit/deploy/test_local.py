from __future__ import annotations

import inspect
import os
import shutil
from pathlib import Path
from typing import get_type_hints

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from lamella import documents
from lamella.deploy.local import Channel, Deployment, Serving, Size, check_inputs
from lamella.errors import InputRefused, ModelError, PackageError
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.limits import Limiter, detect
from lamella.package import Manifest, build, seal
from lamella.package.integrity import sha256
from lamella.runtime.chain import Chain
from lamella.runtime.function import Function, Kind, TensorSpec
from lamella.runtime.instance import State
from tests.faults import packages

CHANNELS: list[Channel] = ["shared-memory", "socket"]


@pytest.fixture(params=CHANNELS)
def channel(request: pytest.FixtureRequest) -> Channel:
    chosen: Channel = request.param
    return chosen


def test_the_chain_answers_what_the_whole_model_answers(
    three_slices: Path, cnn: Graph, rng: np.random.Generator, channel: Channel
) -> None:
    with Deployment(three_slices, channel=channel) as deployment:
        for _ in range(5):
            x = request(cnn, rng)
            answer = deployment.infer(x)
            packages.assert_same(answer.outputs, packages.whole(cnn, x))
            assert len(answer.stages) == 3
            assert all(stage.run_ms > 0 for stage in answer.stages)
            assert answer.latency_ms > sum(stage.run_ms for stage in answer.stages)


def test_batches_that_grow_and_shrink_stay_right(
    three_slices: Path, cnn: Graph, rng: np.random.Generator, channel: Channel
) -> None:
    with Deployment(three_slices, channel=channel) as deployment:
        first = packages.mapped_segments()
        for batch in [1, 5, 1, 5, 2, 7, 1, 7]:
            x = request(cnn, rng, batch)
            packages.assert_same(deployment.infer(x).outputs, packages.whole(cnn, x))
        if channel == "shared-memory":
            borders = {s.name for f in deployment.functions for s in (*f.inputs, *f.outputs)}
            assert packages.mapped_segments() - first == len(borders)  # those outgrown are freed


def test_a_repeated_request_gets_fresh_results_and_earlier_answers_stay_as_they_were(
    three_slices: Path, cnn: Graph, rng: np.random.Generator, channel: Channel
) -> None:
    with Deployment(three_slices, channel=channel) as deployment:
        inputs = [request(cnn, rng) for _ in range(4)]
        answers = [deployment.infer(x).outputs for x in inputs]
        for x, outputs in zip(inputs, answers, strict=True):
            packages.assert_same(outputs, packages.whole(cnn, x))
            assert outputs["probabilities"].flags.owndata


def test_a_request_is_not_changed_and_may_be_reused(three_slices: Path, cnn: Graph, rng: np.random.Generator) -> None:
    x = request(cnn, rng)
    kept = x["x"].copy()
    with Deployment(three_slices) as deployment:
        first = deployment.infer(x).outputs["probabilities"]
        x["x"][:] = 0
        second = deployment.infer(x).outputs["probabilities"]
        x["x"][:] = kept
        third = deployment.infer(x).outputs["probabilities"]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, third)


def test_the_layout_of_an_input_in_memory_does_not_matter(
    three_slices: Path, cnn: Graph, rng: np.random.Generator, channel: Channel
) -> None:
    x = request(cnn, rng, 2)["x"]
    layouts = {
        "strided": np.repeat(x, 2, axis=3)[..., ::2],
        "big-endian": x.astype(">f4"),
        "Fortran": np.asfortranarray(x),
        "read-only": np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),
    }
    whole = packages.whole(cnn, {"x": x})
    with Deployment(three_slices, channel=channel) as deployment:
        for other in layouts.values():
            deployment.infer({"x": np.zeros_like(x)})  # so that no answer of the layout before is found
            packages.assert_same(deployment.infer({"x": other}).outputs, whole)


def test_the_plain_and_default_sessions_of_baselines_answer_the_same(
    cnn: Graph, tmp_path: Path, rng: np.random.Generator
) -> None:
    x = request(cnn, rng, 2)
    kinds: tuple[Kind, ...] = ("plain", "default", "reference", "portable")
    for kind in kinds:
        made = packages.package(cnn, tmp_path / kind, kind=kind)
        with Deployment(made) as deployment:
            for _ in range(2):
                packages.assert_same(deployment.infer(x).outputs, packages.whole(cnn, x))


# ------------------------------------------------------------------------------------------------- life of instances


def test_the_first_request_pays_for_the_cold_start_and_the_second_does_not(
    three_slices: Path, cnn: Graph, rng: np.random.Generator
) -> None:
    with Deployment(three_slices) as deployment:
        x = request(cnn, rng)
        cold, warm = deployment.infer(x), deployment.infer(x)
        assert cold.cold_ms > 0
        assert cold.latency_ms > cold.cold_ms
        assert warm.cold_ms == 0


def test_start_tells_the_cold_start_of_what_it_started_and_nothing_the_second_time(three_slices: Path) -> None:
    with Deployment(three_slices) as deployment:
        assert sorted(deployment.start()) == ["stage-1", "stage-2", "stage-3"]
        assert deployment.start() == {}


def test_without_keep_alive_every_request_starts_its_instances_again(
    three_slices: Path, cnn: Graph, rng: np.random.Generator
) -> None:
    with Deployment(three_slices, keep_alive_s=0.0) as deployment:
        seen = []
        for _ in range(2):
            x = request(cnn, rng)
            answer = deployment.infer(x)
            packages.assert_same(answer.outputs, packages.whole(cnn, x))
            assert answer.cold_ms > 0
            seen += list(packages.pids(deployment).values())
        assert len(set(seen)) == 6
        assert sorted(deployment.reap()) == ["stage-1", "stage-2", "stage-3"]
        assert deployment.reap() == []
        assert not any(map(packages.is_running, seen))


def test_within_the_keep_alive_nothing_is_reaped(three_slices: Path) -> None:
    with Deployment(three_slices, keep_alive_s=600.0) as deployment:
        deployment.start()
        assert deployment.reap() == []


def test_scaled_to_zero_it_still_answers_and_says_what_the_start_cost(
    three_slices: Path, cnn: Graph, rng: np.random.Generator, limiter: Limiter
) -> None:
    with Deployment(three_slices) as deployment:
        deployment.infer(request(cnn, rng))
        deployment.scale_to_zero()
        assert deployment.instances == {}
        assert packages.own_groups(limiter) == []
        x = request(cnn, rng)
        answer = deployment.infer(x)
        assert answer.cold_ms > 0
        packages.assert_same(answer.outputs, packages.whole(cnn, x))


def test_closing_leaves_no_process_no_group_no_descriptor_and_no_segment(
    three_slices: Path, cnn: Graph, rng: np.random.Generator, limiter: Limiter
) -> None:
    files, segments = packages.open_files(), packages.mapped_segments()
    deployment = Deployment(three_slices)
    deployment.infer(request(cnn, rng))
    deployment.infer(request(cnn, rng, 3))
    pids = packages.pids(deployment)
    assert packages.mapped_segments() > segments
    deployment.close()
    deployment.close()
    assert not any(map(packages.is_running, pids.values()))
    assert packages.own_groups(limiter) == []
    assert packages.open_files() == files
    assert packages.mapped_segments() == segments


def test_a_closed_deployment_can_be_used_again(three_slices: Path, cnn: Graph, rng: np.random.Generator) -> None:
    with Deployment(three_slices) as deployment:
        deployment.infer(request(cnn, rng))
        deployment.close()
        x = request(cnn, rng)
        packages.assert_same(deployment.infer(x).outputs, packages.whole(cnn, x))


def test_sizes_replace_the_plans_and_are_enforced(three_slices: Path, enforced: Limiter) -> None:
    with Deployment(three_slices, limiter=enforced, sizes={"stage-2": Size(200, 0.5)}) as deployment:
        deployment.start()
        assert deployment.instances["stage-1"].memory_mb == 128
        assert deployment.instances["stage-2"].memory_mb == 200


def test_functions_stay_on_the_cores_they_are_pinned_to(three_slices: Path) -> None:
    core = frozenset({max(os.sched_getaffinity(0))})
    with Deployment(three_slices, cpus=core) as deployment:
        deployment.start()
        assert all(os.sched_getaffinity(pid) == core for pid in packages.pids(deployment).values())


def test_without_limits_it_works_and_says_that_nothing_is_enforced(
    three_slices: Path, cnn: Graph, rng: np.random.Generator
) -> None:
    with Deployment(three_slices, limiter=detect(env={"LAMELLA_LIMITS": "none"})) as deployment:
        assert not deployment.limiter.enforced
        assert deployment.limiter.reason == "LAMELLA_LIMITS=none asks for none"
        x = request(cnn, rng)
        packages.assert_same(deployment.infer(x).outputs, packages.whole(cnn, x))
        pids = packages.pids(deployment)
    assert not any(map(packages.is_running, pids.values()))


# -------------------------------------------------------------------------------------------------- refused requests

GOOD = np.zeros((1, 3, 32, 32), np.float32)
REFUSALS: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "missing": ({}, r"missing 'x': the model takes 'x'"),
    "unknown": ({"x": GOOD, "y": GOOD}, r"unknown 'y': the model takes 'x'"),
    "wrong name": ({"image": GOOD}, r"missing 'x' and unknown 'image'"),
    "dtype": ({"x": GOOD.astype(np.float64)}, r"input 'x' has dtype float64, the model takes float32"),
    "rank": ({"x": GOOD[0]}, r"input 'x' has shape \[3, 32, 32\], the model takes \['N', 3, 32, 32\]"),
    "shape": ({"x": GOOD[..., :31]}, r"input 'x' has shape \[1, 3, 32, 31\]"),
    "empty batch": ({"x": GOOD[:0]}, r"input 'x' has shape \[0, 3, 32, 32\]"),
}


def test_a_request_that_does_not_fit_is_refused_with_what_would(three_slices: Path) -> None:
    with Deployment(three_slices) as deployment:
        for inputs, says in REFUSALS.values():
            with pytest.raises(InputRefused, match=says) as caught:
                deployment.infer(inputs)
            assert caught.value.try_
            assert deployment.instances == {}  # refused before anything was started


def test_the_deployment_stays_usable_and_warm_after_every_refusal(
    three_slices: Path, cnn: Graph, rng: np.random.Generator
) -> None:
    with Deployment(three_slices) as deployment:
        deployment.start()
        for inputs, says in REFUSALS.values():
            with pytest.raises(InputRefused, match=says):
                deployment.infer(inputs)
            x = request(cnn, rng)
            answer = deployment.infer(x)
            packages.assert_same(answer.outputs, packages.whole(cnn, x))
            assert answer.cold_ms == 0


def test_inputs_that_disagree_about_the_batch_are_refused() -> None:
    specs = {name: TensorSpec(name, "float32", ("N", 2)) for name in "ab"}
    assert check_inputs(specs, {n: np.zeros((3, 2), np.float32) for n in "ab"}) == 3
    with pytest.raises(InputRefused, match=r"input 'b' has shape \[4, 2\]"):
        check_inputs(specs, {"a": np.zeros((3, 2), np.float32), "b": np.zeros((4, 2), np.float32)})


def test_a_model_with_no_free_batch_takes_its_own_shape_only() -> None:
    specs = {"a": TensorSpec("a", "int64", (1, 2)), "b": TensorSpec("b", "bool", ())}
    assert check_inputs(specs, {"a": np.zeros((1, 2), np.int64), "b": np.array(True)}) == 1
    with pytest.raises(InputRefused, match=r"input 'b' has shape \[1\], the model takes \[\]"):
        check_inputs(specs, {"a": np.zeros((1, 2), np.int64), "b": np.array([True])})


def test_an_index_out_of_range_is_refused_by_the_function_and_the_deployment_stays_usable(tmp_path: Path) -> None:
    graph = packages.graph_of(
        tmp_path,
        "lookup",
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"], name="gather"),
            helper.make_node("Neg", ["rows"], ["y"], name="negate"),
        ],
        {"ids": ("int64", (3,))},
        {"y": ("float32", (3, 4))},
        {"table": np.arange(40, dtype=np.float32).reshape(10, 4)},
    )
    made = packages.package(graph, tmp_path / "package", (1,))
    for channel in CHANNELS:
        with Deployment(made, channel=channel) as deployment:
            good = {"ids": np.array([1, 9, 0])}
            for _ in range(2):
                packages.assert_same(deployment.infer(good).outputs, packages.whole(graph, good))
                with pytest.raises(InputRefused, match=r"(?s)out of.*bounds.*function stage-1"):
                    deployment.infer({"ids": np.array([1, 10, 0])})
            answer = deployment.infer(good)
            packages.assert_same(answer.outputs, packages.whole(graph, good))
            assert answer.cold_ms == 0


def test_a_model_that_cannot_run_on_zeros_starts_and_answers_requests_it_can_run(tmp_path: Path) -> None:
    graph = packages.graph_of(
        tmp_path,
        "divider",
        [
            helper.make_node("Abs", ["x"], ["size"], name="absolute"),
            helper.make_node("Ceil", ["size"], ["whole"], name="ceiling"),
            helper.make_node("Cast", ["whole"], ["divisor"], name="cast", to=TensorProto.INT64),
            helper.make_node("Div", ["total", "divisor"], ["y"], name="divide"),
        ],
        {"x": ("float32", (2,))},
        {"y": ("int64", (2,))},
        {"total": np.array([6])},
    )
    made = packages.package(graph, tmp_path / "package")
    with Deployment(made) as deployment:
        good = {"x": np.array([3.0, -1.5], np.float32)}
        packages.assert_same(deployment.infer(good).outputs, packages.whole(graph, good))
        with pytest.raises(InputRefused, match="division by zero"):
            deployment.infer({"x": np.array([3.0, 0.0], np.float32)})
        packages.assert_same(deployment.infer(good).outputs, packages.whole(graph, good))


# ------------------------------------------------------------------------------------------------ what a hop carries


def test_integers_booleans_and_half_floats_cross_hops_and_an_early_output_is_read_later(
    tmp_path: Path, rng: np.random.Generator, channel: Channel
) -> None:
    graph = packages.graph_of(
        tmp_path,
        "mixed",
        [
            helper.make_node("Add", ["i", "i"], ["doubled"], name="int64"),
            helper.make_node("Greater", ["x", "zero"], ["positive"], name="bool"),
            helper.make_node("Cast", ["x"], ["half"], name="float16", to=TensorProto.FLOAT16),
            helper.make_node("Cast", ["doubled"], ["float"], name="float32", to=TensorProto.FLOAT),
            helper.make_node("Cast", ["half"], ["back"], name="back", to=TensorProto.FLOAT),
            helper.make_node("Where", ["positive", "float", "back"], ["y"], name="where"),
        ],
        {"x": ("float32", ("N", 3)), "i": ("int64", ("N", 3))},
        {"y": ("float32", ("N", 3)), "half": ("float16", ("N", 3)), "positive": ("bool", ("N", 3))},
        {"zero": np.zeros(1, np.float32)},
    )
    made = packages.package(graph, tmp_path / "package", (3, 5))
    with Deployment(made, channel=channel) as deployment:
        crossing = {s.dtype for s in deployment.functions[1].inputs}
        assert crossing == {"int64", "float16"}
        assert {s.dtype for s in deployment.functions[2].inputs} == {"bool", "float32"}
        for batch in [1, 4, 2]:
            x: dict[str, np.ndarray] = {
                "x": rng.standard_normal((batch, 3)).astype(np.float32),
                "i": rng.integers(-(2**40), 2**40, (batch, 3)),
            }
            packages.assert_same(deployment.infer(x).outputs, packages.whole(graph, x))


def test_a_request_input_reaches_every_slice_that_reads_it(
    tmp_path: Path, rng: np.random.Generator, channel: Channel
) -> None:
    graph = packages.graph_of(
        tmp_path,
        "masked",
        [
            helper.make_node("Mul", ["x", "mask"], ["a"], name="first"),
            helper.make_node("MatMul", ["a", "w"], ["b"], name="second"),
            helper.make_node("Add", ["b", "mask"], ["c"], name="third"),
            helper.make_node("Mul", ["c", "scale"], ["d"], name="fourth"),
            helper.make_node("Sub", ["d", "mask"], ["y"], name="fifth"),
        ],
        {"x": ("float32", ("N", 4)), "mask": ("float32", ("N", 4)), "scale": ("float32", (1,))},
        {"y": ("float32", ("N", 4))},
        {"w": rng.standard_normal((4, 4)).astype(np.float32)},
    )
    made = packages.package(graph, tmp_path / "package", (2, 4))
    with Deployment(made, channel=channel) as deployment:
        assert [sorted(s.name for s in f.inputs) for f in deployment.functions] == [
            ["mask", "x"],
            ["b", "mask", "scale"],
            ["d", "mask"],
        ]
        assert sorted(deployment.inputs) == ["mask", "scale", "x"]
        for batch in [1, 3, 1]:
            x = request(graph, rng, batch)
            packages.assert_same(deployment.infer(x).outputs, packages.whole(graph, x))


def test_an_output_whose_shape_depends_on_the_data_travels_as_it_comes(tmp_path: Path, channel: Channel) -> None:
    graph = packages.graph_of(
        tmp_path,
        "nonzero",
        [
            helper.make_node("Relu", ["x"], ["positive"], name="relu"),
            helper.make_node("NonZero", ["positive"], ["where"], name="nonzero"),
        ],
        {"x": ("float32", (2, 8))},
        {"where": ("int64", (2, "found")), "positive": ("float32", (2, 8))},
    )
    made = packages.package(graph, tmp_path / "package", (1,))
    rng = np.random.default_rng(3)
    with Deployment(made, channel=channel) as deployment:
        assert deployment.functions[1].outputs[0].dynamic
        for x in [rng.standard_normal((2, 8)), np.ones((2, 8)), -np.ones((2, 8)), rng.standard_normal((2, 8))]:
            inputs = {"x": x.astype(np.float32)}
            packages.assert_same(deployment.infer(inputs).outputs, packages.whole(graph, inputs))


def test_megabytes_cross_a_hop(tmp_path: Path, rng: np.random.Generator, channel: Channel) -> None:
    graph = packages.graph_of(
        tmp_path,
        "wide",
        [
            helper.make_node("Neg", ["x"], ["negative"], name="negate"),
            helper.make_node("Abs", ["negative"], ["y"], name="absolute"),
        ],
        {"x": ("float32", ("N", 1024, 512))},
        {"y": ("float32", ("N", 1024, 512))},
    )
    made = packages.package(graph, tmp_path / "package", (1,), memory_mb=256)
    with Deployment(made, channel=channel) as deployment:
        for batch in [1, 3]:
            x = request(graph, rng, batch)
            packages.assert_same(deployment.infer(x).outputs, packages.whole(graph, x))


# --------------------------------------------------------------------------------------------- packages from elsewhere


def made_elsewhere(package: Path, copy: Path, **machine: str) -> Path:
    """The package as if it had been optimised on another machine, for whose graph this one has no use."""
    shutil.copytree(package, copy)
    manifest = documents.read(copy / "manifest.json", Manifest, made_by="")
    hashes = {}
    for name in manifest.functions:
        path = copy / name / "function.json"
        function = msgspec.json.decode(path.read_bytes(), type=Function)
        (copy / name / function.graph).write_bytes(b"useless here")
        hashed = function.sha256 | {function.graph: sha256(copy / name / function.graph)}
        other = msgspec.structs.replace(function.machine, **machine)
        documents.write(path, msgspec.structs.replace(function, machine=other, sha256=hashed))
        hashes[name] = sha256(path)
    documents.write(copy / "manifest.json", msgspec.structs.replace(manifest, sha256=hashes))
    seal(copy)
    return copy


@pytest.mark.parametrize("machine", [{"isa": "riscv64-none"}, {"onnxruntime": "1.0.0"}], ids=["cpu", "runtime"])
def test_a_package_made_for_another_machine_falls_back_to_its_portable_graph_and_answers(
    three_slices: Path, cnn: Graph, rng: np.random.Generator, tmp_path: Path, machine: dict[str, str]
) -> None:
    copy = made_elsewhere(three_slices, tmp_path / "package", **machine)
    with Deployment(copy) as deployment:
        for batch in [1, 4, 1]:
            x = request(cnn, rng, batch)
            packages.assert_same(deployment.infer(x).outputs, packages.whole(cnn, x))


def test_a_package_made_for_another_machine_alone_is_not_started_on_this_one(cnn: Graph, tmp_path: Path) -> None:
    """Blocks of another size give wrong answers without any error."""
    build(packages.plan_of(cnn, (4,)), cnn, tmp_path / "here", portable=False)
    with Deployment(tmp_path / "here") as deployment:
        x = request(cnn, np.random.default_rng(3))
        packages.assert_same(deployment.infer(x).outputs, packages.whole(cnn, x))
    copy = made_elsewhere(tmp_path / "here", tmp_path / "package", isa="riscv64-none")
    with (
        Deployment(copy) as deployment,
        pytest.raises(ModelError, match=r"optimised for riscv64-none .* ships no graph for any CPU") as raised,
    ):
        deployment.infer(x)
    assert "--no-portable" in str(raised.value)


def test_a_package_with_a_changed_byte_is_refused(three_slices: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(three_slices, tmp_path / "package")
    with (copy / "stage-2" / "weights.bin").open("r+b") as file:
        file.write(b"\xff")
    with pytest.raises(PackageError, match=r"stage-2/weights\.bin changed since it was packaged"):
        Deployment(copy)


def test_a_package_with_a_missing_file_is_refused(three_slices: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(three_slices, tmp_path / "package")
    (copy / "stage-3" / "graph.onnx").unlink()
    with pytest.raises(PackageError, match=r"stage-3/graph\.onnx is missing"):
        Deployment(copy)


def test_a_directory_without_a_package_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="lamella package"):
        Deployment(tmp_path)


def test_instances_are_ready_between_requests(three_slices: Path, cnn: Graph, rng: np.random.Generator) -> None:
    with Deployment(three_slices) as deployment:
        deployment.infer(request(cnn, rng))
        assert {i.state for i in deployment.instances.values()} == {State.READY}


def test_a_deployment_takes_every_option_of_its_chain() -> None:
    given = {
        "functions",
        "outputs",
        "sizes",
        "limiter",
        "stages",
        "at_once",
        "codecs",
    }  # from the package, or named by Deployment itself
    options = inspect.signature(Chain, eval_str=True).parameters
    assert get_type_hints(Serving) == {n: p.annotation for n, p in options.items() if n not in given}


def test_an_unknown_option_is_an_error(three_slices: Path) -> None:
    with pytest.raises(TypeError, match="keep_alive"):
        Deployment(three_slices, keep_alive=1.0)  # type: ignore[call-arg]
