"""`package.module:attribute`: what it may be, and each way it can be wrong; no framework needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lamella
from lamella.errors import ConfigError, ModelError
from lamella.frameworks.attribute import find, is_attribute

MODULE = """
import math

number = 3
def needs(width): ...
def fails(): raise RuntimeError("no checkpoint\\nmore")
def leaves(): raise SystemExit(0)
def late(): import keras
class space:
    number = 4
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with modules; what is imported from it is forgotten afterwards."""
    (tmp_path / "own_nets.py").write_text(MODULE)
    (tmp_path / "own_broken.py").write_text("x = 1\nraise ValueError('bad weights')\n")
    (tmp_path / "own_script.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "own_needs.py").write_text("import absent_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    yield tmp_path
    for name in [n for n in sys.modules if n.startswith("own_")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nets:model", True),
        ("package.module:space.model", True),
        ("zoo:vgg19", False),
        ("model.onnx", False),
        ("dir/model.onnx", False),
        ("a:b:c", False),
        ("nets:", False),
        (":model", False),
        ("1nets:model", False),
        ("nets:model.onnx-2", False),
    ],
)
def test_which_texts_are_attributes(text: str, expected: bool) -> None:
    assert is_attribute(text) is expected


def test_a_file_of_that_name_is_the_file(here: Path) -> None:
    (here / "nets:model").touch()
    assert not is_attribute("nets:model")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("own_absent:model", "there is no module 'own_absent'"),
        ("own_absent.inner:model", "there is no module 'own_absent'"),
        ("own_nets:numbr", "own_nets has no attribute 'numbr'; did you mean 'number'?"),
        ("own_nets:space.numbr", "space has no attribute 'numbr'; did you mean 'number'?"),
        ("own_nets:number", "own_nets:number is a int, not a torch.nn.Module or a Keras model"),
        ("own_nets:space.number", "own_nets:space.number is a int"),
        ("own_nets:needs", "cannot be called without arguments: missing a required argument: 'width'"),
        ("own_nets:fails", "own_nets:fails\\(\\) raises RuntimeError: no checkpoint\n"),
        ("own_broken:model", "importing own_broken raises ValueError: bad weights\n"),
        ("own_script:model", "importing own_script raises SystemExit: 0\n"),
        ("own_nets:leaves", "own_nets:leaves\\(\\) raises SystemExit: 0\n"),
        ("own_needs:model", "importing own_needs raises ModuleNotFoundError: No module named 'absent_package'"),
    ],
)
def test_each_way_a_name_can_be_wrong(here: Path, text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        find(text)


def test_what_fails_in_the_users_code_is_told_with_its_line(here: Path) -> None:
    with pytest.raises(ModelError) as caught:
        find("own_broken:model")
    assert caught.value.where == f"{here / 'own_broken.py'}, line 2"


def test_a_missing_model_says_all_three_forms(here: Path) -> None:
    with pytest.raises(ModelError) as caught:
        lamella.load("nowhere.onnx")
    assert "zoo:NAME" in caught.value.try_
    assert "package.module:attribute" in caught.value.try_


def test_examples_are_not_for_files_and_other_objects_are_no_models(here: Path) -> None:
    with pytest.raises(ConfigError, match="an ONNX file declares its inputs"):
        lamella.load("zoo:cnn-tiny", example_inputs=[1])
    with pytest.raises(ConfigError, match="a list is no model"):
        lamella.load([])


def test_files_and_zoo_models_load_as_they_are_imported(cache_dir: Path) -> None:
    graph = lamella.load("zoo:cnn-tiny", shapes={"x": (2, 3, 32, 32)})
    assert not graph.batchable
    assert lamella.load(graph.skeleton).outputs == graph.outputs
