"""Where the control group trees are mounted and where in them this process lives: proc(5), cgroups(7)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted tree: `subtree` is the part of the hierarchy visible at `point`; `options` name v1 controllers."""

    point: Path
    subtree: PurePosixPath
    version: int
    options: frozenset[str]

    def place(self, group: PurePosixPath) -> Path:
        """The directory of `group`; the mount point itself if the group lies outside what is mounted.

        The latter is a container that sees its own tree at the mount point but the host's path in /proc/self/cgroup.
        """
        if ".." in group.parts or not group.is_relative_to(self.subtree):
            return self.point
        place = self.point / group.relative_to(self.subtree)
        return place if place.is_dir() else self.point


def parse_mountinfo(text: str, root: Path) -> list[Mount]:
    """The cgroup mounts at or below `root`, in mount order."""
    mounts = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in {"cgroup", "cgroup2"}:
            continue
        point = Path(_unescape(fields[4]))
        if point.is_relative_to(root):
            version = 2 if kind[0] == "cgroup2" else 1
            mounts.append(Mount(point, PurePosixPath(_unescape(fields[3])), version, frozenset(kind[2].split(","))))
    return mounts


def parse_self_cgroup(text: str) -> dict[str, PurePosixPath]:
    """Our own group by v1 controller, and by the empty name for v2."""
    groups = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), PurePosixPath(path)))
    return groups


def _unescape(field: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)
