"""Import: what is refused and in which words, what is cached, and what is known of a graph afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

from lamella.cli.options import parse_shapes
from lamella.errors import ModelError, StorageError, UnboundShape
from lamella.graph.extract import Extractor, link_model
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.optimise import optimise
from lamella.graph.requests import request
from lamella.package.layout import WeightsFile
from lamella.runtime.function import open_session
from tests.unit.graph.onnx_models import (
    counted,
    dense,
    filled,
    graph_of,
    model,
    node,
    save,
    with_external_data,
)


def entries(cache: Path) -> list[str]:
    models = cache / "models"
    return sorted(p.name for p in models.iterdir()) if models.exists() else []


def softmax_over_rows() -> ModelProto:
    return model([node("Softmax", ["x"], ["y"], axis=0)], {"x": ["rows", 4]}, {"y": ["rows", 4]})


# ------------------------------------------------------------------------------------------------ what is refused


def test_a_missing_file_is_named_with_what_to_give_instead(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist") as caught:
        import_model(str(tmp_path / "nowhere.onnx"))
    assert "nowhere.onnx" in caught.value.message
    assert "zoo:NAME" in caught.value.try_


def test_a_directory_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a directory"):
        import_model(str(tmp_path))


def test_an_unknown_zoo_model_is_refused_with_the_closest_name() -> None:
    with pytest.raises(ModelError, match="did you mean 'vgg19'"):
        import_model("zoo:vgg91")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused_with_its_size(share: float, tmp_path: Path, own_cache: Path) -> None:
    path = save(dense(), tmp_path / "cut.onnx")
    data = path.read_bytes()[: int(path.stat().st_size * share)]
    path.write_bytes(data)
    with pytest.raises(ModelError, match=rf"cut\.onnx is not an ONNX model, or it is cut short \({len(data)} bytes\)"):
        import_model(str(path))
    assert entries(own_cache) == []


@pytest.mark.parametrize("text", ["this is no model\n", '{"nodes": []}', "", "\n" * 50], ids=["text", "json", "0", "n"])
def test_a_file_that_is_not_onnx_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.onnx"
    path.write_text(text)
    with pytest.raises(ModelError, match=r"notes\.onnx"):
        import_model(str(path))


def test_an_operator_nobody_knows_is_named(tmp_path: Path, own_cache: Path) -> None:
    with pytest.raises(ModelError, match="Frobnicate"):
        graph_of(model([node("Frobnicate", ["x"], ["y"])], {"x": [1, 4]}, {"y": [1, 4]}), tmp_path)
    assert entries(own_cache) == []


def test_a_domain_nobody_knows_is_named(tmp_path: Path) -> None:
    proto = model([node("Relu", ["x"], ["y"], domain="acme.ops")], {"x": [1, 4]}, {"y": [1, 4]})
    proto.opset_import.append(helper.make_opsetid("acme.ops", 1))
    with pytest.raises(ModelError, match=r"acme\.ops"):
        graph_of(proto, tmp_path)


def test_shapes_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    proto = model([node("MatMul", ["x", "w"], ["y"])], {"x": [1, 4]}, {"y": None}, {"w": filled(5, 3)})
    with pytest.raises(ModelError):
        graph_of(proto, tmp_path)


def test_a_missing_external_data_file_is_named_with_where_to_put_it(tmp_path: Path) -> None:
    path = with_external_data(dense(), tmp_path / "model.onnx")
    (tmp_path / "weights.data").unlink()
    with pytest.raises(ModelError, match=r"external data file 'weights\.data' is missing") as caught:
        import_model(str(path))
    assert str(tmp_path) in caught.value.try_


def test_a_truncated_external_data_file_says_how_much_is_missing(tmp_path: Path) -> None:
    path = with_external_data(dense(), tmp_path / "model.onnx")
    data = tmp_path / "weights.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ModelError, match=rf"has {data.stat().st_size} bytes, the model needs \d+: truncated"):
        import_model(str(path))


@pytest.mark.parametrize("absolute", [False, True])
def test_external_data_outside_the_models_directory_is_refused(absolute: bool, tmp_path: Path) -> None:
    path = with_external_data(dense(), tmp_path / "model.onnx")
    (tmp_path / "inside").mkdir()
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(tmp_path / "weights.data") if absolute else "../weights.data"
    with pytest.raises(ModelError, match="outside the model's directory"):
        import_model(str(save(proto, tmp_path / "inside" / "model.onnx")))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("offset", "-4", "offset '-4' is no number of bytes"),
        ("offset", "abc", "offset 'abc' is no number of bytes"),
        ("offset", "9" * 30, r"has 3840 bytes, the model needs \d{31}.*offset"),
        ("length", "-1", "length '-1' is no number of bytes"),
        ("length", "99999", "has 3840 bytes, the model needs 99999"),
        ("length", "4", r"the model says 4 bytes, float32 \[8, 40\] takes 1280"),
        ("location", None, "none is named"),
        ("location", "a" * 300, "is missing"),
        ("location", "a\0b", "is missing"),
        ("location", "/etc/passwd", "outside the model's directory"),
        ("location", ".", "is missing"),
    ],
)
def test_external_data_that_makes_no_sense_is_refused_with_the_weight(
    key: str, value: str | None, said: str, tmp_path: Path, own_cache: Path
) -> None:
    path = with_external_data(dense(), tmp_path / "model.onnx")
    proto = onnx.load(path, load_external_data=False)
    entries_of_w0 = proto.graph.initializer[0].external_data
    kept = {e.key: e.value for e in entries_of_w0 if e.key != key} | ({key: value} if value is not None else {})
    del entries_of_w0[:]
    entries_of_w0.extend(onnx.StringStringEntryProto(key=k, value=v) for k, v in kept.items())
    with pytest.raises(ModelError, match=said) as caught:
        import_model(str(save(proto, path)))
    assert caught.value.where == "weight 'w0'"
    assert caught.value.try_
    assert entries(own_cache) == []


def test_external_data_inside_nodes_is_read_and_hashed_too(tmp_path: Path) -> None:
    constant = node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(filled(24, 24)))
    proto = model([constant, node("MatMul", ["x", "c"], ["y"])], {"x": [1, 24]}, {"y": None})
    path = tmp_path / "model.onnx"
    onnx.save_model(
        proto, path, save_as_external_data=True, location="nodes.data", size_threshold=0, convert_attribute=True
    )
    graph = import_model(str(path))
    weight = graph.weights["c"]
    found = np.memmap(graph.weights_file, weight.dtype, "r", weight.offset, weight.shape)
    np.testing.assert_array_equal(found, filled(24, 24))
    (tmp_path / "nodes.data").write_bytes(filled(24, 24, seed=5).tobytes())
    assert import_model(str(path)).hash != graph.hash


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("kind", [0, 99])
def test_a_weight_of_a_type_nobody_knows_is_named(kind: int, external: bool, tmp_path: Path) -> None:
    path = with_external_data(dense(), tmp_path / "m.onnx") if external else save(dense(), tmp_path / "m.onnx")
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].data_type = kind
    with pytest.raises(ModelError, match=f"element type {kind} is none that ONNX knows") as caught:
        import_model(str(save(proto, path)))
    assert caught.value.where == "weight 'w0'"


@pytest.mark.parametrize("dims", [(-8, 40), (80, 40)])
def test_a_weight_whose_shape_does_not_fit_its_bytes_is_named(dims: tuple[int, int], tmp_path: Path) -> None:
    proto = dense()
    proto.graph.initializer[0].dims[:] = dims
    with pytest.raises(ModelError, match=r"weight 'w0'.*shape"):
        graph_of(proto, tmp_path)


def test_an_input_that_no_request_can_bring_is_refused(tmp_path: Path) -> None:
    untyped, sequence, unknown, text = dense(), dense(), dense(), dense()
    untyped.graph.input[0].ClearField("type")
    sequence.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    unknown.graph.input[0].type.tensor_type.elem_type = 99
    text.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    table = {"has no type": untyped, "is a sequence": sequence, "element type 99": unknown, "takes strings": text}
    for said, proto in table.items():
        with pytest.raises(ModelError, match=said) as caught:
            graph_of(proto, tmp_path)
        assert caught.value.where == "input 'x'"


def test_an_input_of_a_type_that_numpy_lacks_is_refused(tmp_path: Path) -> None:
    nodes = [node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)]
    proto = model(nodes, {"x": [1, 4]}, {"y": [1, 4]}, kinds={"x": TensorProto.BFLOAT16})
    with pytest.raises(ModelError, match="input 'x' takes bfloat16"):
        graph_of(proto, tmp_path)


@pytest.mark.parametrize("rows", [1, "N"])
def test_an_output_that_no_answer_can_carry_is_refused(rows: int | str, tmp_path: Path, own_cache: Path) -> None:
    parts = np.array([1, 3])
    sequence = model([node("SplitToSequence", ["x", "parts"], ["y"], axis=1)], {"x": [rows, 4]}, {}, {"parts": parts})
    sequence.graph.output.append(helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None))
    cast = node("Cast", ["x"], ["y"], to=TensorProto.STRING)
    text = model([cast], {"x": [rows, 4]}, {"y": [rows, 4]}, kinds={"y": TensorProto.STRING})
    for said, proto in {r"seq\(tensor\(float\)\)": sequence, r"tensor\(string\)": text}.items():
        with pytest.raises(ModelError, match=f"output 'y' is a {said}") as caught:
            graph_of(proto, tmp_path, {"x": (rows, 4)})
        assert caught.value.where == "output 'y'"
    assert entries(own_cache) == []


def test_a_tensor_of_a_type_that_numpy_lacks_is_named(tmp_path: Path) -> None:
    nodes = [node("Cast", ["x"], ["b"], to=TensorProto.BFLOAT16), node("Cast", ["b"], ["y"], to=TensorProto.FLOAT)]
    with pytest.raises(ModelError, match=r"tensor 'b' is a tensor\(bfloat16\)") as caught:
        graph_of(model(nodes, {"x": [1, 4]}, {"y": [1, 4]}), tmp_path)
    assert "float32" in caught.value.try_


def stored_as(kind: int, values: np.ndarray, reader: NodeProto) -> ModelProto:
    """`y = x @ reader(q)`, q a weight of a type that numpy lacks."""
    proto = model(
        [reader, node("MatMul", ["x", "w"], ["y"])], {"x": [1, 64]}, {"y": [1, 64]}, {"s": np.array(0.5, np.float32)}
    )
    proto.graph.initializer.append(helper.make_tensor("q", kind, values.shape, values.reshape(-1)))
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("", 21))
    return proto


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.INT4, TensorProto.FLOAT8E4M3FN])
def test_a_weight_of_a_type_that_numpy_lacks_is_converted_where_the_model_does(kind: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-8, 8, (64, 64))
    graph = graph_of(stored_as(kind, values, node("Cast", ["q"], ["w"], to=TensorProto.FLOAT)), tmp_path)
    weight = graph.weights["w"]
    found = np.memmap(graph.weights_file, weight.dtype, "r", weight.offset, weight.shape)
    np.testing.assert_array_equal(found, values.astype(np.float32))


def test_a_constant_that_would_be_computed_in_such_a_type_is_refused(tmp_path: Path) -> None:
    proto = stored_as(TensorProto.BFLOAT16, np.zeros((64, 64)), node("Transpose", ["q"], ["w"]))
    proto.graph.node.insert(1, node("Cast", ["w"], ["v"], to=TensorProto.FLOAT))
    proto.graph.node[2].input[1] = "v"
    proto.graph.output.append(helper.make_tensor_value_info("w", TensorProto.BFLOAT16, [64, 64]))
    with pytest.raises(ModelError, match=r"constant 'w' would be computed as tensor\(bfloat16\)"):
        graph_of(proto, tmp_path)


def test_four_bit_weights_stay_packed(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-8, 8, (64, 64))
    proto = stored_as(TensorProto.INT4, values, node("DequantizeLinear", ["q", "s"], ["w"]))
    graph = graph_of(proto, tmp_path)
    assert graph.weights["q"].bytes == values.size // 2
    x = filled(1, 64)
    plain = ort.SessionOptions()
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    want = ort.InferenceSession(proto.SerializeToString(), plain).run(None, {"x": x})[0]
    exact = ort.InferenceSession(graph.directory / "graph.onnx", plain).run(None, {"x": x})[0]
    np.testing.assert_array_equal(exact, want)

    optimised, weights = optimise(Extractor(graph).write(0, len(graph.operators), tmp_path / "slice"))
    with WeightsFile(tmp_path / "weights.bin") as file:
        file.attach(optimised, weights)
    (tmp_path / "packaged.onnx").write_bytes(optimised.SerializeToString())
    found = ort.InferenceSession(tmp_path / "packaged.onnx", plain).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, want, atol=1e-4 * float(np.ptp(want)))


def test_a_sparse_weight_is_named(tmp_path: Path) -> None:
    proto = model([node("MatMul", ["x", "w"], ["y"])], {"x": [1, 4]}, {"y": [1, 4]})
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    at = helper.make_tensor("at", TensorProto.INT64, [1], [0])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, at, [4, 4]))
    with pytest.raises(ModelError, match="weight 'w' is stored sparse"):
        graph_of(proto, tmp_path)


def test_nan_among_bfloat16_weights_is_found(tmp_path: Path) -> None:
    proto = stored_as(TensorProto.BFLOAT16, np.full((64, 64), np.nan), node("DequantizeLinear", ["x", "s"], ["w"]))
    del proto.graph.node[0]
    proto.graph.node.insert(0, node("If", ["c"], ["w"], **branches_reading("q")))
    proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    with pytest.raises(ModelError, match="weight 'q' holds 4096 NaN"):
        graph_of(proto, tmp_path)


def branches_reading(name: str) -> dict[str, onnx.GraphProto]:
    """Branches of an If that convert an outer value to float32."""
    out = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    branch = helper.make_graph([node("Cast", [name], ["b"], to=TensorProto.FLOAT)], "inner", [], [out])
    return {"then_branch": branch, "else_branch": branch}


def test_an_operator_set_that_is_not_named_is_not_blamed_on_shapes(tmp_path: Path) -> None:
    proto = model([node("Relu", ["x"], ["y"], domain="acme.ops")], {"x": [1, 4]}, {"y": [1, 4]})
    with pytest.raises(ModelError, match=r"operator set it does not name: .*acme\.ops") as caught:
        graph_of(proto, tmp_path)
    assert "--shape" not in caught.value.try_


def test_what_the_runtime_refuses_does_not_name_a_temporary_file(tmp_path: Path) -> None:
    proto = dense()
    proto.opset_import[0].version = 99
    with pytest.raises(ModelError, match="the runtime refuses the model: ONNX Runtime only") as caught:
        graph_of(proto, tmp_path)
    assert "exposed.onnx" not in caught.value.message


def test_an_output_without_elements_leaves_the_batch_axis_free(tmp_path: Path) -> None:
    bounds = {"from": np.array([0]), "to": np.array([0]), "axis": np.array([1])}
    proto = model([node("Slice", ["x", *bounds], ["y"])], {"x": ["N", 4]}, {"y": None}, bounds)
    assert graph_of(proto, tmp_path, {"x": ("N", 4)}).tensors["y"].shape == ("N", 0)


@pytest.mark.parametrize("lacks", ["value", "output"])
def test_a_constant_node_without_its_value_or_output_is_named(lacks: str, tmp_path: Path) -> None:
    constant = node("Constant", [], ["c"], value_float=1.0, name="broken")
    if lacks == "value":
        del constant.attribute[:]
    else:
        del constant.output[:]
    proto = model([constant, node("Relu", ["x"], ["y"])], {"x": [1, 4]}, {"y": None})
    with pytest.raises(ModelError, match=f"a Constant node has no {lacks}") as caught:
        graph_of(proto, tmp_path)
    assert caught.value.where == "operator broken"


def test_a_file_that_the_importer_trips_over_is_judged_by_the_standards_checker(tmp_path: Path) -> None:
    proto = model([node("Identity", ["x"], []), node("Relu", ["x"], ["y"])], {"x": [1, 4]}, {"y": [1, 4]})
    with pytest.raises(ModelError, match=r"model\.onnx breaks the ONNX standard: .*Identity"):
        graph_of(proto, tmp_path)


def test_constants_too_large_to_compute_are_refused_without_the_runtimes_own_source_lines(tmp_path: Path) -> None:
    nodes = [node("ConstantOfShape", ["s"], ["c"]), node("Add", ["x", "c"], ["y"])]
    proto = model(nodes, {"x": [1]}, {"y": None}, {"s": np.array([1 << 45], np.int64)})
    with pytest.raises(ModelError, match=r"constants of the model cannot be computed: .*buffer of size") as caught:
        graph_of(proto, tmp_path)
    assert ".cc" not in caught.value.message
    assert caught.value.where == "operators ConstantOfShape"


def test_nan_weights_are_refused_with_the_weight_and_their_count(tmp_path: Path) -> None:
    weight = filled(24, 24)
    weight[3, :5] = np.nan
    proto = model([node("MatMul", ["x", "w"], ["y"])], {"x": [1, 24]}, {"y": None}, {"w": weight})
    with pytest.raises(ModelError, match="weight 'w' holds 5 NaN of 576 values"):
        graph_of(proto, tmp_path)


def test_infinite_weights_are_the_models_own_business(tmp_path: Path) -> None:
    weight = np.array([[0, -np.inf, np.inf, 1]], np.float32)
    graph = graph_of(model([node("Min", ["x", "w"], ["y"])], {"x": [1, 4]}, {"y": None}, {"w": weight}), tmp_path)
    assert list(graph.weights) == ["w"]


# ------------------------------------------------------------------------------------------------ request shapes


@pytest.mark.parametrize("shape", [["batch", 4], [None, 4], ["batch", "width"]])
def test_an_unbound_dimension_is_refused_with_an_option_that_works(shape: list[int | str], tmp_path: Path) -> None:
    path = save(model([node("Relu", ["x"], ["y"])], {"x": shape}, {"y": None}), tmp_path / "model.onnx")
    with pytest.raises(UnboundShape, match="input 'x' has the shape") as caught:
        import_model(str(path))
    flag, option = caught.value.try_.split(" ", 1)
    assert flag == "--shape"
    graph = import_model(str(path), parse_shapes([option]))
    assert all(isinstance(d, int) for d in graph.tensors["x"].shape)


def test_a_shape_for_an_input_the_model_does_not_have_names_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(UnboundShape, match="no input 'image'; its inputs are x"):
        graph_of(dense(), tmp_path, {"image": (1, 8)})


def test_a_shape_of_the_wrong_rank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnboundShape, match="input 'x' has 2 dimensions, --shape gives 3"):
        graph_of(dense(), tmp_path, {"x": (1, 8, 1)})


def test_a_shape_the_model_cannot_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"--shape"):
        graph_of(dense(["n", "width"]), tmp_path, {"x": (1, 9)})


@pytest.mark.parametrize("shape", [(0, 8), (-1, 8)])
def test_a_dimension_below_one_is_refused(shape: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(UnboundShape, match="must be at least 1"):
        graph_of(dense(["n", 8]), tmp_path, {"x": shape})


@pytest.mark.parametrize("shape", [(999999999, 999999999), ("N", 999999999, 99), (1 << 40,)])
def test_a_shape_larger_than_the_machine_is_refused_with_its_size(
    shape: tuple[int | str, ...], tmp_path: Path, own_cache: Path
) -> None:
    proto = model([node("Relu", ["x"], ["y"])], {"x": ["?"] * len(shape)}, {"y": None})
    with pytest.raises(UnboundShape, match=r"take \d+\.\d GB, this machine has \d+\.\d GB free") as caught:
        graph_of(proto, tmp_path, {"x": shape})
    assert "--shape" in caught.value.try_
    assert entries(own_cache) == []


@pytest.mark.parametrize("shape", [(1, "N"), ("M", 8)])
def test_only_the_first_axis_may_stay_free(shape: tuple[int | str, int | str], tmp_path: Path) -> None:
    with pytest.raises(UnboundShape, match="only N on the first axis may stay free"):
        graph_of(dense(["n", 8]), tmp_path, {"x": shape})


def test_a_free_batch_axis_is_followed_through_every_tensor(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["m"]),
        node("Reshape", ["m", "rows"], ["tall"]),
        node("Relu", ["tall"], ["r"]),
        node("Reshape", ["r", "back"], ["y"]),
    ]
    weights = {"w": filled(4, 6), "rows": np.array([-1, 2], np.int64), "back": np.array([-1, 6], np.int64)}
    graph = graph_of(model(nodes, {"x": ["n", 4]}, {"y": None}, weights), tmp_path, {"x": ("N", 4)})
    assert graph.batchable
    assert {n: t.shape for n, t in graph.tensors.items()} == {
        "x": ("N", 4), "m": ("N", 6), "tall": ("3*N", 2), "r": ("3*N", 2), "y": ("N", 6),
    }  # fmt: skip
    assert graph.tensors["tall"].shape_at(5) == (15, 2)
    assert graph.tensors["tall"].bytes_at(5) == 120
    assert request(graph, np.random.default_rng(0), batch=3)["x"].shape == (3, 4)


def test_a_bound_batch_axis_can_be_freed_where_rows_do_not_mix(tmp_path: Path) -> None:
    graph = graph_of(dense((1, 8)), tmp_path, {"x": ("N", 8)})
    assert graph.batchable
    assert graph.tensors[graph.outputs[0]].shape[0] == "N"


def test_a_batch_axis_that_the_model_fixes_inside_cannot_be_freed(tmp_path: Path) -> None:
    nodes = [node("Reshape", ["x", "shape"], ["flat"]), node("Relu", ["flat"], ["y"])]
    proto = model(nodes, {"x": [1, 2, 2]}, {"y": [1, 4]}, {"shape": np.array([1, 4], np.int64)})
    with pytest.raises(UnboundShape, match=r"does not run with x=\[2, 2, 2\]"):
        graph_of(proto, tmp_path, {"x": ("N", 2, 2)})


def mixing(kind: str) -> ModelProto:
    """Models whose rows depend on each other, or whose shapes do not follow the batch."""
    table: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray]]] = {
        "softmax over rows": ([node("Softmax", ["x"], ["y"], axis=0)], {}),
        "centred rows": (
            [node("ReduceMean", ["x", "axis"], ["mean"]), node("Sub", ["x", "mean"], ["y"])],
            {"axis": np.array([0], np.int64)},
        ),
        "running sum, where only later rows change": (
            [node("CumSum", ["x", "axis"], ["y"])],
            {"axis": np.array(0, np.int64)},
        ),
        "one answer for all": (
            [node("ReduceSum", ["x", "axis"], ["y"])],
            {"axis": np.array([0], np.int64)},
        ),
        "rank that depends on the batch": (
            [
                node("Unsqueeze", ["x", "axis"], ["u"]),
                node("Squeeze", ["u"], ["s"]),
                node("Reshape", ["s", "to"], ["y"]),
            ],
            {"axis": np.array([0], np.int64), "to": np.array([-1, 4], np.int64)},
        ),
    }  # fmt: skip
    nodes, weights = table[kind]
    return model(nodes, {"x": ["rows", 4]}, {"y": None}, weights)


@pytest.mark.parametrize(
    "kind",
    [
        "softmax over rows",
        "centred rows",
        "running sum, where only later rows change",
        "one answer for all",
        "rank that depends on the batch",
    ],
)
def test_a_batch_axis_whose_rows_depend_on_each_other_cannot_stay_free(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UnboundShape, match="the batch axis cannot stay free") as caught:
        graph_of(mixing(kind), tmp_path, {"x": ("N", 4)})
    assert caught.value.try_ == "bind the first dimension to 1 instead of N"
    assert graph_of(mixing(kind), tmp_path, {"x": (1, 4)}).batchable is False


# ------------------------------------------------------------------------------------------- what is known afterwards


def test_every_tensor_has_its_type_and_shape_and_the_skeleton_says_so_too(tmp_path: Path) -> None:
    graph = graph_of(dense(), tmp_path)
    made = {name for op in graph.operators for name in op.outputs}
    assert set(graph.tensors) == {"x"} | made
    assert all(t.dtype == "float32" and len(t.shape) == 2 and not t.dynamic for t in graph.tensors.values())
    skeleton = onnx.load(graph.skeleton, load_external_data=False).graph
    told = {v.name for v in (*skeleton.input, *skeleton.value_info, *skeleton.output)}
    assert told == set(graph.tensors)


def test_a_shape_that_depends_on_the_data_is_marked_and_a_plain_one_after_it_is_not(tmp_path: Path) -> None:
    graph = graph_of(counted(), tmp_path)
    assert {n for n, t in graph.tensors.items() if t.dynamic} == {"where", "floats"}


def test_weights_can_be_read_back_from_the_mapped_file(tmp_path: Path) -> None:
    graph = graph_of(dense(), tmp_path)
    for i in range(3):
        weight = graph.weights[f"w{i}"]
        found = np.memmap(graph.weights_file, weight.dtype, "r", weight.offset, weight.shape)
        np.testing.assert_array_equal(found, filled(*weight.shape, seed=i))


def same(one: Graph, two: Graph) -> bool:
    plain = ("operators", "tensors", "weights", "inputs", "outputs")
    return all(getattr(one, name) == getattr(two, name) for name in plain)


def test_a_model_with_external_data_equals_the_embedded_one(tmp_path: Path) -> None:
    embedded = graph_of(dense(), tmp_path / "embedded")
    (tmp_path / "external").mkdir()
    external = import_model(str(with_external_data(dense(), tmp_path / "external" / "model.onnx")))
    assert same(embedded, external)
    assert embedded.weights_file.read_bytes() == external.weights_file.read_bytes()


def test_the_users_own_file_is_linked_together_with_its_external_data(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    graph = import_model(str(with_external_data(dense(), tmp_path / "given" / "mine.onnx")))
    target = tmp_path / "target"
    target.mkdir()
    assert link_model(graph, target) == ["model.onnx", "weights.data"]
    x = filled(1, 8)
    here, there = (open_session(p, "plain", threads=1, prepack=False) for p in (graph.source, target / "model.onnx"))
    np.testing.assert_array_equal(here.run(None, {"x": x})[0], there.run(None, {"x": x})[0])


def test_a_second_import_reads_what_the_first_wrote(tmp_path: Path, own_cache: Path) -> None:
    first = graph_of(dense(), tmp_path)
    (name,) = entries(own_cache)
    before = {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in first.directory.iterdir()}
    second = import_model(str(tmp_path / "model.onnx"))
    assert second.hash == first.hash
    assert same(first, second)
    assert entries(own_cache) == [name]
    assert {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in second.directory.iterdir()} == before


def test_a_changed_weight_gives_another_hash(tmp_path: Path) -> None:
    first = graph_of(dense(), tmp_path)
    proto = dense()
    proto.graph.initializer[0].raw_data = filled(8, 40, seed=7).tobytes()
    assert graph_of(proto, tmp_path).hash != first.hash


def test_a_changed_external_data_file_gives_another_hash(tmp_path: Path) -> None:
    path = with_external_data(dense(), tmp_path / "model.onnx")
    first = import_model(str(path))
    data = bytearray((tmp_path / "weights.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "weights.data").write_bytes(data)
    assert import_model(str(path)).hash != first.hash


def test_other_request_shapes_give_another_hash(tmp_path: Path) -> None:
    proto = dense(["n", 8])
    hashes = {graph_of(proto, tmp_path, {"x": (n, 8)}).hash for n in (1, 2, "N")}
    assert len(hashes) == 3


def test_half_an_import_of_an_older_crash_is_replaced(tmp_path: Path) -> None:
    graph = graph_of(dense(), tmp_path)
    (graph.directory / "graph.json").unlink()
    assert graph_of(dense(), tmp_path).hash == graph.hash
    assert (graph.directory / "graph.json").is_file()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"operators":[]}', None], ids=str)
def test_a_cached_graph_that_is_damaged_is_imported_again(content: bytes | None, tmp_path: Path) -> None:
    first = graph_of(dense(), tmp_path)
    stored = first.directory / "graph.json"
    whole = stored.read_bytes()
    stored.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert same(graph_of(dense(), tmp_path), first)
    assert stored.read_bytes() == whole


@pytest.mark.parametrize("name", ["graph.onnx", "weights.bin"])
def test_a_cached_graph_that_lost_a_file_is_imported_again(name: str, tmp_path: Path) -> None:
    first = graph_of(dense(), tmp_path)
    content = (first.directory / name).read_bytes()
    if name == "weights.bin":
        (first.directory / name).write_bytes(content[:1000])
    else:
        (first.directory / name).unlink()
    assert same(graph_of(dense(), tmp_path), first)
    assert (first.directory / name).read_bytes() == content


@pytest.mark.parametrize("stem", ["n" * 250, "é" * 120, "[bold]"])
def test_a_file_of_any_name_can_be_imported(stem: str, tmp_path: Path) -> None:
    graph = import_model(str(save(dense(), tmp_path / f"{stem}.onnx")))
    assert stem.startswith(graph.name)
    assert len(graph.directory.name.encode()) < 140
    assert same(graph, graph_of(dense(), tmp_path))


def test_the_shapes_a_file_fixes_give_the_same_hash_when_they_are_given(tmp_path: Path) -> None:
    alone = graph_of(dense((1, 8)), tmp_path)
    # As a plan does, which records the shape of every input.
    assert graph_of(dense((1, 8)), tmp_path, {n: alone.tensors[n].shape for n in alone.inputs}).hash == alone.hash


# ------------------------------------------------------------------------------------------------------- full disk


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk small enough to fill")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=False, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no tmpfs here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("width", [1000, 420], ids=["weights", "what follows the weights"])
def test_a_full_disk_is_said_to_be_full_and_nothing_is_left_behind(
    width: int, tiny_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMELLA_CACHE", str(tiny_disk))
    (tiny_disk / "filler").write_bytes(bytes(900_000 - 4 * 420 * 420))
    many = [node("Relu", ["m" if i == 0 else f"r{i - 1}"], [f"r{i}"], name="n" * 400 + str(i)) for i in range(800)]
    proto = model(
        [node("MatMul", ["x", "w"], ["m"]), *many], {"x": [1, width]}, {"r799": None}, {"w": filled(width, width)}
    )
    with pytest.raises(StorageError, match="No space left on device") as caught:
        graph_of(proto, tmp_path)
    assert "LAMELLA_CACHE" in caught.value.try_
    assert entries(tiny_disk) == []


@pytest.mark.parametrize("left", [0, 3000, 5000, 9000])
def test_a_disk_that_fills_while_a_slice_is_optimised_is_said_to_be_full(
    left: int, tiny_disk: Path, tmp_path: Path
) -> None:
    graph = graph_of(dense(layers=6), tmp_path)
    path = Extractor(graph).write(0, len(graph.operators), tiny_disk / "slice")
    free = shutil.disk_usage(tiny_disk).free
    (tiny_disk / "filler").write_bytes(bytes(max(0, free - left)))
    with pytest.raises(OSError, match="No space left on device"):
        optimise(path)


def test_a_batch_of_mixed_kinds_asks_for_integers_in_their_range(tmp_path: Path) -> None:
    kinds = {"ids": TensorProto.INT64, "y": TensorProto.INT64}
    graph = graph_of(model([node("Neg", ["ids"], ["y"])], {"ids": [1, 50]}, {"y": None}, kinds=kinds), tmp_path)
    values = request(graph, np.random.default_rng(0), ranges={"ids": (5, 9)})["ids"]
    assert values.dtype == np.int64
    assert set(np.unique(values)) <= {5, 6, 7, 8}
