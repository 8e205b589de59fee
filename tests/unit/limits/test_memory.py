from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lamella.limits.memory import anonymous_mb, major_faults, peak_rss_mb, private_mb

ME = os.getpid()
READERS = [peak_rss_mb, major_faults, private_mb, anonymous_mb]


def test_the_peak_remembers_what_was_given_back() -> None:
    touch = "b = bytearray(b'x') * (64 << 20); del b; print(flush=True); input()"
    argv = [sys.executable, "-c", touch]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert 64 < peak_rss_mb(process.pid) < 128
        process.communicate(b"\n")


def test_pages_of_a_file_that_nobody_else_maps_are_private_but_not_anonymous(tmp_path: Path) -> None:
    file = tmp_path / "mapped"
    with file.open("wb") as out:
        out.write(bytes(32 << 20))
        os.fsync(out.fileno())  # pages that are not on disk yet are dirty
    touch = (
        "import mmap, sys; f = open(sys.argv[1]); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ);"
        "sum(m[::4096]); b = bytearray(b'x') * (16 << 20); print(flush=True); input()"
    )
    argv = [sys.executable, "-c", touch, str(file)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert 16 < anonymous_mb(process.pid) < 32
        assert 48 < private_mb(process.pid) < 80
        process.communicate(b"\n")


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


def test_a_process_that_is_not_reaped_holds_no_memory() -> None:
    with subprocess.Popen(["/bin/true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError):
            peak_rss_mb(process.pid)
