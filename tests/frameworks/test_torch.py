"""torch modules in: exported, equal to the original at every batch, and refused where they are not."""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lamella
from lamella.errors import ConfigError, ExportRefused, ModelError, UnboundShape
from lamella.graph.cuts import legal_cuts
from lamella.graph.extract import Extractor
from lamella.graph.model import Graph
from lamella.graph.requests import unknown_ranges
from tests.frameworks.nets import Small, block, small
from tests.unit.graph.compose import answer, worst_share

TOLERANCE = 1e-4
FREE = {"x": ("N", 3, 16, 16)}


def divided(graph: Graph, feeds: Mapping[str, np.ndarray], directory: Path) -> dict[str, np.ndarray]:
    """The answer of two slices, cut in the middle."""
    cuts = legal_cuts(graph)[0]
    return dict(answer(Extractor(graph), [cuts[len(cuts) // 2].position], dict(feeds), directory))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_slices_of_a_cnn_with_a_free_batch_answer_as_the_module(batch: int, tmp_path: Path) -> None:
    module = small()
    graph = lamella.load(module, shapes=FREE)
    assert graph.batchable
    assert graph.outputs == ("logits", "features")
    x = np.random.default_rng(batch).standard_normal((batch, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        want = {name: tensor.numpy() for name, tensor in module.eval()(torch.from_numpy(x)).items()}
    assert worst_share(divided(graph, {"x": x}, tmp_path), want) < TOLERANCE


def test_slices_of_a_transformer_block_answer_as_the_module_under_a_mask(tmp_path: Path) -> None:
    module, example = block()
    graph = lamella.load(module, example, shapes={"ids": ("N", 12), "attention_mask": ("N", 12)})
    assert graph.outputs == ("output_0", "output_1")
    assert unknown_ranges(graph) == []  # the example shows which ids are valid
    assert {s.name: (s.low, s.high) for s in graph.input_specs}["attention_mask"] == (0, 2)
    ids = np.random.default_rng(1).integers(0, 50, (3, 12))
    mask = (np.arange(12) < np.array([[12], [5], [7]])).astype(np.int64)
    with torch.no_grad():
        first, second = module.eval()(torch.from_numpy(ids), torch.from_numpy(mask))
    want = {"output_0": first.numpy(), "output_1": second.numpy()}
    assert worst_share(divided(graph, {"ids": ids, "attention_mask": mask}, tmp_path), want) < TOLERANCE


def test_each_part_is_put_back_into_the_mode_it_was_in() -> None:
    module = small().train()
    module.norm.eval()
    before = [part.training for part in module.modules()]
    lamella.load(module, shapes=FREE)
    assert [part.training for part in module.modules()] == before
    assert torch.is_grad_enabled()


def test_an_unchanged_module_is_found_again_and_a_changed_one_is_another() -> None:
    first = lamella.load(small(), shapes=FREE)
    assert lamella.load(small(), shapes=FREE).hash == first.hash
    changed = small()
    with torch.no_grad():
        changed.head.bias[0] += 1e-3
    assert lamella.load(changed, shapes=FREE).hash != first.hash


def test_the_kept_file_says_nothing_of_where_its_source_lies() -> None:
    graph = lamella.load(small(), shapes=FREE)
    assert __file__.encode() not in graph.source.read_bytes()
    assert b"site-packages" not in graph.source.read_bytes()


@dataclasses.dataclass
class Answer:
    score: torch.Tensor
    parts: list[torch.Tensor]
    nothing: None = None


Pair = namedtuple("Pair", "left right")


class Returns(nn.Module):
    """A module that packs its two tensors as it is told."""

    def __init__(self, pack: Any) -> None:
        super().__init__()
        self.linear, self.pack = nn.Linear(4, 4), pack

    def forward(self, x: torch.Tensor) -> Any:
        y = self.linear(x)
        return self.pack(y, torch.relu(y))


@pytest.mark.parametrize(
    ("pack", "names"),
    [
        (lambda a, b: a + b, ("output",)),
        (lambda a, b: (a, b), ("output_0", "output_1")),
        (lambda a, b: [a, (b, None)], ("output_0", "output_1.0")),
        (lambda a, b: {"x": a, "y": b}, ("x_out", "y")),
        (Pair, ("left", "right")),
        (lambda a, b: Answer(a, [b]), ("score", "parts.0")),
    ],
)
def test_an_answer_may_have_any_structure_and_its_tensors_are_named_after_it(pack: Any, names: tuple[str, ...]) -> None:
    assert lamella.load(Returns(pack), shapes={"x": (2, 4)}).outputs == names


@pytest.mark.parametrize("pack", [lambda a, b: (a, 3), lambda a, b: "text", lambda a, b: ()])
def test_an_answer_that_is_not_of_tensors_is_refused(pack: Any) -> None:
    with pytest.raises(ModelError, match=r"carries tensors only|returns no tensor"):
        lamella.load(Returns(pack), shapes={"x": (2, 4)})


class Wrong(nn.Module):
    """Answers that an export cannot keep, each in its way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.how, self.calls = nn.Linear(4, 4), how, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        match self.how:
            case "values":
                return y if x.sum() > 0 else -y
            case "chance":
                return torch.nn.functional.dropout(y, 0.5, training=True)
            case "state":
                self.calls += 1
                return y * self.calls
            case "traced":
                return y * 1.01 if torch.compiler.is_exporting() else y
            case "rows":
                return y.reshape(2, 4)
            case _:
                raise RuntimeError("only on Tuesdays")


def test_a_disagreement_is_refused_with_the_difference() -> None:
    with pytest.raises(ExportRefused, match=r"answers differently.*'output' differs, by .*e-03 of its range") as caught:
        lamella.load(Wrong("traced"), shapes={"x": (2, 4)})
    assert "1e-04 is allowed" in caught.value.message


@pytest.mark.parametrize("how", ["chance", "state"])
def test_a_model_that_answers_differently_each_time_is_refused(how: str) -> None:
    with pytest.raises(ExportRefused, match="the same request differently each time"):
        lamella.load(Wrong(how), shapes={"x": (2, 4)})


def test_control_flow_on_values_is_refused_with_torchs_line_and_the_users() -> None:
    with pytest.raises(ExportRefused, match=r"depends on the values of a tensor: .*data-dependent") as caught:
        lamella.load(Wrong("values"), shapes={"x": (2, 4)})
    assert "test_torch.py, line" in caught.value.where
    assert "torch.where" in caught.value.try_


def test_a_batch_that_the_code_fixes_is_told_with_the_shape_to_give() -> None:
    with pytest.raises(ExportRefused, match="the batch axis cannot stay free") as caught:
        lamella.load(Wrong("rows"), shapes={"x": ("N", 4)})
    assert caught.value.try_ == "--shape x=1,4"
    assert not lamella.load(Wrong("rows"), shapes={"x": (2, 4)}).batchable


def test_a_module_that_raises_is_refused_with_the_users_line() -> None:
    with pytest.raises(ExportRefused, match="refuses its example: RuntimeError: only on Tuesdays") as caught:
        lamella.load(Wrong("raises"), shapes={"x": (2, 4)})
    assert "test_torch.py, line" in caught.value.where


def test_without_an_example_or_a_shape_the_error_names_the_parameters() -> None:
    with pytest.raises(UnboundShape, match=r"Small.forward takes x; nothing is known of x") as caught:
        lamella.load(Small())
    assert caught.value.try_.startswith("--shape x=N,3,224,224")
    with pytest.raises(UnboundShape, match="no input 'y'; its inputs are x"):
        lamella.load(Small(), shapes={"y": (1, 3, 16, 16)})
    with pytest.raises(UnboundShape, match=r"--shape gives \['N', 4\], its example has the shape \[1, 3, 16, 16\]"):
        lamella.load(Small(), torch.zeros(1, 3, 16, 16), shapes={"x": ("N", 4)})
    with pytest.raises(ModelError, match="'x' is a str"):
        lamella.load(Small(), "picture")


def test_an_object_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="a dict is no model that lamella reads"):
        lamella.load({})


def test_weights_beyond_protobufs_limit_lie_beside_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lamella.load(small(), shapes=FREE)
    save = torch.onnx.ONNXProgram.save
    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", lambda self, path: save(self, path, external_data=True))
    beside = lamella.load(small(), shapes=FREE)
    assert (beside.source.parent / f"{beside.source.name}.data").is_file()
    assert beside.weights_file.read_bytes() == whole.weights_file.read_bytes()
