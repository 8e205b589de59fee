"""Reading /proc/PID, where a process may vanish between two reads."""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")


def read_proc(pid: int, file: str) -> str:
    """The text of /proc/PID/file.

    Raises:
        ProcessLookupError: the process is gone.
        PermissionError: it belongs to somebody else.
    """
    try:
        return (PROC / str(pid) / file).read_text()
    except FileNotFoundError as error:
        raise ProcessLookupError(f"process {pid} is gone") from error


def stat_field(pid: int, number: int) -> str:
    """Field `number` (from 3 on, as numbered in proc(5)) of /proc/PID/stat.

    Raises:
        ProcessLookupError: the process is gone.
    """
    text = read_proc(pid, "stat")
    after_name = text[text.rindex(")") + 1 :]  # the name may hold spaces and brackets
    return after_name.split()[number - 3]
