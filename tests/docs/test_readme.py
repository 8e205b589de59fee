"""Every command of README.md and docs/*.md runs.

Substitution: the model of each line, `zoo:NAME`, `nets:NAME` or `model.onnx`, is replaced by zoo:cnn-tiny, and its
`--shape` by that model's; the commands, options and their order are the page's own. `compare` sends at most four
requests. Blocks fenced as `text` are not run: other programs, and errors shown on purpose.
"""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from lamella.cli.app import run

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
    if changed[0] == "compare" and "--requests" not in changed:
        changed += ["--requests", REQUESTS]
    return changed


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
    for words in commands(page):
        if words[0] not in NOT_RUN:
            assert run(with_tiny_model(words)) == 0, (" ".join(words), capsys.readouterr().err)
