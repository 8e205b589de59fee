"""The store from inside a sandbox: a function that has its libraries and the store's socket, and nothing else."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.store_daemon.conftest import ROOT, SIDE, Running, until

NOBODY = pwd.getpwnam("nobody")
RULES = '[[allow]]\nuser = "nobody"\nopen = ["open@*"]\n'
FUNCTION = f"""
import json, os, socket, time
import numpy as np
import lamella.store
from lamella.errors import LamellaError

opened = lamella.store.session("open@1")
told = {{"answer": opened.run(None, {{"x": np.ones((1, {SIDE}), np.float32)}})[0].tolist(), "uid": os.getuid()}}
told["processes"] = sum(name.isdecimal() for name in os.listdir("/proc"))
try:
    lamella.store.session("secret@1")
except LamellaError as error:
    told["refused"] = error.code
try:
    socket.create_connection(("192.0.2.1", 80), 5)
except OSError as error:
    told["network"] = error.strerror
print(json.dumps(told), flush=True)
input()
os._exit(0)
"""
SOURCE = str(ROOT / "src")
READ_ONLY = dict.fromkeys([*(p for p in ("/usr", "/lib", "/lib64") if Path(p).exists()), sys.base_prefix, sys.prefix])
INSIDE = {"LAMELLA_STORE": "/run/lamella/store.socket", "PYTHONPATH": SOURCE, "ORT_DISABLE_TELEMETRY": "1"}


def bwrap(binds: dict[str, str], directory: Path, user: int | None) -> list[str]:
    """The command before the program's; `user` is another real one, which only root can become."""
    own = ["--unshare-all"] if user is None else ["--unshare-net", "--unshare-pid", "--unshare-ipc"]
    made = ["bwrap", *own, "--die-with-parent", "--clearenv", "--proc", "/proc", "--dev", "/dev"]
    above = sorted({str(parent) for target in binds.values() for parent in Path(target).parents})
    made += [word for parent in above for word in ("--dir", parent)]  # as made for a bind, they would be root's alone
    made += [word for source, target in binds.items() for word in ("--ro-bind", source, target)]
    made += [word for name, value in INSIDE.items() for word in ("--setenv", name, value)]
    return made if user is None else [*made, "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]


def podman(binds: dict[str, str], directory: Path, user: int | None) -> list[str]:
    """As above; no image is needed, nor is anything left where the user's containers are."""
    made = ["podman", *PODMAN, "--root", str(directory / "pod"), "--runroot", str(directory / "podrun")]
    made += [
        "run",
        "--rm",
        "-i",
        "--network",
        "none",
        "--read-only",
        "--ulimit",
        "nofile=1024",
        "--ulimit",
        "nproc=1024",
    ]
    made += [word for source, target in binds.items() for word in ("-v", f"{source}:{target}:ro")]
    made += [word for name, value in INSIDE.items() for word in ("-e", f"{name}={value}")]
    made += [] if user is None else ["--user", str(user)]
    return [*made, "--rootfs", str(directory / "rootfs")]


PODMAN: list[str] = ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]
if shutil.which("runc"):  # crun knows no host with both versions of control groups
    PODMAN += ["--runtime", "runc"]
TOOLS = {"bwrap": bwrap, "podman": podman}


@cache
def works(tool: str) -> str:
    """Why a sandbox cannot be made here; nothing where it can."""
    if not shutil.which(tool):
        return f"no {tool} here"
    binds = {path: path for path in READ_ONLY}
    with tempfile.TemporaryDirectory(prefix="lamella-") as directory:  # podman wants short paths
        (Path(directory) / "rootfs").mkdir()
        command = [*TOOLS[tool](binds, Path(directory), None), "/usr/bin/true"]
        done = subprocess.run(command, capture_output=True, text=True)
    return f"{tool} does not work here: {done.stderr[-300:]}" if done.returncode else ""


@pytest.mark.parametrize("other", [False, True], ids=["own user", "another user"])
@pytest.mark.parametrize("tool", TOOLS)
def test_a_function_in_a_sandbox_opens_what_it_may_and_its_end_is_the_release(
    tool: str, other: bool, start: Callable[..., Running], tmp_path: Path
) -> None:
    if why := works(tool):
        pytest.skip(why)
    if other and (os.getuid() != 0 or not shutil.which("setpriv")):
        pytest.skip("only root can become another user")
    daemon = start(RULES)
    made = daemon.put("open@1", seed=1)
    daemon.put("secret@1", seed=2)
    (daemon.directory / "rootfs").mkdir()
    program = tmp_path / "function.py"
    program.write_text(FUNCTION)
    program.chmod(0o644)
    binds = {p: p for p in (*READ_ONLY, SOURCE)} | {str(daemon.path.parent): "/run/lamella"}
    binds |= {str(program): "/function.py"}
    command = TOOLS[tool](binds, daemon.directory, NOBODY.pw_uid if other else None)
    command += [f"{sys.prefix}/bin/python", "/function.py"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as function:
        assert function.stdin
        assert function.stdout
        told: dict[str, Any] = json.loads(function.stdout.readline())
        assert daemon.leases() == 1
        function.stdin.write("\n")
    x = np.ones((1, SIDE), np.float32)
    np.testing.assert_allclose(told["answer"], x @ made.weights, rtol=1e-4, atol=1e-4)
    assert told["uid"] == (NOBODY.pw_uid if other else os.getuid())
    assert told.get("refused") == ("store.denied" if other else None)
    assert told["network"] == "Network is unreachable"
    assert told["processes"] < 4
    until(lambda: daemon.leases() == 0)
    assert function.returncode == 0


def test_the_guide_s_command_runs_a_function(daemon: Running, tmp_path: Path) -> None:
    if why := works("bwrap"):
        pytest.skip(why)
    daemon.put("net@1", seed=1)
    page = (ROOT / "docs" / "guide.md").read_text()
    lines = "\n".join(re.findall(r"^\$ ((?:BASE=|bwrap ).*(?:\n    .*)*)", page, re.M))
    for before, after in (
        ("--ro-bind /run/lamella ", f"--ro-bind {daemon.path.parent} "),
        ("--clearenv ", f"--clearenv --setenv PYTHONPATH {SOURCE} --ro-bind {SOURCE} {SOURCE} "),  # not installed
    ):
        assert before in lines
        lines = lines.replace(before, after)
    program = "import lamella.store as s; print(s.session('net@1').get_inputs()[0].name)"
    (tmp_path / "function.py").write_text(program)
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-euc", lines], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout == "x\n"
