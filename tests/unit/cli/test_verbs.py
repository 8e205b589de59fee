"""What each verb prints and writes, on a small model."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
import pytest

from lamella import documents
from lamella.cli.options import parse_ranges, parse_shapes
from lamella.cli.show import console, show_plan, table
from lamella.graph.cuts import legal_cuts
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.limits.owner import start_ticks
from lamella.package.build import held_bytes
from lamella.plan.document import Plan, Slack, read_plan
from lamella.plan.make import make_plan
from lamella.platforms import platform
from lamella.profile.measure import measure
from lamella.runtime.function import open_session
from lamella.units import MB
from tests.unit.cli.conftest import MODEL, Lamella
from tests.unit.graph.onnx_models import filled, masked, model, node, save
from tests.unit.limits.owners import owned_by
from tests.unit.plan.pricing.test_coding import link
from tests.unit.plan.synthetic import Made, graph_of, profile_of
from tests.unit.plan.validation.test_precision import mlp


def test_inspect_prints_what_the_model_is_made_of(lamella: Lamella, graph: Graph) -> None:
    done = lamella("inspect", MODEL)
    assert done.code == 0
    assert "cnn-tiny: 13 operators" in done.out
    assert "batch axis free" in done.out
    assert "input  x float32 ['N', 3, 32, 32]" in done.out
    assert "5 units worth planning over" in done.out


def test_inspect_as_json_agrees_with_the_graph(lamella: Lamella, graph: Graph) -> None:
    found = lamella("inspect", MODEL, "--json").document
    assert found["model"] == "cnn-tiny"
    assert found["hash"] == graph.hash
    assert found["inputs"] == {"x": ["N", 3, 32, 32]}
    assert found["operators"] == len(graph.operators)
    assert found["weight_bytes"] == graph.weight_bytes(0, len(graph.operators))
    assert found["units"][0][0] == 0
    assert found["units"][-1][1] == len(graph.operators)
    assert found["legal_cuts"] + found["refused_cuts"] == len(graph.operators) - 1
    assert found["cannot_divide"] == []


def test_inspect_as_json_lists_every_operator_unit_and_cut(lamella: Lamella, graph: Graph) -> None:
    found = lamella("inspect", MODEL, "--json").document
    assert [op["index"] for op in found["per_operator"]] == list(range(found["operators"]))
    for told, op in zip(found["per_operator"], graph.operators, strict=True):
        assert (told["kind"], told["name"], told["flops"]) == (op.kind, op.name, op.flops)
        assert told["weight_bytes"] == graph.weight_bytes(op.index, op.index + 1)
        assert told["output_shapes"] == {n: list(graph.tensors[n].shape) for n in op.outputs}
        assert told["output_bytes"] == sum(graph.tensors[n].bytes_at() for n in op.outputs)
        assert ("time" in told["dominates"]) == (op.flops > 0.2 * found["flops"])
        assert ("memory" in told["dominates"]) == (told["weight_bytes"] > 0.2 * found["weight_bytes"])
    assert any(op["dominates"] for op in found["per_operator"])
    assert [[u["first"], u["last"]] for u in found["per_unit"]] == found["units"]
    assert sum(u["flops"] for u in found["per_unit"]) == found["flops"]
    cuts, _ = legal_cuts(graph)
    assert [(c["position"], list(c["tensors"]), list(c["side"])) for c in found["cuts"]] == [
        (c.position, list(c.tensors), list(c.side)) for c in cuts
    ]
    for cut in found["cuts"]:
        assert cut["bytes"] == sum(cut["tensors"].values()) + sum(cut["side"].values())


def test_inspect_names_the_request_constants_that_cross_a_cut(lamella: Lamella, tmp_path: Path) -> None:
    path = save(masked(), tmp_path / "masked.onnx")
    cut = lamella("inspect", path, "--json").document["cuts"][3]
    assert cut == {"position": 4, "tensors": {"h0": 96}, "side": {"bias": 96}, "bytes": 192}
    assert "4 192 h0 (96) bias (96)" in " ".join(lamella("inspect", path, "--cuts").out.split())


def test_inspect_lists_operators_and_cuts_where_asked(lamella: Lamella, graph: Graph) -> None:
    plain, operators, cuts = (lamella("inspect", MODEL, *more).out for more in ((), ("--operators",), ("--cuts",)))
    assert "weight bytes" not in plain + cuts
    assert "side inputs" not in plain + operators
    assert all(op.name in operators for op in graph.operators)
    assert all(name in cuts for cut in legal_cuts(graph)[0] for name in cut.tensors)
    heavy = max(graph.operators, key=lambda op: graph.weight_bytes(op.index, op.index + 1))
    assert f"operator {heavy.index} ({heavy.kind} {heavy.name}) is memory and time-dominant" in " ".join(plain.split())


def test_names_that_look_like_markup_are_printed_as_they_are(
    lamella: Lamella, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [
        node("MatMul", ["x[/x]", "w[/x]"], ["m[/x]"], name="op[/x]"),
        node("MatMul", ["m[/x]", "v[/x]"], ["[bold]y"], name="[red]last"),
    ]
    weights = {"w[/x]": filled(24, 240), "v[/x]": filled(240, 24)}
    path = save(model(nodes, {"x[/x]": [1, 24]}, {"[bold]y": None}, weights), tmp_path / "[b]m.onnx")
    done = lamella("inspect", path, "--operators", "--cuts")
    assert done.code == 0
    assert all(name in done.out for name in ("[b]m:", "x[/x]", "m[/x] (960)", "op[/x]", "[bold]y", "[red]last"))
    console().print(table(["hop at", "tensors "], [["1", "m[/x]"]]))
    assert "m[/x]" in capsys.readouterr().out


def test_inspect_says_why_a_model_inside_an_if_cannot_be_divided(lamella: Lamella) -> None:
    if importlib.util.find_spec("silero_vad") is None:
        pytest.skip("the silero-vad wheel is not here")
    done = lamella("inspect", "zoo:silero-vad")
    assert done.code == 0
    said = " ".join(done.out.split())
    assert "cannot be divided: operator 1 (If " in said
    assert "it holds subgraphs, and is indivisible together with what it captures" in said
    assert "its shape depends on the data" in said
    assert lamella("inspect", "zoo:silero-vad", "--json").document["cannot_divide"]


def test_profile_prints_a_row_for_each_unit(lamella: Lamella, graph: Graph, tmp_path: Path) -> None:
    done = lamella("profile", MODEL, "--batch", "1", "--budget-s", "0.2", "-o", tmp_path / "profile.json")
    assert done.code == 0
    assert "runtime floor" in done.out
    written = json.loads((tmp_path / "profile.json").read_text())
    assert len(written["units"]) == 5
    assert lamella("profile", MODEL, "--batch", "1", "--budget-s", "0.2", "--json").document == written


@pytest.mark.parametrize("where", ["openfaas", "aws-lambda"])
@pytest.mark.parametrize(
    "planner",
    [
        *("ort", "ort-default", "single", "uniform-2", "mopar", "exact", "amps-inf"),
        *("gillis-no-shards", "latency-greedy-no-shards", "random-no-shards"),
    ],
)
def test_plan_as_json_holds_what_is_predicted(lamella: Lamella, graph: Graph, where: str, planner: str) -> None:
    plan = lamella("plan", MODEL, "--platform", where, "--planner", planner, "--json").document
    assert set(plan["predicted"]) == {"latency_ms", "memory_mb", "cost_usd_per_million", "deviation_ms", "common"}
    assert all(value > 0 for value in plan["predicted"].values())
    assert plan["predicted"]["memory_mb"] == sum(f["memory_mb"] for f in plan["functions"])
    assert (plan["platform"], plan["planner"]) == (where, planner)
    assert len(plan["hops"]) == len(plan["functions"]) - 1


def test_the_solver_s_time_and_gap_are_in_the_plan(lamella: Lamella, graph: Graph) -> None:
    asked = ("--platform", "aws-lambda-2021", "--planner", "amps-inf", "--slo-ms", "500", "--solver-s", "30")
    done = lamella("plan", MODEL, *asked)
    assert done.code == 0
    why = " ".join(done.out.split())
    assert re.search(r"HiGHS [\d.]+ took \d+\.\d\d s, gap 0\.00%; hops through object storage \(s3\)", why)
    through = lamella("plan", MODEL, "--platform", "aws-lambda", "--planner", "uniform-2", "--channel", "s3", "--json")
    assert [hop["channel"] for hop in through.document["hops"]] == ["s3"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight real requests."""
    path = tmp_path / "data.npz"
    np.savez(path, x=np.random.default_rng(0).random((8, 3, 32, 32)).astype(np.float32))
    return path


def test_a_plan_over_links_loses_what_the_user_s_data_allow(
    lamella: Lamella, graph: Graph, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamella.cli.prepare.platform_named", lambda name: link(1, where=name))
    asked = ("plan", MODEL, "--platform", "aws-lambda", "--planner", "uniform-3", "--no-shards")
    assert lamella(*asked, "--json").document["validation"] is None
    done = lamella(*asked, "--validate", data, "--metric", "cosine", "--tolerance", 0.99)
    assert done.code == 0
    said = " ".join(done.out.split())
    assert f"at least 0.99 on 4 requests of {data}" in said
    plan = lamella(*asked, "--validate", data, "--json").document
    assert any(hop["loss"] for hop in plan["hops"])
    assert plan["validation"]["measured"] <= plan["validation"]["bound"] == 0.01
    tight = lamella(*asked, "--validate", data, "--tolerance", "1e-12")
    assert "nothing lossy is worth it or within its bound: max_rel of at most 1e-12 on 4" in " ".join(tight.out.split())


def test_products_run_on_integers_where_the_user_s_data_allow_it(lamella: Lamella, tmp_path: Path) -> None:
    given = str(save(model(*mlp()), tmp_path / "model.onnx"))
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((24, 256)).astype(np.float32))
    path = tmp_path / "plan.json"
    asked = ("plan", given, "--platform", "openfaas", "--no-shards", "--precision", "int8", "--validate", data)
    assert lamella(*asked, "--tolerance", 0.2, "-o", path).code == 0
    assert lamella("check", path).code == 0
    plan = json.loads(path.read_text())
    assert {n for f in plan["functions"] for n in f["int8"]} == set(plan["validation"]["int8"])
    tight = lamella(*asked, "--tolerance", "1e-12", "--json").document
    assert not any(f["int8"] for f in tight["functions"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--metric", "top1"], "without --validate none is allowed"),
        (["--tolerance", "0.1"], "--validate data.npz --tolerance 0.1"),
        (["--validate", "DATA", "--metric", "mse"], "no metric 'mse'; there are max_rel, top1, cosine"),
        (["--validate", "DATA", "--tolerance", "nan"], "it must be a finite number"),
        (["--validate", "none.npz"], "cannot read none.npz"),
        (["--validate", "DATA", "--no-codec"], "--validate judges codecs, and --no-codec allows none"),
        (["--validate", "DATA", "--tolerance", "-1"], "no answer has max_rel at most that, one without loss has 0"),
        (["--validate", "DATA", "--metric", "top1", "--tolerance", "5"], "no answer has top1 at least that"),
    ],
)
def test_judging_that_cannot_be_understood_is_a_usage_error(
    lamella: Lamella, graph: Graph, data: Path, options: list[str], said: str
) -> None:
    words = [str(data) if o == "DATA" else o for o in options]
    done = lamella("plan", MODEL, "--platform", "aws-lambda", *words)
    assert done.code == 2
    assert said in " ".join(done.err.split())


def test_plan_prints_each_function_with_its_reason(lamella: Lamella, graph: Graph) -> None:
    done = lamella("plan", MODEL, "--platform", "openfaas", "--slo-ms", "50")
    assert done.code == 0
    said = " ".join(done.out.split())
    assert "cnn-tiny on openfaas by exact: 1 function," in said
    assert "is the smallest size for" in said
    assert "latency SLO" in said
    assert "one order only: each of the" in said


def test_a_divided_plan_is_shown_with_its_hops_and_with_what_was_turned_down_and_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    units = (Made(time_ms=200, out_mb=0.1), Made(time_ms=200, out_mb=0.1), Made(weights_mb=900, time_ms=20))
    chain = graph_of(units)
    show_plan(make_plan(chain, profile_of(chain, units), platform("openfaas"), "mopar", given="made-up"))
    said = " ".join(capsys.readouterr().out.split())
    assert "made-up on openfaas by mopar: 3 functions," in said
    assert "shared-memory none" in said
    assert "turned down" in said
    assert "best with 2 stages" in said
    assert "% dearer" in said


def test_the_written_plan_is_the_printed_one(lamella: Lamella, graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "plan.json"
    printed = lamella("plan", MODEL, "--platform", "openfaas", "-o", path, "--json").document
    assert json.loads(path.read_text()) == printed
    assert read_plan(path).model.hash == graph.hash


def test_a_plan_of_a_file_by_relative_path_holds_from_any_directory(
    lamella: Lamella, graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    shutil.copy(graph.source, tmp_path / "cnn-tiny.onnx")  # of the zoo's name, so that its profile is found
    monkeypatch.chdir(tmp_path)
    made = lamella("plan", "cnn-tiny.onnx", "--platform", "openfaas", "--shape", "x=N,3,32,32", "-o", "plan.json")
    assert made.code == 0
    monkeypatch.chdir(tmp_path / "there")
    assert lamella("check", "../plan.json").code == 0
    plan = read_plan(tmp_path / "plan.json")
    assert Path(plan.model.given).is_absolute()
    assert plan.model.shapes == {"x": ("N", 3, 32, 32)}


def test_a_file_with_unbound_shapes_says_which_option_binds_them(
    lamella: Lamella, graph: Graph, tmp_path: Path
) -> None:
    done = lamella("plan", graph.source, "--platform", "openfaas")
    assert done.code == 2
    assert "--shape x=1,3,32,32" in done.err


def test_a_model_that_changed_after_planning_fails_the_check(lamella: Lamella, graph: Graph, tmp_path: Path) -> None:
    shutil.copy(graph.source, tmp_path / "cnn-tiny.onnx")
    shape = ("--shape", "x=N,3,32,32")
    path = tmp_path / "plan.json"
    assert lamella("plan", tmp_path / "cnn-tiny.onnx", "--platform", "openfaas", *shape, "-o", path).code == 0
    import onnx

    changed = onnx.load(tmp_path / "cnn-tiny.onnx")
    changed.producer_name = "someone else"
    onnx.save(changed, tmp_path / "cnn-tiny.onnx")
    done = lamella("check", path)
    assert done.code == 4
    assert "the plan is for model" in done.err


@pytest.mark.parametrize("favour", ["start", "steady", "memory"])
def test_a_package_that_favours_something_says_what_became_of_its_products(
    favour: str, lamella: Lamella, plan_file: Path, tmp_path: Path
) -> None:
    done = lamella("package", plan_file, "-o", tmp_path / "package", "--favour", favour)
    assert done.code == 0
    assert f"favouring {favour}: nothing to choose, 1 left: small" in done.out
    assert lamella("package", plan_file, "-o", tmp_path / "package", "--favour", "speed").code == 2


def test_a_package_without_its_graph_for_any_cpu_says_so_where_nobody_asked(
    lamella: Lamella, plan_file: Path, tmp_path: Path
) -> None:
    def lines(*options: str) -> list[str]:
        done = lamella("package", plan_file, "-o", tmp_path / "package", *options)
        assert done.code == 0
        return str(done.out).splitlines()

    assert sum("portable.onnx" in line for line in lines()) == 3
    assert not any("portable.onnx" in line or "any CPU" in line for line in lines("--no-portable"))
    sizes = [held_bytes(tmp_path / "package" / f"stage-{k}") for k in (1, 2, 3)]
    plan = documents.read(plan_file, Plan, made_by="")
    limit = Slack("package", max(sizes) / MB, 1.0, "MB")
    documents.write(plan_file, msgspec.structs.replace(plan, slack=(limit,)))
    left = [line for line in lines() if "without a graph for any CPU" in line]
    assert left
    assert all(f"beyond the {limit.limit:g} MB of a package" in line for line in left)


def test_a_package_answers_as_the_whole_model(lamella: Lamella, graph: Graph, plan_file: Path, tmp_path: Path) -> None:
    feed = request(graph, np.random.default_rng(7))
    np.savez(tmp_path / "request.npz", **feed)  # type: ignore[arg-type]
    packaged = lamella("package", plan_file, "-o", tmp_path / "package")
    assert packaged.code == 0
    assert all(f"stage-{k}: " in packaged.out for k in (1, 2, 3))
    served = lamella(
        "run", tmp_path / "package", "--input", tmp_path / "request.npz", "--output", tmp_path / "answer.npz"
    )
    assert served.code == 0
    assert "3 function(s)" in served.out
    assert "output probabilities: float32 [1, 10]" in served.out
    whole = open_session(graph.skeleton, "reference", threads=1, prepack=False)
    (want,) = whole.run(["probabilities"], feed)
    with np.load(tmp_path / "answer.npz") as answer:
        assert answer.files == ["probabilities"]
        np.testing.assert_allclose(answer["probabilities"], want, rtol=0, atol=1e-5)


def test_an_output_may_be_called_as_numpys_own_argument_is(lamella: Lamella, tmp_path: Path) -> None:
    weights = {"w": filled(24, 24)}
    proto = model([node("MatMul", ["x", "w"], ["file"])], {"x": [1, 24]}, {"file": None}, weights)
    path = save(proto, tmp_path / "named.onnx")
    measure(import_model(str(path)), threads=(1,), budget_s=0.05)
    np.savez(tmp_path / "x.npz", x=filled(1, 24))
    planned = lamella("plan", path, "--platform", "openfaas", "--planner", "single", "-o", tmp_path / "plan.json")
    assert planned.code == 0
    done = lamella("run", tmp_path / "plan.json", "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    assert done.code == 0, done.err
    with np.load(tmp_path / "y.npz") as answer:
        np.testing.assert_allclose(answer["file"], filled(1, 24) @ weights["w"], rtol=1e-5)


def test_run_takes_a_plan_any_batch_and_a_socket(
    lamella: Lamella, graph: Graph, plan_file: Path, tmp_path: Path, cache_dir: Path
) -> None:
    feed = request(graph, np.random.default_rng(7), batch=3)
    np.savez(tmp_path / "request.npz", **feed)  # type: ignore[arg-type]
    before = set((cache_dir / "work").glob("run-*"))
    done = lamella("run", plan_file, "--input", tmp_path / "request.npz", "--channel", "socket", "--json")
    assert done.code == 0
    record = done.document
    assert record["outputs"] == {"probabilities": [3, 10]}
    assert list(record["stage_ms"]) == ["stage-1", "stage-2", "stage-3"]
    assert record["latency_ms"] >= record["cold_ms"] + sum(record["stage_ms"].values()) > 0
    assert record["limits"] in ("enforced", "unlimited")
    assert (record["limits"] == "enforced") == (record["limits_reason"] == "")
    assert set((cache_dir / "work").glob("run-*")) == before


@pytest.mark.parametrize("start", ["fresh", "zygote", "forked-session"])
def test_run_starts_functions_as_it_is_told_and_says_how_long_each_phase_took(
    lamella: Lamella, plan_file: Path, graph: Graph, tmp_path: Path, start: str
) -> None:
    np.savez(tmp_path / "request.npz", x=np.ones((1, 3, 32, 32), np.float32))
    argv = ["run", plan_file, "--input", tmp_path / "request.npz", "--start", start]
    document = lamella(*argv, "--json").document
    assert document["start"] == start
    assert list(document["cold_split_ms"]) == list(document["stage_ms"])
    for split in document["cold_split_ms"].values():
        assert list(split) == ["spawn", "imports", "map", "session", "first_run"]
        assert min(split.values()) >= 0
    said = lamella(*argv).out
    assert said.count(f"({start}), ms: spawn ") == len(document["stage_ms"])


def test_run_says_what_forking_a_session_costs(lamella: Lamella) -> None:
    said = " ".join(lamella("run", "--help").out.replace("│", " ").split())
    assert "at the price of isolation" in said
    assert lamella("run", "x", "--input", "y", "--start", "boil").code == 2


@pytest.mark.parametrize("file", ["manifest.json", "manifest.sha256", "plan.json", "stage-2/weights.bin"])
def test_a_damaged_package_is_not_run(
    lamella: Lamella, graph: Graph, plan_file: Path, tmp_path: Path, file: str
) -> None:
    np.savez(tmp_path / "request.npz", **request(graph, np.random.default_rng(7)))  # type: ignore[arg-type]
    assert lamella("package", plan_file, "-o", tmp_path / "package").code == 0
    data = bytearray((tmp_path / "package" / file).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "package" / file).write_bytes(data)
    done = lamella("run", tmp_path / "package", "--input", tmp_path / "request.npz")
    assert done.code == 1
    assert "changed since it was packaged" in done.err
    assert file in done.err
    assert f"try:   lamella package plan.json -o {tmp_path / 'package'}" in done.err


@pytest.mark.parametrize("arrays", [{}, {"x": np.zeros((1, 3, 31, 32), np.float32)}], ids=["missing", "misshapen"])
def test_a_refused_request_leaves_the_older_answer(
    lamella: Lamella, plan_file: Path, tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    np.savez(tmp_path / "request.npz", **arrays)  # type: ignore[arg-type]
    (tmp_path / "answer.npz").write_text("older")
    done = lamella("run", plan_file, "--input", tmp_path / "request.npz", "--output", tmp_path / "answer.npz")
    assert done.code == 2
    assert (tmp_path / "answer.npz").read_text() == "older"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["answer.npz", "plan.json", "request.npz"]


def test_an_answer_that_cannot_be_written_whole_leaves_the_older_one(
    lamella: Lamella, graph: Graph, plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: IO[bytes], array: np.ndarray, *, allow_pickle: bool) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    np.savez(tmp_path / "request.npz", **request(graph, np.random.default_rng(7)))  # type: ignore[arg-type]
    (tmp_path / "answer.npz").write_text("older")
    monkeypatch.setattr(np.lib.format, "write_array", full)
    done = lamella("run", plan_file, "--input", tmp_path / "request.npz", "--output", tmp_path / "answer.npz")
    assert done.code == 1
    assert "No space left on device" in done.err
    assert (tmp_path / "answer.npz").read_text() == "older"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["answer.npz", "plan.json", "request.npz"]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({}, "missing 'x'"),
        ({"y": np.zeros((1, 3, 32, 32), np.float32)}, "missing 'x' and unknown 'y'"),
        ({"x": np.zeros((1, 3, 32, 32), np.float32), "z": np.zeros(1)}, "unknown 'z'"),
        ({"x": np.zeros((1, 3, 32, 32))}, "input 'x' has dtype float64, the model takes float32"),
        ({"x": np.zeros((1, 3, 31, 32), np.float32)}, "input 'x' has shape [1, 3, 31, 32]"),
        ({"x": np.zeros((3, 32, 32), np.float32)}, "input 'x' has shape [3, 32, 32]"),
        ({"x": np.zeros((0, 3, 32, 32), np.float32)}, "input 'x' has shape [0, 3, 32, 32]"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_by_name(
    lamella: Lamella, plan_file: Path, tmp_path: Path, arrays: dict[str, np.ndarray], said: str
) -> None:
    np.savez(tmp_path / "request.npz", **arrays)  # type: ignore[arg-type]
    done = lamella("run", plan_file, "--input", tmp_path / "request.npz")
    assert done.code == 2
    assert said in done.err


@pytest.mark.parametrize("content", [None, b"", b"no zip at all", b"PK\x03\x04 a zip cut short"])
def test_a_request_file_that_cannot_be_read_is_refused(
    lamella: Lamella, plan_file: Path, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "request.npz"
    if content is not None:
        path.write_bytes(content)
    done = lamella("run", plan_file, "--input", path)
    assert done.code == 2
    assert "request.npz" in done.err


def test_a_directory_that_is_no_package_is_refused(lamella: Lamella, tmp_path: Path) -> None:
    np.savez(tmp_path / "request.npz", x=np.zeros(1))
    done = lamella("run", tmp_path, "--input", tmp_path / "request.npz")
    assert done.code == 1
    assert "holds no package" in done.err


def test_a_package_is_not_written_over_other_files(lamella: Lamella, plan_file: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").touch()
    done = lamella("package", plan_file, "-o", tmp_path / "precious")
    assert done.code == 1
    assert (tmp_path / "precious" / "thesis.tex").exists()


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Path]]:
    """Temporary paths of a dead owner and of a living one, in the cache and beside the user's files."""
    cache, here, there = (tmp_path / name for name in ("cache", "here", "there"))
    monkeypatch.setenv("LAMELLA_CACHE", str(cache))
    places = [
        (cache / "work", "compare"),
        (cache / "models", ".import"),
        (cache / "models" / "m", ".profile"),
        (cache / "models" / "m", ".borders"),
        (here, ".package"),
        (there, ".plan.json"),
    ]
    owners = {"dead": (os.getpid(), start_ticks(os.getpid()) - 1), "living": (os.getppid(), start_ticks(os.getppid()))}
    paths = {who: [place / owned_by(*owner, label) for place, label in places] for who, owner in owners.items()}
    paths["others"] = [cache / "models" / "m" / "graph.json", here / "plan.json", there / ".plan.json-1-2"]
    for path in (p for several in paths.values() for p in several):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name.startswith((".plan", ".borders", "plan", "graph")):
            path.touch()
        else:
            path.mkdir()
        os.utime(path, (0, 0))
    monkeypatch.chdir(here)
    return paths


def test_clean_removes_what_the_dead_left_and_never_what_the_living_use(
    lamella: Lamella, left: dict[str, list[Path]], tmp_path: Path
) -> None:
    dry = lamella("clean", tmp_path / "there", "--dry-run", "--json").document
    assert all(path.exists() for paths in left.values() for path in paths)
    done = lamella("clean", tmp_path / "there", "--json")
    assert done.code == 0
    assert sorted(done.document["paths"]) == sorted(dry["paths"]) == sorted(map(str, left["dead"]))
    assert [p for p in left["dead"] if p.exists()] == []
    assert all(p.exists() for p in (*left["living"], *left["others"]))
    assert "removed 0 control group(s) and 0 temporary file(s) or directories" in lamella("clean").out


def test_clean_says_what_it_leaves_to_another_machine(
    lamella: Lamella, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path))
    path = tmp_path / "work" / "run-lamella-1-2-00000000-abc"
    path.mkdir(parents=True)
    assert f"left alone, its owner is on another machine or in another container: {path}" in lamella("clean").out
    assert path.exists()


def test_shapes_and_ranges_become_values() -> None:
    assert parse_shapes(["x=N,3,224,224", "a=b=1"]) == {"x": ("N", 3, 224, 224), "a=b": (1,)}
    assert parse_shapes(None) == {}
    assert parse_ranges(["ids=0:30522", "t=-1.5:2"]) == {"ids": (0.0, 30522.0), "t": (-1.5, 2.0)}
