"""What a process gets from the store, from a real daemon."""

from __future__ import annotations

import gc
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from lamella.errors import ModelLeased, StoreAway, StoreConflict, StoreDamaged, UnknownModel, WireError
from lamella.store import hook
from lamella.store.client import SOCKET, session, status
from lamella.store.handing import hand_over
from tests.unit.store_daemon.conftest import SIDE, Running, environment, make, until, write_whole

X = np.ones((1, SIDE), np.float32)


def test_a_session_of_the_store_is_an_inference_session_with_the_model_s_answers(daemon: Running) -> None:
    made = daemon.put("m@1")
    opened = session("m@1", daemon.path)
    assert isinstance(opened, ort.InferenceSession)
    assert [i.name for i in opened.get_inputs()] == ["x"]
    (answer,) = opened.run(None, {"x": X})
    np.testing.assert_allclose(answer, X @ made.weights, rtol=1e-4, atol=1e-4)
    binding = opened.io_binding()
    binding.bind_cpu_input("x", X)
    binding.bind_output("y")
    opened.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], answer)


def test_a_session_s_weights_are_mapped_by_huge_pages(
    daemon: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if any(t.name == "memory" and t.backing != "huge-tmpfs" for t in status(daemon.path).store.tiers):
        pytest.skip("this machine's store has no huge pages")
    monkeypatch.setenv(SOCKET, str(daemon.path))
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.standard_normal((1024, 1024), np.float32), f"w{k}") for k in range(3)]
    nodes = [helper.make_node("MatMul", [f"x{k}", f"w{k}"], [f"x{k + 1}"]) for k in range(3)]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1024]) for n in ("x0", "x3")]
    graph = helper.make_graph(nodes, "wide", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    hand_over(tmp_path / "m.onnx", "wide@1")
    opened = session("wide@1", daemon.path)
    opened.run(None, {"x0": np.ones((1, 1024), np.float32)})
    assert mapped_kb("ShmemPmdMapped") == 12 << 10  # all weights: what is left is the segment's table
    opened.close()
    gc.collect()
    assert mapped_kb("ShmemPmdMapped") == 0


def mapped_kb(field: str) -> int:
    """Of all maps of this process."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def test_a_model_for_another_machine_without_a_variant_for_any_cpu_is_refused(daemon: Running, tmp_path: Path) -> None:
    made = make(tmp_path / "made", "m@1")
    elsewhere = msgspec.structs.replace(made.record.function.machine, isa="riscv64-none")
    function = msgspec.structs.replace(made.record.function, machine=elsewhere)
    with daemon.connect() as connection:
        connection.put(msgspec.structs.replace(made.record, function=function), made.blobs)
    with pytest.raises(UnknownModel, match=r"m@1 was optimised for riscv64-none .* variant for any CPU is not"):
        session("m@1", daemon.path)
    until(lambda: daemon.leases() == 0)


def test_the_lease_lives_as_long_as_the_session_or_what_the_runtime_keeps_of_it(daemon: Running) -> None:
    daemon.put("m@1")
    first, second = session("m@1", daemon.path), session("m@1", daemon.path)
    assert daemon.leases() == 2
    first.close()
    until(lambda: daemon.leases() == 1)
    inner: Any = second._sess
    del second
    gc.collect()
    assert daemon.leases() == 1
    assert len(inner.run(["y"], {"x": X}, None)) == 1
    del inner
    gc.collect()
    until(lambda: daemon.leases() == 0)


def test_a_map_of_a_segment_cannot_be_written(daemon: Running) -> None:
    daemon.put("m@1")
    with daemon.connect() as connection:
        lease = connection.open("m@1")
        (segment,) = lease.segments.values()
        with pytest.raises(TypeError):
            segment[0] = 1


def test_a_model_that_many_ask_for_at_once_is_loaded_once(daemon: Running) -> None:
    made = daemon.put("m@1")
    with ThreadPoolExecutor(8) as pool:
        sessions = list(pool.map(lambda _: session("m@1", daemon.path), range(8)))
    assert daemon.leases() == len(sessions)
    loads = (daemon.directory / "loads").read_text().split()
    assert sorted(loads) == sorted(made.blobs)


def test_while_one_model_is_loaded_others_are_served(daemon: Running) -> None:
    for k in range(2):
        daemon.put(f"m@{k}", seed=k)
    session("m@0", daemon.path).close()
    with daemon.connect() as slow, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(slow.open, "m@1")
        opened = 0
        while not waiting.done():
            session("m@0", daemon.path).close()
            opened += 1
    assert opened > 1


def test_opening_the_first_stage_of_a_plan_brings_the_others(daemon: Running) -> None:
    for k, name in enumerate(("p/stage-1@1", "p/stage-2@1", "p/stage-10@1", "q/stage-2@1")):
        daemon.put(name, seed=k)
    session("p/stage-1@1", daemon.path)

    def blobs() -> int:
        with daemon.connect() as connection:
            return connection.status().store.tiers[0].blobs

    until(lambda: blobs() == 6)  # each a graph and a segment; q is another plan


def test_what_is_unknown_leased_or_damaged_is_told_by_its_cause(daemon: Running, tmp_path: Path) -> None:
    daemon.put("m@1")
    with pytest.raises(UnknownModel, match="n@1"):
        session("n@1", daemon.path)
    opened = session("m@1", daemon.path)
    with daemon.connect() as connection, pytest.raises(ModelLeased):
        connection.evict("m@1")
    opened.close()
    until(lambda: daemon.leases() == 0)
    with daemon.connect() as connection:
        connection.evict("m@1")
    made = make(tmp_path / "bad", "bad@1", seed=5)
    path = made.blobs[made.record.segments[0].id]
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    with daemon.connect() as connection, pytest.raises(StoreDamaged):
        connection.put(made.record, made.blobs)
    path.write_bytes(data[:-1])
    with daemon.connect() as connection, pytest.raises(StoreDamaged, match="bytes"):
        connection.put(made.record, made.blobs)
    other = make(tmp_path / "other", "other@1", seed=6)
    with daemon.connect() as connection, pytest.raises(WireError, match="does not name"):
        connection.put(made.record, other.blobs)
    with pytest.raises(UnknownModel):
        session("bad@1", daemon.path)
    assert not list((daemon.directory / "root" / "arriving").iterdir())


def test_clients_go_on_when_the_daemon_is_killed_and_a_new_one_knows_its_models(
    start: Callable[..., Running],
) -> None:
    first = start()
    made = first.put("m@1")
    opened = session("m@1", first.path)
    first.end(signal.SIGKILL)
    with pytest.raises(StoreAway):
        session("m@1", first.path)
    second = start()  # where the first one's socket still lies
    for each in (opened, session("m@1", second.path)):
        np.testing.assert_allclose(each.run(None, {"x": X})[0], X @ made.weights, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["signal", "message"])
def test_a_daemon_that_is_told_to_stop_leaves_no_socket(daemon: Running, how: str) -> None:
    if how == "message":
        with daemon.connect() as connection:
            connection.stop()
    assert daemon.end() in (0, -signal.SIGTERM)
    assert not daemon.path.exists()


def test_a_second_daemon_at_the_same_socket_is_refused(daemon: Running) -> None:
    from lamella.store.serving import listening

    with pytest.raises(StoreConflict, match="listens"), listening(daemon.path, shared=False):
        pass
    assert daemon.path.stat().st_mode & 0o777 == 0o600
    assert daemon.path.parent.stat().st_mode & 0o777 == 0o700


APP = """
import onnxruntime as ort, numpy as np, sys
class Own(ort.InferenceSession):
    pass
try:
    ort.InferenceSession(sys.argv[1], None, None, providers=[])
except TypeError as error:
    assert "__init__" in str(error), error
for asks in sys.argv[2:]:
    options = ort.SessionOptions()
    eval(asks)
    session = Own(sys.argv[1], options)
    np.save(sys.argv[1] + ".npy", session.run(None, {"x": np.ones((1, 256), np.float32)})[0])
    assert isinstance(session, ort.InferenceSession)
    print("served" if session._model_path is None else "ordinary", *session.get_providers())
"""
ASKS = {
    "options": "served",
    "setattr(options, 'intra_op_num_threads', 2)": "served",
    "options.add_session_config_entry('session.intra_op.allow_spinning', '0')": "served",
    "options.add_session_config_entry('session.disable_prepacking', '1')": "ordinary",
    "setattr(options, 'graph_optimization_level', ort.GraphOptimizationLevel.ORT_DISABLE_ALL)": "ordinary",
    "options.add_free_dimension_override_by_name('n', 1)": "ordinary",
}
EXEC = [sys.executable, "-c", "from lamella.cli import main; main()", "store", "exec"]


def program(directory: Path, model: Path, asks: Iterable[str], **variables: str) -> str:
    """What the program prints that knows nothing of the store."""
    (directory / "app.py").write_text(APP)
    command = [*EXEC, sys.executable, str(directory / "app.py"), str(model), *asks]
    env = {**environment(), **variables, "LAMELLA_CACHE": str(directory / "cache")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout


def test_an_unchanged_program_is_served_where_it_asks_for_nothing_else(daemon: Running, tmp_path: Path) -> None:
    made = make(tmp_path / "made", "m@1")
    model = tmp_path / "model.onnx"
    daemon.put("m@1", source=write_whole(model, made.weights))
    printed = program(tmp_path, model, ASKS, LAMELLA_STORE=str(daemon.path))
    assert printed.splitlines() == [f"{how} CPUExecutionProvider" for how in ASKS.values()]
    np.testing.assert_allclose(np.load(f"{model}.npy"), X @ made.weights, rtol=1e-4, atol=1e-4)
    assert len(list((tmp_path / "cache" / "sources").iterdir())) == 1  # hashed once


def test_a_program_whose_file_changed_or_that_finds_no_daemon_goes_its_ordinary_way(
    daemon: Running, tmp_path: Path
) -> None:
    made = make(tmp_path / "made", "m@1")
    model = tmp_path / "model.onnx"
    daemon.put("m@1", source=write_whole(model, made.weights))
    write_whole(model, made.weights + 1)
    (tmp_path / "sitecustomize.py").write_text("print('the program has its own')")
    path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    for socket in (daemon.path, tmp_path / "none"):
        printed = program(tmp_path, model, ["options"], LAMELLA_STORE=str(socket), PYTHONPATH=path)
        assert printed.splitlines()[-2:] == ["the program has its own", "ordinary CPUExecutionProvider"]
    np.testing.assert_allclose(np.load(f"{model}.npy"), X @ (made.weights + 1), rtol=1e-4, atol=1e-4)


def test_a_file_is_not_served_with_the_weights_of_another_model_that_took_its_name(
    daemon: Running, tmp_path: Path
) -> None:
    first, model = make(tmp_path / "made", "m@1"), tmp_path / "model.onnx"
    digest = write_whole(model, first.weights)
    daemon.put("m@1", source=digest)
    with daemon.connect() as connection:
        connection.evict("m@1", disk=True)
        assert connection.find(digest) == ""
    daemon.put("m@1", seed=1)
    printed = program(tmp_path, model, ["options"], LAMELLA_STORE=str(daemon.path))
    assert printed.splitlines() == ["ordinary CPUExecutionProvider"]
    np.testing.assert_allclose(np.load(f"{model}.npy"), X @ first.weights, rtol=1e-4, atol=1e-4)


def test_a_file_that_has_just_changed_is_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.onnx"
    for data in (b"one", b"two"):
        path.write_bytes(data)
        times = path.stat().st_mtime_ns
        assert hook.digest_of(path) == hashlib.sha256(data).hexdigest()
        os.utime(path, ns=(times, times))
    assert not (tmp_path / "cache" / "sources").exists()
    assert hook.digest_of(path, lambda: time.time() + 1) == hashlib.sha256(b"two").hexdigest()
    assert len(list((tmp_path / "cache" / "sources").iterdir())) == 1


def test_the_hook_waits_for_onnxruntime(tmp_path: Path) -> None:
    check = "import sys; print(any(m.partition('.')[0] in ('lamella', 'onnxruntime', 'msgspec') for m in sys.modules))"
    done = subprocess.run([*EXEC, sys.executable, "-c", check], env=environment(), capture_output=True, check=True)
    assert done.stdout == b"False\n"


def test_pins_are_brought_back_by_a_daemon_that_begins_anew(start: Callable[..., Running]) -> None:
    first = start()
    made = first.put("m@1")
    first.put("other@1", seed=1)
    with first.connect() as connection:
        connection.pin("m@1")
    first.end(signal.SIGKILL)
    second = start()

    def told() -> list[tuple[str, bool, int]]:
        with second.connect() as connection:
            return [(m.name, m.pinned, m.memory_bytes) for m in connection.status().store.models]

    until(lambda: told() == [("m@1", True, made.record.bytes), ("other@1", False, 0)])
    second.end()
    third = start(memory_bytes=1000)
    until(lambda: bool(notes(third)))
    assert "m@1 is pinned and not in memory" in notes(third)[0]
    third.end()
    (third.directory / "root" / "pins.json").write_text("?")
    assert "ignored" in notes(start())[0]


def notes(daemon: Running) -> tuple[str, ...]:
    with daemon.connect() as connection:
        return connection.status().store.notes
