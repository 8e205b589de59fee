"""Quotas, mounts and owners: the pure parts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from lamella.errors import ConfigError
from lamella.limits.group import quota_us
from lamella.limits.mounts import Mount, parse_mountinfo, parse_self_cgroup
from lamella.limits.owner import Owner, full_name, is_ours, mark, owner_of, owner_of_temporary, start_ticks
from tests.unit.limits.owners import owned_by


@pytest.mark.parametrize(
    ("vcpu", "period_ms", "expected"),
    [
        (1.0, 10, (10_000, 10_000)),
        (0.2, 100, (20_000, 100_000)),
        (0.1, 10, (1_000, 10_000)),
        (0.05, 10, (1_000, 20_000)),
        (0.001, 10, (1_000, 1_000_000)),
    ],
)
def test_a_small_share_gets_a_longer_period_rather_than_more(
    vcpu: float, period_ms: int, expected: tuple[int, int]
) -> None:
    assert quota_us(vcpu, period_ms) == expected


@pytest.mark.parametrize(("vcpu", "period_ms"), [(1.0, 0), (1.0, 1001), (0.0005, 10)])
def test_a_period_or_share_beyond_the_kernel_is_refused(vcpu: float, period_ms: int) -> None:
    with pytest.raises(ConfigError, match="must be"):
        quota_us(vcpu, period_ms)


def test_mounts_tell_controllers_mounted_together_and_names_with_spaces() -> None:
    text = (
        "30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n"
        "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu,cpuacct rw shared:9 master:1 - cgroup cgroup rw,cpu,cpuacct\n"
        "33 31 0:30 / /sys/fs/cgroup/with\\040space rw - cgroup2 none rw\n"
        "34 31 0:31 / /elsewhere rw - cgroup cgroup rw,memory\n"
    )
    together, spaced = parse_mountinfo(text, Path("/sys/fs/cgroup"))
    assert (together.version, together.subtree) == (1, PurePosixPath("/docker/abc"))
    assert {"cpu", "cpuacct"} <= together.options
    assert (spaced.version, spaced.point) == (2, Path("/sys/fs/cgroup/with space"))


def test_our_groups_are_found_by_controller_whatever_the_path_holds() -> None:
    groups = parse_self_cgroup("4:cpu,cpuacct:/a:b\n1:name=systemd:/\n0::/user\n")
    assert groups["cpu"] == groups["cpuacct"] == PurePosixPath("/a:b")
    assert groups[""] == PurePosixPath("/user")


def test_a_group_outside_the_mount_falls_back_to_the_mount_point(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    mount = Mount(tmp_path, PurePosixPath("/docker/abc"), 1, frozenset({"memory"}))
    assert mount.place(PurePosixPath("/docker/abc/inner")) == tmp_path / "inner"
    for outside in ("/", "/docker/xyz", "/docker/abc/missing", "/../up"):
        assert mount.place(PurePosixPath(outside)) == tmp_path


def test_our_own_groups_are_ours_and_alive() -> None:
    name = full_name("some-name.1")
    assert is_ours(name)
    assert owner_of(name) is Owner.US
    assert not is_ours("lamella-tests")
    assert not is_ours("docker-1-2-x")


def test_an_owner_is_dead_before_it_is_reaped() -> None:
    with subprocess.Popen(["/bin/sh", "-c", "read line"], stdin=subprocess.PIPE) as process:
        name = f"lamella-{process.pid}-{start_ticks(process.pid)}-x"
        assert owner_of(name) is Owner.ALIVE
        assert process.stdin is not None
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert owner_of(name) is Owner.DEAD
    assert owner_of(name) is Owner.DEAD


def test_a_temporary_name_tells_its_owner() -> None:
    with subprocess.Popen(["/bin/sh", "-c", "read line"], stdin=subprocess.PIPE) as process:
        name = owned_by(process.pid, start_ticks(process.pid))
        assert owner_of_temporary(name) is Owner.ALIVE
        process.communicate(b"\n")
    assert owner_of_temporary(name) is Owner.DEAD
    assert owner_of_temporary(f"{mark('.plan.json')}1f") is Owner.US
    assert owner_of_temporary(owned_by(os.getpid(), start_ticks(os.getpid()) - 1)) is Owner.DEAD


def test_a_temporary_name_from_elsewhere_is_beyond_us() -> None:
    name = f"{mark('.plan.json')}1f"
    place = name.split("-")[-2]
    assert owner_of_temporary(name.replace(place, "0badcafe")) is Owner.ELSEWHERE


@pytest.mark.parametrize("name", ["plan.json", ".plan.json-abc123", "lamella-1-2-x", "work-lamella-1-2", "lamella"])
def test_other_names_are_nobodys(name: str) -> None:
    assert owner_of_temporary(name) is None


def test_a_long_label_still_gives_a_name_that_a_disk_takes() -> None:
    assert len((mark("ø" * 250) + "12345678").encode()) <= 255
