"""cgroup v2 on a tree of regular files that behaves like the kernel where our code depends on it."""

from __future__ import annotations

import errno
import math
import os
import shutil
import signal
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from lamella.errors import ConfigError
from lamella.limits import Limiter, Mode, detect, sweep
from lamella.limits.kernel import Kernel

FILES = {
    "memory": {"memory.max": "max", "memory.swap.max": "max", "memory.peak": "0", "memory.events": "oom 0\noom_kill 0"},
    "cpu": {"cpu.max": "max 100000"},
}


class FileKernel(Kernel):
    """Follows cgroups(7): who may write where, which files a group has, no internal processes, cgroup.kill."""

    def __init__(self, root: Path, controllers: str, writable: str) -> None:
        self.root = root
        self.writable = root / writable
        self.populate(root, controllers)

    def populate(self, path: Path, controllers: str) -> None:
        path.mkdir(exist_ok=True)
        files = {"cgroup.controllers": controllers, "cgroup.subtree_control": "", "cgroup.procs": "", "cgroup.kill": ""}
        for controller in controllers.split() if path != self.root else ():
            files |= FILES.get(controller, {})
        for name, text in files.items():
            (path / name).write_text(text)

    def read(self, path: Path) -> str:
        text = super().read(path)
        if path.name == "cgroup.procs":  # the dead are no members
            return "\n".join(pid for pid in text.split() if Path("/proc", pid).exists())
        return text

    def write(self, path: Path, value: str) -> None:
        self.check(path.parent)
        if path.name == "cgroup.subtree_control":
            if path.parent != self.root and self.read(path.parent / "cgroup.procs"):
                raise OSError(errno.EBUSY, "Device or resource busy")
            value = value.replace("+", "")
        if path.name == "cgroup.kill":
            for pid in self.read(path.parent / "cgroup.procs").split():
                os.kill(int(pid), signal.SIGKILL)
        super().write(path, value)

    def mkdir(self, path: Path) -> None:
        self.check(path.parent)
        path.mkdir()
        self.populate(path, self.read(path.parent / "cgroup.subtree_control"))

    def rmdir(self, path: Path) -> None:
        if self.read(path / "cgroup.procs"):
            raise OSError(errno.EBUSY, "Device or resource busy")
        shutil.rmtree(path)

    def check(self, path: Path) -> None:
        if not path.is_relative_to(self.writable):
            raise PermissionError(errno.EACCES, "Permission denied")


class Machine:
    """A fake tree, with the files in which a process reads about it."""

    def __init__(self, tmp_path: Path, own: str, controllers: str = "cpu memory pids", writable: str = "") -> None:
        self.root = tmp_path / "cgroup"
        self.kernel = FileKernel(self.root, controllers, writable)
        self.self_cgroup, self.mountinfo = tmp_path / "self", tmp_path / "mountinfo"
        self.self_cgroup.write_text(f"0::{own}\n")
        self.mountinfo.write_text(
            f"25 20 0:20 / /proc rw - proc proc rw\n31 23 0:28 / {self.root} rw,relatime - cgroup2 cgroup2 rw\n"
        )
        path = self.root
        for part in PurePosixPath(own).relative_to("/").parts:
            (path / "cgroup.subtree_control").write_text(controllers)
            path /= part
            self.kernel.populate(path, controllers)
        (path / "cgroup.procs").write_text(str(os.getpid()))

    def detect(self, forced: str = "") -> Limiter:
        env = {"LAMELLA_LIMITS": forced} if forced else {}
        return detect(self.root, self.self_cgroup, self.mountinfo, env=env, kernel=self.kernel)


@pytest.fixture
def session(tmp_path: Path) -> Machine:
    """A systemd user session: our scope sits in a slice that belongs to the user."""
    return Machine(tmp_path, "/user/app.slice/terminal.scope", writable="user/app.slice")


def test_a_delegated_slice_takes_our_groups_as_siblings(session: Machine) -> None:
    limiter = session.detect()
    assert (limiter.mode, limiter.reason, limiter.enforced) == (Mode.V2, "", True)
    with limiter.create("worker", memory_mb=64, vcpu=0.5) as group:
        path = session.root / "user/app.slice" / group.name
        assert group.gates == [path / "cgroup.procs"]
        assert (path / "memory.max").read_text() == str(64 << 20)
        assert (path / "memory.swap.max").read_text() == "0"
        assert (path / "cpu.max").read_text() == "5000 10000"
        group.resize(memory_mb=None, vcpu=None)
        assert (path / "memory.max").read_text() == "max"
        assert (path / "memory.swap.max").read_text() == "max"
        assert (path / "cpu.max").read_text() == "max"
    assert limiter.names() == []


def test_a_slice_that_hands_out_nothing_yet_is_made_to(session: Machine) -> None:
    control = session.root / "user/app.slice/cgroup.subtree_control"
    control.write_text("")
    assert session.detect().mode is Mode.V2
    assert control.read_text() == "cpu memory"


def test_detection_leaves_no_group_behind(session: Machine) -> None:
    limiter = session.detect()
    assert limiter.names() == []
    assert [path.name for path in (session.root / "user/app.slice").iterdir() if path.is_dir()] == ["terminal.scope"]


def test_without_delegated_controllers_nothing_is_enforced(tmp_path: Path) -> None:
    limiter = Machine(tmp_path, "/user/session.scope", controllers="hugetlb").detect()
    assert (limiter.mode, limiter.enforced) == (Mode.NONE, False)
    assert "cgroup v1 has no memory and cpu controller under" in limiter.reason
    assert "cgroup v2 does not delegate cpu and memory to" in limiter.reason


def test_without_write_access_nothing_is_enforced(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "/system/ssh.scope", writable="elsewhere")
    for path in (machine.root / "system", machine.root / "system/ssh.scope"):
        (path / "cgroup.subtree_control").write_text("")
    limiter = machine.detect()
    assert limiter.mode is Mode.NONE
    assert f"no write access to {machine.root}/system/ssh.scope" in limiter.reason


def test_a_container_that_lives_in_its_only_group_is_told_so(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "/box", writable="box")
    limiter = machine.detect()
    assert limiter.mode is Mode.NONE
    assert f"{machine.root}/box holds processes itself" in limiter.reason


def test_forcing_v2_where_it_is_impossible_gives_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="LAMELLA_LIMITS=v2 is impossible here: cgroup v2 does not delegate cpu to"):
        Machine(tmp_path, "/user", controllers="memory").detect("v2")


def test_forcing_v1_on_a_v2_machine_gives_the_reason(session: Machine) -> None:
    with pytest.raises(ConfigError, match="LAMELLA_LIMITS=v1 is impossible here: cgroup v1 has no memory and cpu"):
        session.detect("v1")


def test_figures_come_from_the_files_of_v2(session: Machine) -> None:
    with session.detect("v2").create("figures", memory_mb=64, vcpu=1) as group:
        path = session.root / "user/app.slice" / group.name
        (path / "memory.events").write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
        (path / "memory.peak").write_text(f"{48 << 20}\n")
        assert group.oom_kills() == 2
        assert group.peak_mb() == 48
        assert group.affinity is None


def test_an_old_kernel_without_a_peak_gives_nan(session: Machine) -> None:
    with session.detect().create("old", memory_mb=64, vcpu=1) as group:
        (session.root / "user/app.slice" / group.name / "memory.peak").unlink()
        assert math.isnan(group.peak_mb())


@pytest.mark.parametrize("has_kill_file", [True, False])
def test_members_are_killed_with_and_without_cgroup_kill(session: Machine, has_kill_file: bool) -> None:
    with session.detect().create("doomed", memory_mb=64, vcpu=1) as group:
        path = session.root / "user/app.slice" / group.name
        if not has_kill_file:
            (path / "cgroup.kill").unlink()
        # The member is the shell's child, which the shell reaps: a zombie of ours would look alive in plain files.
        argv = ["/bin/sh", "-c", 'sleep 60 & echo $! > "$0"; echo ready; wait', str(path / "cgroup.procs")]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
            assert len(group.pids()) == 1
            group.kill()
            assert group.pids() == []
        assert not has_kill_file or (path / "cgroup.kill").read_text() == "1"


def test_sweep_removes_only_what_dead_owners_left(session: Machine) -> None:
    limiter = session.detect()
    dead = f"lamella-{os.getpid()}-1-left"  # our pid, but started at another time
    session.kernel.mkdir(session.root / "user/app.slice" / dead)
    with limiter.create("mine", memory_mb=64, vcpu=1) as mine:
        assert sweep(limiter) == [dead]
        assert limiter.names() == [mine.name]


def test_sweep_leaves_members_it_cannot_see(session: Machine) -> None:
    limiter = session.detect()
    foreign = session.root / "user/app.slice/lamella-1-1-foreign"
    session.kernel.mkdir(foreign)
    (foreign / "cgroup.procs").write_text("0")
    session.kernel.read = lambda path: path.read_text()  # type: ignore[method-assign]
    assert sweep(limiter) == []
    assert foreign.is_dir()
