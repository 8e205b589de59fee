"""Each example runs as its README says."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from lamella.cli.app import run

ROOT = Path(__file__).resolve().parents[2]
OWN_MODEL = ROOT / "examples" / "own_model"


def test_the_commands_of_own_model_answer_as_the_file_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, OWN_MODEL / "make_model.py"], check=True)
    commands = re.findall(r"^\$ lamella (.*)$", (OWN_MODEL / "README.md").read_text(), re.M)
    assert len(commands) == 7
    for command in commands:
        assert run(shlex.split(command)) == 0, (command, capsys.readouterr().err)
        if command.startswith("inspect"):
            assert "1+1" in capsys.readouterr().out
    with np.load("x.npz") as request, np.load("y.npz") as answer:
        (expected,) = ort.InferenceSession("model.onnx").run(None, dict(request))
        np.testing.assert_allclose(answer["y"], expected, atol=1e-4 * np.ptp(expected))
