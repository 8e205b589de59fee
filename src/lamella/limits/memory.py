"""What one process holds, from /proc/PID. In MiB; every function raises `ProcessLookupError` if the process is gone.

A group's peak counts file cache and misses shared pages cached before; a process's peak does the reverse. Report both.
"""

from __future__ import annotations

from lamella.limits.procfs import read_proc, stat_field

_MAJOR_FAULTS = 12  # field number, proc(5)


def peak_rss_mb(pid: int) -> float:
    """Highest resident set so far (VmHWM), in MiB."""
    lines = (line.partition(":") for line in read_proc(pid, "status").splitlines())
    values = {key: value.split() for key, _, value in lines}
    if "VmHWM" not in values:  # of a zombie
        raise ProcessLookupError(f"process {pid} holds no memory any more")
    return int(values["VmHWM"][0]) / 1024


def major_faults(pid: int) -> int:
    """Page faults so far that had to read a disk."""
    return int(stat_field(pid, _MAJOR_FAULTS))


def private_mb(pid: int) -> float:
    """Pages that only this process maps, of files and of shared memory too."""
    return _rollup_mb(pid, "Private_Dirty") + _rollup_mb(pid, "Private_Clean")


def anonymous_mb(pid: int) -> float:
    """Its own memory, nothing mapped; of pages that a fork left to several processes (Pss) its part."""
    return _rollup_mb(pid, "Pss_Anon")


def _rollup_mb(pid: int, field: str) -> float:
    lines = (line.partition(":") for line in read_proc(pid, "smaps_rollup").splitlines())
    values = {key: value.split() for key, _, value in lines}
    if field not in values:  # of a zombie
        raise ProcessLookupError(f"process {pid} holds no memory any more")
    return int(values[field][0]) / 1024
