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


def private_mb(pid: int, *, clean: bool = True) -> float:
    """What would be free if the process ended: pages that only it maps, in MiB.

    Args:
        pid: the process.
        clean: whether pages of files count that no one else maps; what a page cache, or a store, holds anyway does not.
    """
    fields = dict(line.split(":", 1) for line in read_proc(pid, "smaps_rollup").splitlines()[1:])
    keys = ("Private_Dirty", "Private_Clean") if clean else ("Private_Dirty",)
    if not all(key in fields for key in keys):  # of a zombie
        raise ProcessLookupError(f"process {pid} holds no memory any more")
    return sum(int(fields[key].split()[0]) for key in keys) / 1024
