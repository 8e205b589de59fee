"""The guide's section on torch and Keras runs as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lamella.cli.app import run

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide.md"


def test_the_guides_module_its_command_and_its_load_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = GUIDE.read_text().split("### torch and Keras")[1].split("\n## ")[0]
    module, script = re.findall(r"```python\n(.*?)```", section, re.S)
    (command,) = re.findall(r"^\$ lamella (.*)$", section, re.M)
    own = "guide_nets"  # `nets` is another module's name here
    (tmp_path / f"{own}.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    assert run(shlex.split(command.replace("nets:", f"{own}:"))) == 0
    space: dict[str, object] = {}
    exec(compile(script.replace("from nets", f"from {own}"), "guide", "exec"), space)
    assert getattr(space["graph"], "inputs") == ("input",)  # noqa: B009
