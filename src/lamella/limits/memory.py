"""What one process holds, from /proc/PID. In MiB; every function raises `ProcessLookupError` if the process is gone.

A group's peak counts file cache and misses shared pages cached before; a process's peak does the reverse. Report both.
"""

from __future__ import annotations

from lamella.limits.procfs import PROC, read_proc, stat_field

_MAJOR_FAULTS = 12  # field number, proc(5)
_RESET_PEAK = "5"  # /proc/PID/clear_refs, proc(5)


def peak_rss_mb(pid: int) -> float:
    """Highest resident set so far (VmHWM), in MiB."""
    return _sizes_mb(pid, "status", "VmHWM")[0]


def rss_mb(pid: int) -> float:
    """Resident set now (VmRSS), in MiB."""
    return _sizes_mb(pid, "status", "VmRSS")[0]


def pss_private(pid: int) -> tuple[float, float]:
    """Proportional set (shared pages divided among their users) and private pages, in MiB."""
    pss, clean, dirty = _sizes_mb(pid, "smaps_rollup", "Pss", "Private_Clean", "Private_Dirty")
    return pss, clean + dirty


def major_faults(pid: int) -> int:
    """Page faults so far that had to read a disk."""
    return int(stat_field(pid, _MAJOR_FAULTS))


def reset_peak(pid: int) -> None:
    """Start `peak_rss_mb` again from the resident set of now."""
    try:
        (PROC / str(pid) / "clear_refs").write_text(_RESET_PEAK)
    except FileNotFoundError as error:
        raise ProcessLookupError(f"process {pid} is gone") from error


def _sizes_mb(pid: int, file: str, *keys: str) -> list[float]:
    """Values of lines `Key:  number kB`; a zombie has none, and counts as gone."""
    lines = (line.partition(":") for line in read_proc(pid, file).splitlines())
    values = {key: value.split() for key, _, value in lines if key in keys}
    if len(values) < len(keys):
        raise ProcessLookupError(f"process {pid} holds no memory any more")
    return [int(values[key][0]) / 1024 for key in keys]
