"""What a process gets from the store, from a real daemon."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from lamella.errors import ModelLeased, StoreAway, StoreConflict, StoreDamaged, UnknownModel, WireError
from lamella.store.client import session
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
options = ort.SessionOptions()
if len(sys.argv) > 2:
    eval(sys.argv[2])
session = Own(sys.argv[1], options)
np.save(sys.argv[1] + ".npy", session.run(None, {"x": np.ones((1, 256), np.float32)})[0])
sys.modules.get("lamella.store.hook")
served = session._model_path is None
print("served" if served else "ordinary", isinstance(session, ort.InferenceSession), session.get_providers())
"""


@pytest.mark.parametrize(
    ("asks", "how"),
    [
        ("", "served"),
        ("setattr(options, 'intra_op_num_threads', 2)", "served"),
        ("options.add_session_config_entry('session.intra_op.allow_spinning', '0')", "served"),
        ("options.add_session_config_entry('session.disable_prepacking', '1')", "ordinary"),
        ("setattr(options, 'graph_optimization_level', ort.GraphOptimizationLevel.ORT_DISABLE_ALL)", "ordinary"),
        ("options.add_free_dimension_override_by_name('n', 1)", "ordinary"),
    ],
)
def test_an_unchanged_program_is_served_where_it_asks_for_nothing_else(
    daemon: Running, tmp_path: Path, asks: str, how: str
) -> None:
    made = make(tmp_path / "made", "m@1")
    model = tmp_path / "model.onnx"
    daemon.put("m@1", source=write_whole(model, made.weights))
    (tmp_path / "app.py").write_text(APP)
    env = {**environment(), "LAMELLA_STORE": str(daemon.path)}
    run = [sys.executable, "-c", "from lamella.cli import main; main()", "store", "exec"]
    program = [sys.executable, str(tmp_path / "app.py"), str(model), *filter(None, [asks])]
    done = subprocess.run([*run, *program], env=env, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == f"{how} True ['CPUExecutionProvider']\n"
    np.testing.assert_allclose(np.load(f"{model}.npy"), X @ made.weights, rtol=1e-4, atol=1e-4)


def test_an_unchanged_program_runs_without_a_daemon_too(tmp_path: Path) -> None:
    made = make(tmp_path / "made", "m@1")
    model = tmp_path / "model.onnx"
    write_whole(model, made.weights)
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.stdout.write('mine ')")
    env = environment()
    env = {**env, "LAMELLA_STORE": str(tmp_path / "none"), "PYTHONPATH": f"{tmp_path}{os.pathsep}{env['PYTHONPATH']}"}
    run = [sys.executable, "-c", "from lamella.cli import main; main()", "store", "exec"]
    program = [sys.executable, str(tmp_path / "app.py"), str(model)]
    done = subprocess.run([*run, *program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("mine ordinary True ['CPUExecutionProvider']\n")
