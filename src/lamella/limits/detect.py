"""Which mechanism truly works here. v1 before v2: where both are mounted, v1 usually has the controllers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.errors import ConfigError
from lamella.limits import v1, v2
from lamella.limits.kernel import Kernel
from lamella.limits.mounts import parse_mountinfo, parse_self_cgroup
from lamella.limits.unlimited import Unlimited

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lamella.limits.group import Limiter

VARIABLE = "LAMELLA_LIMITS"
_NONE = "none"
_FINDERS = {"v1": v1.find, "v2": v2.find}


def detect(
    root: Path = Path("/sys/fs/cgroup"),
    self_cgroup: Path = Path("/proc/self/cgroup"),
    mountinfo: Path = Path("/proc/self/mountinfo"),
    *,
    env: Mapping[str, str] = os.environ,
    kernel: Kernel | None = None,
) -> Limiter:
    """The first limiter of v1, v2, none whose groups were really made, joined and removed. Takes a few ms.

    Only trees mounted at or below `root` are considered. `LAMELLA_LIMITS` (none, v1 or v2) in `env` forces a mode.

    Raises:
        ConfigError: the forced mode is unknown or impossible here, with the reason.
    """
    forced = env.get(VARIABLE, "")
    if forced == _NONE:
        return Unlimited(f"{VARIABLE}={_NONE} asks for none")
    if forced and forced not in _FINDERS:
        raise ConfigError(f"{VARIABLE}={forced} is not one of {_NONE}, {', '.join(_FINDERS)}")
    if not (self_cgroup.exists() and mountinfo.exists()):
        reasons = ["this system has no control groups"]
    else:
        mounts = parse_mountinfo(mountinfo.read_text(), root)
        own = parse_self_cgroup(self_cgroup.read_text())
        reasons = []
        for find in [_FINDERS[forced]] if forced else _FINDERS.values():
            found = find(mounts, own, root, kernel or Kernel())
            if not isinstance(found, str):
                return found
            reasons.append(found)
    reason = "; ".join(reasons)
    if forced:
        raise ConfigError(f"{VARIABLE}={forced} is impossible here: {reason}", try_=f"{VARIABLE}={_NONE}")
    return Unlimited(reason)
