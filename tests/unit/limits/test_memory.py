from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lamella.limits.memory import major_faults, peak_rss_mb, pss_private, reset_peak, rss_mb

ME = os.getpid()
READERS = [peak_rss_mb, rss_mb, pss_private, major_faults, reset_peak]


def touch(size_mb: int) -> mmap.mmap:
    block = mmap.mmap(-1, size_mb << 20)
    block.write(b"x" * len(block))
    return block


def test_the_peak_remembers_what_was_given_back_until_it_is_reset() -> None:
    before = rss_mb(ME)
    touch(64).close()
    assert peak_rss_mb(ME) > before + 60
    reset_peak(ME)
    assert peak_rss_mb(ME) == pytest.approx(rss_mb(ME), abs=8)


def test_private_pages_are_part_of_the_proportional_set_which_is_part_of_the_resident_set() -> None:
    pss, private = pss_private(ME)
    assert 0 < private <= pss
    assert pss <= rss_mb(ME) + 1


def test_private_memory_grows_by_what_is_touched() -> None:
    _, before = pss_private(ME)
    with touch(32):
        assert pss_private(ME)[1] == pytest.approx(before + 32, abs=4)


def test_major_faults_never_run_backwards() -> None:
    first = major_faults(ME)
    assert 0 <= first <= major_faults(ME)


def test_a_name_with_brackets_and_spaces_does_not_shift_the_fields(tmp_path: Path) -> None:
    odd = tmp_path / "a) R 1 (b"
    odd.symlink_to("/bin/sh")
    with subprocess.Popen([odd, "-c", "echo; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert "a) R 1 (b" in Path(f"/proc/{process.pid}/stat").read_text()
        assert 0 <= major_faults(process.pid) < 1000
        process.communicate(b"\n")


@pytest.mark.parametrize("reader", READERS)
def test_a_process_that_is_gone_is_a_lookup_error(reader: Callable[[int], object]) -> None:
    with subprocess.Popen(["/bin/true"]) as process:
        pass
    with pytest.raises(ProcessLookupError):
        reader(process.pid)


@pytest.mark.parametrize("reader", [peak_rss_mb, rss_mb, pss_private])
def test_a_process_that_is_not_reaped_holds_no_memory(reader: Callable[[int], object]) -> None:
    with subprocess.Popen(["/bin/true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError):
            reader(process.pid)
