"""Every error a user can meet, by cause.

One tree, so that a caller can catch by cause (`InstanceLost`) or finer (`OutOfMemory`). Each error says what happened,
where in the user's world, the numbers, and the next command to try. Codes are stable: scripts and docs refer to them.
Standard library only: the runtime inside a function imports this module too.
"""

from __future__ import annotations


class LamellaError(Exception):
    """The root. `code` is stable; `exit_code` is what the command line returns."""

    code = "error"
    exit_code = 1

    def __init__(self, message: str, *, where: str = "", try_: str = "") -> None:
        """What happened with its numbers, `where` in the user's world, and the next command to `try_`."""
        super().__init__(message)
        self.message = message
        self.where = where
        self.try_ = try_

    def __str__(self) -> str:
        """One paragraph: what, where, what next."""
        parts = [self.message]
        if self.where:
            parts.append(f"  where: {self.where}")
        if self.try_:
            parts.append(f"  try:   {self.try_}")
        return "\n".join(parts)


class ConfigError(LamellaError):
    """A request we cannot understand: an unknown platform or planner, a malformed option or document."""

    code = "config"
    exit_code = 2


class MissingExtra(ConfigError):
    """What was asked needs an optional part of lamella that is not installed."""

    code = "config.extra"


class ModelError(LamellaError):
    """The model file is missing, broken, or uses something that cannot be served."""

    code = "model"


class UnboundShape(ModelError):
    """An input has a symbolic dimension the user has to bind with `--shape`."""

    code = "model.shape"
    exit_code = 2


class ExportRefused(ModelError):
    """A framework's model cannot be exported, or what was exported answers differently."""

    code = "model.export"


class InputRefused(LamellaError):
    """A request's tensors do not fit the model: wrong name, dtype, shape, or no value at all."""

    code = "input"
    exit_code = 2


class ShardRefused(LamellaError):
    """Operators cannot be divided among parallel shards as asked: says which operator stands in the way, and why."""

    code = "shard"


class InfeasiblePlan(LamellaError):
    """No plan satisfies the request: says which constraint binds, by how much, and the nearest feasible plan."""

    code = "plan.infeasible"
    exit_code = 3


class PlatformLimit(LamellaError):
    """A plan breaks a limit of its platform: memory, package, payload or timeout."""

    code = "plan.limit"
    exit_code = 4


class LawBroken(LamellaError):
    """A plan or package contradicts itself or its model (see the laws in docs/architecture.md)."""

    code = "plan.law"
    exit_code = 4


class PackageError(LamellaError):
    """A package is damaged, incomplete, or made for another machine or runtime version."""

    code = "package"


class StorageError(LamellaError):
    """The disk refused: full, read-only, or no permission; or an object store fails or does not answer."""

    code = "storage"


class StoreError(LamellaError):
    """The model store cannot do as asked. Subclasses name the cause."""

    code = "store"


class UnknownModel(StoreError):
    """No model of this name is in the store."""

    code = "store.unknown"
    exit_code = 2


class StoreFull(StoreError):
    """A tier's budget has no room for the model beside what is leased or pinned."""

    code = "store.full"


class StoreDamaged(StoreError):
    """A blob's bytes are not those its name says, and no other tier has them; it was set aside, not served."""

    code = "store.damaged"


class ModelLeased(StoreError):
    """A model that processes hold, or that is pinned, cannot be evicted or removed."""

    code = "store.leased"


class StoreConflict(StoreError):
    """Another model of this name and version is there already, or another daemon runs on the same directory."""

    code = "store.conflict"


class RemoteAway(StoreError):
    """The store's remote storage does not answer, or refuses."""

    code = "store.remote"


class StoreDenied(StoreError):
    """The store's allow-list does not let this user do that with this model; whether there is one is not said."""

    code = "store.denied"


class StoreQuota(StoreError):
    """A user holds as much of the store as one may: bytes, leases or connections."""

    code = "store.quota"


class StoreAway(StoreError):
    """No daemon of the store answers at this socket, or one that this user has no reason to trust."""

    code = "store.away"


class WireError(LamellaError):
    """A message between driver and worker was cut short or not understood."""

    code = "wire"


class CodecError(WireError):
    """A codec met bytes it cannot decode, or broke its stated bound."""

    code = "wire.codec"


class InstanceLost(LamellaError):
    """An instance ended before it answered. Subclasses name the cause."""

    code = "instance"


class OutOfMemory(InstanceLost):
    """The kernel killed the instance at its memory limit."""

    code = "instance.oom"


class InstanceCrashed(InstanceLost):
    """The instance's process died by itself."""

    code = "instance.crash"


class FunctionTimeout(InstanceLost):
    """The instance did not answer within the platform's timeout and was killed."""

    code = "instance.timeout"
