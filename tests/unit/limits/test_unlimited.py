from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from lamella.errors import ConfigError
from lamella.limits import Mode, detect, sweep
from lamella.limits.unlimited import Unlimited


def test_asking_for_none_gets_none_with_the_reason() -> None:
    limiter = detect(env={"LAMELLA_LIMITS": "none"})
    assert (limiter.mode, limiter.enforced) == (Mode.NONE, False)
    assert limiter.reason == "LAMELLA_LIMITS=none asks for none"


def test_an_unknown_mode_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="LAMELLA_LIMITS=docker is not one of none, v1, v2"):
        detect(env={"LAMELLA_LIMITS": "docker"})


def test_a_system_without_control_groups_is_told_so(tmp_path: Path) -> None:
    assert detect(tmp_path, tmp_path / "no", tmp_path / "no", env={}).reason == "this system has no control groups"


def test_an_unlimited_group_knows_nothing_and_says_so() -> None:
    limiter = Unlimited("no rights")
    with limiter.create("free", memory_mb=64, vcpu=None) as group:
        assert group.command(["prog", "a b"]) == ["prog", "a b"]
        assert (group.oom_kills(), group.pids(), group.affinity) == (0, [], None)
        assert math.isnan(group.peak_mb())
    assert limiter.names() == []
    assert sweep(limiter) == []


def test_affinity_is_the_share_rounded_up_to_whole_cpus() -> None:
    cpus = os.sched_getaffinity(0)
    group = Unlimited("no rights").create("pinned", memory_mb=None, vcpu=0.5)
    assert group.affinity is not None
    assert len(group.affinity) == 1
    group.resize(memory_mb=None, vcpu=len(cpus) + 0.5)
    assert group.affinity == cpus


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs to tell them apart")
def test_two_small_groups_are_pinned_to_different_cpus() -> None:
    limiter = Unlimited("no rights")
    one, two = (limiter.create(name, memory_mb=None, vcpu=1).affinity for name in ("one", "two"))
    assert one != two


@pytest.mark.parametrize(("memory_mb", "vcpu"), [(0, None), (-1, None), (None, 0.0), (None, -1.0), (None, math.inf)])
def test_limits_are_checked_even_where_none_hold(memory_mb: int | None, vcpu: float | None) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        Unlimited("no rights").create("bad", memory_mb=memory_mb, vcpu=vcpu)


@pytest.mark.parametrize("name", ["", "a/b", "..\n", "ä", "x" * 101])
def test_a_name_that_is_no_plain_word_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="a group's name takes"):
        Unlimited("no rights").create(name, memory_mb=None, vcpu=None)
