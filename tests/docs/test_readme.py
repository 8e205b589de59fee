"""Every command of README.md and docs/*.md runs.

Substitution: the model of each line, `zoo:NAME`, `nets:NAME` or `model.onnx`, is replaced by zoo:cnn-tiny, and its
`--shape` by that model's; the commands, options and their order are the page's own. `compare` sends at most four
requests, `profile` and `calibrate` have a second or less. `store serve` and `store exec`, which stay or become another
program, are processes of their own, and the files net.onnx and app.py are there. Blocks fenced as `text` are not run:
other programs, and errors shown on purpose.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lamella.cli.app import run
from tests.processes import running

ROOT = Path(__file__).resolve().parents[2]
TINY = "zoo:cnn-tiny"
SHAPE = "x=N,3,32,32"
REQUESTS = "4"
NOT_RUN = {"demo"}


def commands(page: Path) -> list[list[str]]:
    """The `$ lamella ...` lines of the page's console blocks, as argument lists."""
    blocks = re.findall(r"^```console\n(.*?)^```", page.read_text(), re.M | re.S)
    return [shlex.split(line) for block in blocks for line in re.findall(r"^\$ lamella (.*)$", block, re.M)]


def with_tiny_model(words: list[str]) -> list[str]:
    """The command with the model replaced, and few requests."""
    changed = [TINY if re.fullmatch(r"(zoo|nets):\S+|model\.onnx", w) else w for w in words]
    for option, value in (("--shape", SHAPE), ("--requests", REQUESTS)):
        if option in changed:
            changed[changed.index(option) + 1] = value
    if changed[0] == "calibrate":
        changed[changed.index("--budget-s") + 1] = "1"
    if changed[0] == "profile" and "--budget-s" not in changed:
        changed += ["--budget-s", "0.1"]
    if changed[0] == "compare" and "--requests" not in changed:
        changed += ["--requests", REQUESTS]
    return changed


LAMELLA = [sys.executable, "-c", "from lamella.cli import main; main()"]
APP = """
import numpy as np, onnxruntime as ort
session = ort.InferenceSession("net.onnx")
session.run(None, {"x": np.ones((1, 4), np.float32)})
assert session._model_path is None, "not from the store"
"""


@contextmanager
def serving(words: list[str]) -> Iterator[None]:
    """A daemon of the store, until it ends by itself or the page does."""
    with running([*LAMELLA, *words], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout
        assert daemon.stdout.readline().startswith(b"serving"), words
        yield
        daemon.terminate()


def write_program() -> None:
    """net.onnx, a model, and app.py, a program that knows nothing of the store."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "net", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), "net.onnx")
    Path("app.py").write_text(APP)


PAGES = [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if commands(p)]


def test_the_readme_shows_every_step_of_the_workflow() -> None:
    shown = {words[0] for words in commands(ROOT / "README.md")}
    assert shown >= {"inspect", "profile", "plan", "check", "package", "run", "compare", "clean"}


def test_the_readme_has_a_place_for_results() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.index("<!-- results:begin -->") < text.index("<!-- results:end -->")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_of_a_page_runs(
    page: Path, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", x=np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32))
    np.savez("data.npz", x=np.random.default_rng(1).standard_normal((8, 3, 32, 32)).astype(np.float32))
    monkeypatch.setenv("LAMELLA_STORE", str(tmp_path / "store.socket"))
    write_program()
    with ExitStack() as daemons:
        for words in commands(page):
            if words[:2] == ["store", "serve"]:
                daemons.enter_context(serving([*words, "--root", str(tmp_path / "store")]))
            elif words[:3] == ["store", "exec", "python"]:
                subprocess.run([*LAMELLA, *words[:2], sys.executable, *words[3:]], check=True, timeout=120)
            elif words[0] not in NOT_RUN:
                assert run(with_tiny_model(words)) == 0, (" ".join(words), capsys.readouterr().err)
