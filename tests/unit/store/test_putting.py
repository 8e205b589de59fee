"""Models made ready for the store: what they share is stored once, and they answer as the package does."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from lamella.documents import read
from lamella.errors import ConfigError, PackageError
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.graph.weights import alignment
from lamella.package import build
from lamella.package.build import build_model
from lamella.runtime.function import Function, open_session
from lamella.store import handing
from lamella.store.backings import Memfd
from lamella.store.memory import Memory
from lamella.store.policies import policy
from lamella.store.putting import (
    HUGE,
    MAGIC,
    SEGMENT_BYTES,
    SHARE,
    SPARSE_BYTES,
    Prepared,
    Segments,
    contents,
    prepare,
)
from lamella.store.records import Held, Settings
from lamella.store.shelves import Shelves
from tests.unit.graph.onnx_models import model as onnx_model
from tests.unit.graph.onnx_models import node
from tests.unit.package.plans import plan_of

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def graph(cache_dir: Path) -> Graph:
    return import_model("zoo:cnn-tiny")


@pytest.fixture(scope="module")
def package(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("package") / "cnn"
    build(plan_of(graph, [4, 8]), graph, directory)
    return directory


@pytest.fixture
def shelves(tmp_path: Path) -> Iterator[Shelves]:
    made = Shelves(Settings(root=tmp_path / "store"))
    yield made
    made.close()


def session(held: Held) -> ort.InferenceSession:
    """Opened as a client does, from nothing but the descriptors."""
    maps = [mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) for fd in held.descriptors]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.use_external_initializer_file_buffers_directly", "1")
    if held.record.function.kind == "packaged":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if maps[1:]:
        names = [s.id for s in held.record.segments]
        options.add_external_initializers_from_files_in_memory(names, maps[1:], [len(m) for m in maps[1:]])
    made = ort.InferenceSession(maps[0][:], options, providers=["CPUExecutionProvider"])
    made.maps = maps
    return made


def test_every_function_of_a_package_answers_from_the_store_as_from_its_files(
    graph: Graph, package: Path, shelves: Shelves, tmp_path: Path
) -> None:
    ready = prepare(package, "cnn", "1", tmp_path / "made")
    for record, blobs in ready:
        shelves.put(record, blobs)
    assert shelves.names() == sorted(f"cnn{variant}/stage-{k}@1" for variant in ("", ".portable") for k in (1, 2, 3))
    for variant in ("", ".portable"):
        tensors = request(graph, np.random.default_rng(7))
        for stage in ("stage-1", "stage-2", "stage-3"):
            held = shelves.acquire(f"cnn{variant}/{stage}@1")
            function = read(package / stage / "function.json", Function, made_by="")
            file = package / stage / (function.portable if variant else function.graph)
            oracle = open_session(file, held.record.function.kind, threads=1, prepack=False)
            feeds = {t.name: tensors[t.name] for t in function.inputs}
            names = [t.name for t in function.outputs]
            found, expected = session(held).run(names, feeds), oracle.run(names, feeds)
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_array_equal(a, b)
            tensors.update(zip(names, expected, strict=True))
            shelves.release(held)


def test_slices_share_with_the_whole_model_and_all_of_it_is_stored_once(
    graph: Graph, package: Path, shelves: Shelves, tmp_path: Path
) -> None:
    whole, portable = prepare(graph, "cnn", "1", tmp_path / "whole")
    for record, blobs in (whole, portable):
        shelves.put(record, blobs)
    before = shelves.status().tiers[1].used_bytes
    again = prepare(graph, "copy", "1", tmp_path / "again", shelves.known("cnn@1"))
    assert again[0].record.segments == whole.record.segments
    shelves.put(again[0].record, {})
    assert shelves.status().tiers[1].used_bytes == before
    known = shelves.known("cnn@1") | shelves.known("cnn.portable@1")
    for record, blobs in prepare(package, "cnn", "2", tmp_path / "slices", known):
        shelves.put(record, blobs)
    held = shelves.acquire("copy@1")
    feeds = request(graph, np.random.default_rng(3))
    build_model(graph, tmp_path / "package")
    oracle = open_session(tmp_path / "package" / "graph.onnx", "packaged", threads=1, prepack=False)
    for a, b in zip(session(held).run(None, feeds), oracle.run(None, feeds), strict=True):
        np.testing.assert_array_equal(a, b)
    shelves.release(held)


def model(arrays: Arrays) -> ModelProto:
    return ModelProto(graph=onnx.GraphProto(node=[onnx.NodeProto(op_type="Sum", input=list(arrays))]))


def stored(proto: ModelProto, paths: dict[str, Path]) -> dict[str, bytes]:
    """The bytes of each weight as a reader of the graph finds them."""
    found = {}
    for tensor in proto.graph.initializer:
        assert tensor.data_location == TensorProto.EXTERNAL
        entry = {e.key: e.value for e in tensor.external_data}
        start, length = int(entry["offset"]), int(entry["length"])
        assert start % alignment(length) == 0
        found[tensor.name] = paths[entry["location"]].read_bytes()[start : start + length]
    return found


SIZES = st.integers(1, 300_000)


@settings(max_examples=30)
@given(
    base=st.lists(SIZES, min_size=1, max_size=6),
    changed=st.sets(st.integers(0, 5)),
    more=st.lists(SIZES, max_size=2),
    seed=st.integers(0, 99),
)
def test_a_fine_tuned_variant_stores_only_what_it_changed(
    base: list[int], changed: set[int], more: list[int], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    one = {f"w{k}": rng.integers(0, 255, size, np.uint8) for k, size in enumerate(base)}
    two = {f"v{k}": (rng.integers(0, 255, a.size, np.uint8) if k in changed else a) for k, a in enumerate(one.values())}
    two |= {f"more{k}": rng.integers(0, 255, size, np.uint8) for k, size in enumerate(more)}
    first, second = (tmp_path_factory.mktemp("segments") for _ in range(2))
    graph, tuned = model(one), model(two)
    used, made = Segments(first, {}).attach(graph, one)
    assert [s.id for s in used] == list(made)
    assert stored(graph, made) == {name: a.tobytes() for name, a in one.items()}
    used, new = Segments(second, made).attach(tuned, two)
    paths = made | new
    assert stored(tuned, paths) == {name: a.tobytes() for name, a in two.items()}
    assert {s.id for s in used} <= set(paths)
    kept = {a.tobytes() for a in one.values()} & {a.tobytes() for a in two.values()}
    written = {t.sha256 for path in new.values() for t in contents(path)}
    base_bytes = {t.sha256: t.length for path in made.values() for t in contents(path)}
    if sum(map(len, kept)) >= SHARE * sum(base_bytes.values()):
        assert not written & set(base_bytes)  # stored once
    else:
        assert not {s.id for s in used} & set(made)  # too little to map the rest for it


def test_a_segment_whose_table_lies_is_not_relied_on(tmp_path: Path) -> None:
    array = {"w": np.arange(1000, dtype=np.float32)}
    used, made = Segments(tmp_path / "first", {}).attach(model(array), array)
    path = made[used[0].id]
    data = bytearray(path.read_bytes())
    data[8] ^= 1
    path.write_bytes(data)  # the table still says the tensor is there
    proto = model(array)
    _, new = Segments(tmp_path / "second", made).attach(proto, array)
    assert len(new) == 1
    assert stored(proto, new)["w"] == array["w"].tobytes()


@pytest.mark.parametrize("tail", [b"", MAGIC, b"\xff" * 8 + MAGIC, b"[1]" + b"\3" + bytes(7) + MAGIC])
def test_what_is_no_segment_has_no_contents(tmp_path: Path, tail: bytes) -> None:
    (tmp_path / "blob").write_bytes(b"{" * 20 + tail)
    assert contents(tmp_path / "blob") == ()


def test_segments_are_runs_in_the_graphs_order_and_whole_huge_pages(tmp_path: Path) -> None:
    sizes = {"late": 3 << 20, "embedding": SEGMENT_BYTES + 4, "a": SEGMENT_BYTES // 2, "b": SEGMENT_BYTES // 2, "c": 64}
    arrays = {name: np.full(size, k, np.uint8) for k, (name, size) in enumerate(sizes.items())}
    proto = model({name: arrays[name] for name in ("embedding", "a", "b", "c", "late")})
    used, made = Segments(tmp_path, {}).attach(proto, arrays)
    tables = [[t.length for t in contents(made[s.id])] for s in used]
    assert tables == [[SEGMENT_BYTES + 4], [SEGMENT_BYTES // 2] * 2, [64, 3 << 20]]
    assert all(s.bytes % HUGE == 0 and s.bytes == made[s.id].stat().st_size for s in used)


def test_a_function_that_was_not_optimised_and_a_damaged_package_are_refused(
    graph: Graph, package: Path, tmp_path: Path
) -> None:
    build(plan_of(graph, [], kind="plain"), graph, tmp_path / "plain")
    with pytest.raises(ConfigError, match="kind plain"):
        prepare(tmp_path / "plain", "cnn", "1", tmp_path / "made")
    with pytest.raises(PackageError):
        prepare(tmp_path, "cnn", "1", tmp_path / "made")
    with pytest.raises(ConfigError, match="no name"):
        prepare(package, "../cnn", "1", tmp_path / "made")
    assert isinstance(prepare(package, "cnn", "1", tmp_path / "made")[0], Prepared)
    assert os.listdir(tmp_path / "made")


@pytest.mark.parametrize(
    ("weights_as_input", "outputs"), [(True, "y"), (False, "yx")], ids=["replaceable weights", "an input given back"]
)
def test_a_file_that_does_more_than_its_packaged_model_is_not_stood_in_for(
    tmp_path: Path, weights_as_input: bool, outputs: str
) -> None:
    values = {
        n: helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in zip("xyw", ([1, 4], [1, 4], [4, 4]), strict=True)
    }
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [values[n] for n in ("xw" if weights_as_input else "x")],
        [values[n] for n in outputs],
        [numpy_helper.from_array(np.ones((4, 4), np.float32), "w")],
    )
    path = tmp_path / "odd.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    made = next(m for m in prepare(path, "odd", "1", tmp_path / "space") if m.record.name == "odd@1")
    assert handing.stand_in(path, made.record.function) is None


def test_a_table_of_which_rows_are_gathered_lies_apart_and_in_the_page_cache(tmp_path: Path) -> None:
    rows, width = 3 * SPARSE_BYTES // 4 // 64, 64
    rng = np.random.default_rng(0)
    weights = {
        "words": rng.standard_normal((rows, width), np.float32),
        "tied": rng.standard_normal((rows, width), np.float32),
        "kernel": rng.standard_normal((width, width), np.float32),
    }
    nodes = [
        node("Gather", ["words", "ids"], ["a"]),
        node("Gather", ["tied", "ids"], ["b"]),
        node("Add", ["a", "b"], ["c"]),
        node("MatMul", ["c", "kernel"], ["d"]),
        node("Gemm", ["d", "tied"], ["y"], transB=1),
    ]
    proto = onnx_model(nodes, {"ids": [4]}, {"y": [4, rows]}, weights, kinds={"ids": TensorProto.INT64})
    path = tmp_path / "tables.onnx"
    path.write_bytes(proto.SerializeToString())
    made = prepare(path, "tables", "1", tmp_path / "blobs")
    for each in made:
        sparse = [s for s in each.record.segments if s.sparse]
        assert [s.bytes // SPARSE_BYTES for s in sparse] == [3], "not the one that is multiplied, too"
        (words,) = contents(each.blobs[sparse[0].id])
        assert words.length == weights["words"].nbytes
    memory = Memory(Memfd(), None, policy("lru"))
    assert [memory.backing_of(s).name for s in made[0].record.segments if s.sparse] == ["page-cache"]
    assert {memory.backing_of(s).name for s in made[0].record.segments if not s.sparse} == {"memfd"}
