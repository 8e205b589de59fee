"""Memory and CPU limits on worker processes: cgroup v1, cgroup v2, or honestly nothing.

The idea. A serverless platform sells a function some MiB and some vCPU; a local run only means something if the kernel
holds the worker to the same numbers. `detect` finds the one mechanism that truly works here by making a group, joining
it with a process and removing it. When none works the limiter says so (`enforced` is False, `reason` in the user's
words) and every figure it cannot know is nan: a number measured without limits must never look like one measured with.

A worker joins its group *before* it execs: `Group.command` prefixes a few lines of shell that write their own pid into
the group and then become the worker. So every page of the interpreter is charged to the group, as on the real platform.

Rejected:

- `systemd-run`: needs a booted systemd, which containers and build machines lack, and costs tens of ms per worker.
- cgroup wrappers on PyPI: dead, v1 only, and the whole job is a dozen file writes.
- `preexec_fn`: runs Python between fork and exec, which can deadlock as soon as the driver has threads.
- Joining from inside the worker, or from the driver after the spawn: pages touched earlier (20 MB of interpreter) stay
  charged to the driver's group.
- `RLIMIT_AS`: limits addresses, not memory; a mapped model file counts in full although its pages can be dropped.
- Going to the root of the v1 tree when our own group is visible: it would slip out of limits set on us from outside.

Revisit when a kernel lets `clone3(CLONE_INTO_CGROUP)` be reached from `subprocess`: it removes the shell.
"""

from lamella.limits.detect import detect
from lamella.limits.group import Group, Limiter, Mode
from lamella.limits.sweep import sweep

__all__ = ["Group", "Limiter", "Mode", "detect", "sweep"]
