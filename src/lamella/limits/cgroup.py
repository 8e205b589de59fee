"""What cgroup v1 and v2 share: a group is a directory (v1: one per mounted tree) with control files in it.

Directories are kept by controller. In v2 all controllers name one directory, in v1 those that are mounted together do.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from lamella.errors import ConfigError, LamellaError
from lamella.limits.group import DEFAULT_PERIOD_MS, Group, Limiter
from lamella.limits.kernel import Kernel, refusal
from lamella.limits.owner import full_name, is_ours

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

MIB = 1 << 20
CANNOT_JOIN = 97
PATIENCE_S = 5.0  # for the kernel to finish killing and reaping
_GONE = {errno.ENOENT, errno.ENODEV}
_PROCS = "cgroup.procs"
_JOIN = f"""\
while [ "$1" != -- ]; do
  echo $$ > "$1" || {{ echo "lamella: cannot join the group at $1" >&2; exit {CANNOT_JOIN}; }}
  shift
done
shift
exec "$@"
"""


class ControlGroup(Group):
    """A group held by the kernel; subclasses know the files of their version."""

    def __init__(self, name: str, places: Mapping[str, Path], period_ms: int, kernel: Kernel) -> None:
        """`places` maps each controller to the directory that holds groups, not to the group's own."""
        self.name = name
        self._at = {controller: place / name for controller, place in places.items()}
        self._dirs = list(dict.fromkeys(self._at.values()))
        self._period_ms = period_ms
        self._kernel = kernel

    def make(self) -> None:
        """Make the directories.

        Raises:
            ConfigError: one exists or cannot be made; those made before are removed again.
        """
        made: list[Path] = []
        for path in self._dirs:
            try:
                self._kernel.mkdir(path)
            except OSError as error:
                for other in made:
                    self._kernel.rmdir(other)
                raise ConfigError(refusal(path, error)) from error
            made.append(path)

    def command(self, argv: Sequence[str]) -> list[str]:
        """See `Group.command`."""
        procs = [str(path / _PROCS) for path in self._dirs]
        return ["/bin/sh", "-c", _JOIN, "lamella-join", *procs, "--", *argv]

    @property
    def gates(self) -> list[Path]:
        """See `Group.gates`."""
        return [path / _PROCS for path in self._dirs]

    def pids(self) -> list[int]:
        """See `Group.pids`."""
        members: set[int] = set()
        for path in self._dirs:
            try:
                members.update(map(int, self._kernel.read(path / _PROCS).split()))
            except OSError as error:
                if error.errno not in _GONE:
                    raise
        return sorted(members)

    def kill(self) -> None:
        """See `Group.kill`."""
        if not _within(PATIENCE_S, self._strike):
            raise LamellaError(f"members of {self.name} survived SIGKILL for {PATIENCE_S:g} s: {self.pids()}")

    def remove(self) -> None:
        """See `Group.remove`."""
        for path in self._dirs:
            if not _within(PATIENCE_S, lambda path=path: self._rmdir(path)):  # type: ignore[misc]
                raise LamellaError(f"{self.name} still has members after {PATIENCE_S:g} s: {self.pids()}")

    def _strike(self) -> bool:
        """Kill whoever is in the group now; True when nobody was. Repeated, it outruns members that fork."""
        members = self.pids()
        for pid in filter(None, members):  # kill(0) would hit our own process group
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return not members

    def _rmdir(self, path: Path) -> bool:
        try:
            self._kernel.rmdir(path)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return False
            if error.errno not in _GONE:
                raise LamellaError(refusal(path, error)) from error
        return True

    def _write(self, controller: str, file: str, value: str) -> None:
        path = self._at[controller] / file
        try:
            self._kernel.write(path, value)
        except OSError as error:
            raise ConfigError(refusal(path, error), where=f"{file} = {value}") from error

    def _has(self, controller: str, file: str) -> bool:
        return (self._at[controller] / file).exists()

    def _figure(self, controller: str, file: str, key: str = "") -> float:
        """A number from a control file, or from its line `key number`; nan if the kernel has no such file or line.

        Raises:
            LamellaError: the group has been removed.
        """
        if not all(path.is_dir() for path in self._dirs):
            raise LamellaError(f"{self.name} has been removed: its figures are gone")
        if not self._has(controller, file):
            return math.nan
        text = self._kernel.read(self._at[controller] / file)
        if not key:
            return float(text)
        lines = (line.split() for line in text.splitlines())
        return next((float(words[1]) for words in lines if words[0] == key), math.nan)


class ControlLimiter(Limiter):
    """Makes control groups in fixed places; subclasses say of which kind."""

    reason = ""

    def __init__(self, places: Mapping[str, Path], kernel: Kernel | None = None) -> None:
        """`places` maps each controller to the directory in which groups are made."""
        self.places = dict(places)
        self.kernel = kernel or Kernel()

    def create(
        self, name: str, *, memory_mb: int | None, vcpu: float | None, period_ms: int = DEFAULT_PERIOD_MS
    ) -> Group:
        """See `Limiter.create`."""
        group = self._group(full_name(name), period_ms)
        group.make()
        try:
            group.resize(memory_mb=memory_mb, vcpu=vcpu)
        except BaseException:
            group.remove()
            raise
        return group

    def names(self) -> list[str]:
        """See `Limiter.names`."""
        found = {path.name for place in self.places.values() if place.is_dir() for path in place.iterdir()}
        return sorted(filter(is_ours, found))

    def open(self, name: str) -> Group:
        """See `Limiter.open`."""
        return self._group(name, DEFAULT_PERIOD_MS)

    def probe(self) -> str:
        """Why limits do not work here, found by making a group, joining it and removing it; empty if they do."""
        try:
            with self.create(f"probe-{threading.get_ident()}", memory_mb=64, vcpu=None) as group:
                joined = subprocess.run(group.command(["/bin/sh", "-c", ":"]), capture_output=True, text=True)
                return "" if joined.returncode == 0 else joined.stderr.strip()
        except LamellaError as error:
            return error.message

    def _group(self, name: str, period_ms: int) -> ControlGroup:
        raise NotImplementedError


def _within(patience_s: float, done: Callable[[], bool]) -> bool:
    """Whether `done` comes true in time, asked every ms."""
    deadline = time.monotonic() + patience_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True
