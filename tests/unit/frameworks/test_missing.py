"""The core works without torch and keras, and says which extra a model needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lamella.errors import MissingExtra
from lamella.frameworks.extras import EXTRAS, missing, require

BLOCKED = f"import sys; sys.modules.update(dict.fromkeys({tuple(EXTRAS)!r}))\n"  # None: as if it were not there
USES_CORE = """
import lamella
from lamella.cli.app import run

graph = lamella.load("zoo:cnn-tiny")
assert graph.operators and run(["inspect", "zoo:cnn-tiny"]) == 0
"""


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in which the frameworks cannot be imported, whatever is installed."""
    return subprocess.run([sys.executable, "-c", BLOCKED + code], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_the_core_imports_no_framework(cache_dir: Path, tmp_path: Path) -> None:
    done = python(USES_CORE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cnn-tiny: 13 operators" in done.stdout


@pytest.mark.parametrize(("package", "extra"), [("torch", "torch"), ("keras", "keras")])
def test_a_model_whose_framework_is_absent_names_the_extra(package: str, extra: str, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(f"import {package}\nmodel = None\n")
    done = python("from lamella.cli.app import run; sys.exit(run(['inspect', 'nets:model']))", tmp_path)
    assert done.returncode == 2
    assert f"the model needs {package}, which is not installed" in done.stderr
    assert f"pip install 'lamella[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_absent_package_that_a_framework_needs_is_named_too() -> None:
    with pytest.raises(MissingExtra, match="needs absent_framework"):
        require("absent_framework.part")
    assert missing("onnxscript._internal").try_ == "pip install 'lamella[torch]'"


def test_the_packages_own_module_loads_nothing_until_load_is_asked_for(tmp_path: Path) -> None:
    code = "import lamella; print('onnx' in sys.modules); lamella.load; print('onnx' in sys.modules)"
    assert python(code, tmp_path).stdout.split() == ["False", "True"]


def test_what_lamella_has_not_is_an_attribute_error() -> None:
    import lamella

    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        _ = lamella.laod  # type: ignore[attr-defined]
