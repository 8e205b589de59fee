"""How commands end: 0 done, 2 usage, 3 infeasible, 4 a limit or law, 1 the rest; an error says what to try next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lamella.graph.model import Graph
from tests.unit.cli.conftest import MODEL, Lamella

PLAN = ("plan", MODEL, "--platform", "openfaas")
VERBS = ("inspect", "profile", "plan", "check", "package", "run", "compare", "platforms", "clean", "demo")


@pytest.mark.parametrize("argv", [(), ("--help",), ("--version",), *((verb, "--help") for verb in VERBS)])
def test_help_is_done(lamella: Lamella, argv: tuple[str, ...]) -> None:
    done = lamella(*argv)
    assert done.code == 0
    assert done.out
    assert not done.err


def test_help_lists_the_verbs_in_the_order_of_the_workflow(lamella: Lamella) -> None:
    assert all(verb in lamella("--help").out for verb in VERBS)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("explode",), "explode"),
        (("plan",), "--model"),
        ((*PLAN[:2],), "--platform"),
        ((*PLAN, "--bogus"), "--bogus"),
        ((*PLAN, "--slo-ms", "soon"), "soon"),
        ((*PLAN, "--slo-ms", "0"), "--slo-ms is 0, it must be a finite number above zero"),
        ((*PLAN, "--slo-ms", "nan"), "--slo-ms is nan"),
        ((*PLAN, "--planner", "amps-inf", "--solver-s", "0"), "--solver-s is 0, it must be a finite number above zero"),
        ((*PLAN, "--vcpu", "-1"), "--vcpu is -1"),
        ((*PLAN, "--batch", "0"), "--batch is 0"),
        ((*PLAN, "--max-stages", "0"), "--max-stages is 0"),
        ((*PLAN, "--precision", "int8"), "--precision int8 --validate data.npz"),
        ((*PLAN, "--precision", "fp16"), "onnxruntime has next to no kernels for it on CPUs"),
        ((*PLAN, "--precision", "fp32,int4"), "there are fp32 and int8"),
        (("profile", MODEL, "--precision", "int8", "--predicted"), "--predicted knows fp32 only"),
        ((*PLAN, "--shape", "x"), "--shape 'x' is not NAME=1,3,224,224"),
        ((*PLAN, "--shape", "x=1,three"), "is not NAME=1,3,224,224"),
        ((*PLAN, "--shape", "x=1.5,3"), "is not NAME=1,3,224,224"),
        ((*PLAN, "--shape", "x=²,3,32,32"), "is not NAME=1,3,224,224"),
        ((*PLAN, "--shape", "x=1,3,32"), "'x' has 4 dimensions, --shape gives 3"),
        ((*PLAN, "--shape", "y=1,3,32,32"), "the model has no input 'y'; its inputs are x"),
        ((*PLAN, "--range", "x"), "--range 'x' is not NAME=LOW:HIGH"),
        ((*PLAN, "--range", "x=1"), "is not NAME=LOW:HIGH"),
        ((*PLAN, "--range", "x=5:5"), "LOW must be below HIGH"),
        ((*PLAN, "--range", "x=6:5"), "LOW must be below HIGH"),
        ((*PLAN, "--range", "x=nan:5"), "--range 'x=nan:5': LOW and HIGH must be finite"),
        ((*PLAN, "--range", "x=0:nan"), "LOW and HIGH must be finite"),
        ((*PLAN, "--range", "x=0:inf"), "LOW and HIGH must be finite"),
        ((*PLAN, "--range", "x=-inf:0"), "LOW and HIGH must be finite"),
        ((*PLAN, "--range", "x=0:1e30"), "LOW and HIGH must be finite, between -4.6e+18 and 4.6e+18"),
        ((*PLAN, "--range", "=0:1"), "is not NAME=LOW:HIGH"),
        ((*PLAN, "--range", "x=0:1", "--range", "x=0:2"), "--range is given twice for 'x'"),
        ((*PLAN, "--shape", "x=1,3,32,32", "--shape", "x=2,3,32,32"), "--shape is given twice for 'x'"),
        ((*PLAN, "--shape", "x=9999999999,3,32,32"), "a dimension has at most 9 digits"),
        ((*PLAN, "--shape", "x=999999999,3,32,32"), "GB free"),
        (("plan", MODEL, "--platform", "azure"), "no platform 'azure'; there are aws-lambda, aws-lambda-2021"),
        ((*PLAN, "--planner", "mopra"), "no planner 'mopra'"),
        (("compare", *PLAN[1:], "--planners", "single,mopra"), "no planner 'mopra'"),
        (("compare", *PLAN[1:], "--planners", " ,"), "no planner is named"),
        (("profile", MODEL, "--batch", "1,two"), "--batch '1,two'"),
        (("profile", MODEL, "--batch", "0"), "--batch '0'"),
        (("check", "nowhere.json"), "cannot read nowhere.json"),
        (("package", "nowhere.json", "-o", "somewhere"), "cannot read nowhere.json"),
    ],
)  # fmt: skip
def test_a_command_we_cannot_understand_is_usage(lamella: Lamella, argv: tuple[str, ...], said: str) -> None:
    done = lamella(*argv)
    assert done.code == 2
    assert done.err.startswith("lamella: ")
    assert said in " ".join(done.err.split())
    assert not done.out


@pytest.mark.parametrize("verb", ["inspect", "profile", "plan", "compare"])
@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("nowhere.onnx", "model file 'nowhere.onnx' does not exist"),
        (".", "is a directory"),
        ("zoo:cnn-tinny", "did you mean 'cnn-tiny'?"),
    ],
)
def test_a_missing_model_is_an_error_of_the_model(lamella: Lamella, verb: str, model: str, said: str) -> None:
    done = lamella(verb, model, *(("--platform", "openfaas") if verb in ("plan", "compare") else ()))
    assert done.code == 1
    assert said in done.err
    assert "try:" in done.err


def test_a_file_that_is_no_model_is_an_error_of_the_model(lamella: Lamella, tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("this is not ONNX")
    done = lamella("inspect", path)
    assert done.code == 1
    assert "text.onnx" in done.err


@pytest.mark.parametrize(
    "planner", ["ort", "single", "uniform-2", "mopar", "exact", "amps-inf", "gillis", "latency-greedy", "random-3"]
)
def test_an_slo_out_of_reach_is_infeasible_and_says_what_would_do(lamella: Lamella, graph: Graph, planner: str) -> None:
    done = lamella(*PLAN, "--planner", planner, "--slo-ms", "0.001")
    assert done.code == 3
    assert not done.out
    assert done.err.startswith("lamella: latency: ")
    assert "where: --slo-ms" in done.err
    hint = next(line for line in done.err.splitlines() if "try:" in line).split("--slo-ms ")[1].split(",")[0]
    assert lamella(*PLAN, "--planner", planner, "--slo-ms", hint).code == 0


@pytest.mark.parametrize("verb", ["plan", "compare"])
def test_a_request_too_large_for_the_platform_is_a_limit_told_before_anything_is_measured(
    lamella: Lamella, graph: Graph, verb: str
) -> None:
    done = lamella(verb, MODEL, "--platform", "aws-lambda", "--batch", "1000")
    assert done.code == 4
    assert not done.out
    assert "a request of 11.7 MB is 15.6 MB on the wire, the limit of aws-lambda is 6 MB" in done.err
    assert "try:   a smaller --batch" in done.err


@pytest.mark.parametrize("verb", ["plan", "compare"])
def test_the_verbs_that_plan_take_the_same_options(lamella: Lamella, verb: str) -> None:
    said = lamella(verb, "--help").out
    options = "--platform --slo-ms --max-stages --vcpu --batch --shape --range --output --json".split()
    assert [o for o in options if o not in said] == []
    assert "--asked" not in said


def test_more_slices_than_units_is_infeasible(lamella: Lamella, graph: Graph) -> None:
    done = lamella(*PLAN, "--planner", "uniform-40")
    assert done.code == 3
    assert "--planner uniform-5" in done.err


def test_a_good_plan_passes_the_check(lamella: Lamella, plan_file: Path) -> None:
    done = lamella("check", plan_file)
    assert done.code == 0
    assert "3 function(s) on openfaas, every law and limit kept" in done.out
    verdict = lamella("check", plan_file, "--json").document
    assert verdict == {"plan": str(plan_file), "ok": True, "broken": [], "notes": []}


def test_a_broken_plan_fails_the_check_with_the_law_and_the_place(lamella: Lamella, plan_file: Path) -> None:
    plan = json.loads(plan_file.read_text())
    plan["functions"][1]["memory_mb"] = 64
    plan["functions"][1]["peak_mb"] = 300.0
    plan_file.write_text(json.dumps(plan))
    done = lamella("check", plan_file)
    assert done.code == 4
    assert "law 4: stage-2 is given 64 MB and needs 300 MB" in done.err
    as_json = lamella("check", plan_file, "--json")
    assert as_json.code == 4
    assert not as_json.document["ok"]
    assert "law 4" in as_json.document["broken"][0]


def test_a_plan_measured_elsewhere_is_noted(lamella: Lamella, plan_file: Path) -> None:
    plan = json.loads(plan_file.read_text())
    plan["machine"]["cpu"] = "Some Other CPU"
    plan_file.write_text(json.dumps(plan))
    done = lamella("check", plan_file)
    assert done.code == 0
    assert "note: its profile was measured on another machine (Some Other CPU)" in done.out


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"lamella": 1', "\x00\xff"])
def test_a_document_that_is_no_plan_is_usage(lamella: Lamella, tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    for argv in (("check", path), ("package", path, "-o", tmp_path / "package"), ("run", path, "--input", path)):
        done = lamella(*argv)
        assert done.code == 2
        assert "plan.json" in done.err


def test_a_plan_of_a_later_schema_is_refused(lamella: Lamella, plan_file: Path) -> None:
    plan = json.loads(plan_file.read_text())
    plan_file.write_text(json.dumps(plan | {"lamella": 2}))
    done = lamella("check", plan_file)
    assert done.code == 2
    assert "schema version 2, this lamella reads version 1" in done.err


def test_a_document_that_cannot_be_written_is_an_error(lamella: Lamella, graph: Graph, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = lamella(*PLAN, "-o", tmp_path / "file" / "plan.json")
    assert done.code == 1
    assert "cannot write" in done.err


def test_ctrl_c_says_what_is_kept(lamella: Lamella, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lamella.cli.clean.detect", interrupted)
    done = lamella("clean")
    assert done.code == 130
    assert "interrupted; what was measured is kept" in done.err
