"""Who may do what in the store: an allow-list by user and group, and what one user may hold.

Decisions only: names of models against patterns, sums against bounds. Without a list the store serves the user that it
runs as, and root. A rule opens something, none closes anything; what no rule opens stays shut.

    [[allow]]
    user = "alice"                  # or group = "ml"; names or numbers
    open = ["bert@*", "resnet50@1"]
    put = ["alice-*"]               # also pin and evict
    administer = false              # everything: stop, and the whole status

    [quota]                         # per user
    leased_mb = 4096                # distinct segments that its leases hold
    connections = 256
"""

from __future__ import annotations

import fnmatch
import grp
import os
import pwd
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from lamella.errors import ConfigError
from lamella.store.peer import Peer

Bound = Annotated[int, msgspec.Meta(ge=0)]


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a user, or everybody in a group, may do; patterns are of the shell."""

    user: str | int | None = None
    group: str | int | None = None
    open: tuple[str, ...] = ()
    put: tuple[str, ...] = ()
    administer: bool = False


class Quota(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one user may hold at a time."""

    leased_mb: Bound | None = None
    """MB (MiB) of distinct segments that its leases hold; None is no bound."""
    connections: Bound = 256
    leases: Bound = 64
    """Per connection."""


class AllowList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file."""

    allow: tuple[Rule, ...] = ()
    quota: Quota = Quota()


class Access:
    """The allow-list with its names looked up, and the user that the store runs as."""

    def __init__(self, rules: AllowList | None = None, own_uid: int | None = None) -> None:
        """By `rules`; the store's own user is `own_uid`, this process's by default.

        Raises:
            ConfigError: a rule names no user or group, both, or one that does not exist.
        """
        rules = rules or AllowList()
        self.quota = rules.quota
        self._trusted = {0, os.getuid() if own_uid is None else own_uid}
        self._rules = [(*_who(rule), rule) for rule in rules.allow]

    @property
    def shared(self) -> bool:
        """Whether other users than the store's own are named."""
        return any(uid is None or uid not in self._trusted for uid, _, _ in self._rules)

    def knows(self, peer: Peer) -> bool:
        """Whether any rule concerns the peer: who has nothing to ask for is to take no connection from the others."""
        return self.may_administer(peer) or bool(self._of(peer))

    def may_administer(self, peer: Peer) -> bool:
        """Whether the peer may stop the store, see all of it and do everything."""
        return peer.uid in self._trusted or any(rule.administer for rule in self._of(peer))

    def may_open(self, peer: Peer, model: str) -> bool:
        """Whether the peer may lease the model."""
        return self.may_administer(peer) or _matches(model, [p for rule in self._of(peer) for p in rule.open])

    def may_put(self, peer: Peer, model: str) -> bool:
        """Whether the peer may put, pin and evict the model."""
        return self.may_administer(peer) or _matches(model, [p for rule in self._of(peer) for p in rule.put])

    def _of(self, peer: Peer) -> list[Rule]:
        return [rule for uid, gid, rule in self._rules if uid == peer.uid or (gid is not None and gid in peer.groups)]


def _matches(model: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(model, pattern) for pattern in patterns)


def _who(rule: Rule) -> tuple[int | None, int | None]:
    """The rule's user id or its group id."""
    if (rule.user is None) == (rule.group is None):
        raise ConfigError("a rule of the allow-list names a user or a group", try_='[[allow]] with user = "alice"')
    try:
        if rule.user is not None:
            return (rule.user if isinstance(rule.user, int) else pwd.getpwnam(rule.user).pw_uid), None
        assert rule.group is not None
        return None, (rule.group if isinstance(rule.group, int) else grp.getgrnam(rule.group).gr_gid)
    except KeyError as error:
        raise ConfigError(
            f"the allow-list names {rule.user or rule.group!r}, whom this machine does not know"
        ) from error


def read_allow_list(path: Path) -> AllowList:
    """The allow-list in a TOML file.

    Raises:
        ConfigError: it cannot be read, or is not such a list, or others than its owner and root may write it.
    """
    hint = "lamella store serve --help, and the guide on the store"
    try:
        state = path.stat()
        if state.st_mode & 0o022 or state.st_uid not in (0, os.getuid()):
            raise ConfigError(
                f"the allow-list {path} can be written by others", try_=f"chmod go-w {path}, as its owner"
            )
        return msgspec.convert(tomllib.loads(path.read_text()), AllowList)
    except OSError as error:
        raise ConfigError(f"cannot read the allow-list {path}: {error.strerror}", try_=hint) from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not an allow-list: {error}", try_=hint) from error
