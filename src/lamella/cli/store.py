"""`lamella store`: one copy of the weights for all processes of this machine."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from lamella.cli.options import Json
from lamella.cli.show import console, megabytes, print_json, table
from lamella.documents import cache_dir
from lamella.errors import ConfigError, UnknownModel
from lamella.store import client
from lamella.store.records import portable_name
from lamella.store.report import Report

store = App(name="store", help_format="plaintext")

Socket = Annotated[
    Path | None,
    Parameter(name="--socket", help="Where the daemon listens: LAMELLA_STORE, else your own, else the machine's."),
]
PRELOAD = Path(client.__file__).parent / "preload"


@store.command
def serve(
    *,
    root: Annotated[Path | None, Parameter(help="The disk tier; in the cache by default.")] = None,
    socket: Socket = None,
    memory_mb: Annotated[int | None, Parameter(help="Budget of the memory tier, MB.")] = None,
    disk_mb: Annotated[int | None, Parameter(help="Budget of the disk tier, MB.")] = None,
    policy: Annotated[str, Parameter(help="What leaves memory first.")] = "lru",
    remote: Annotated[
        str | None, Parameter(help="s3://BUCKET[/PREFIX]; endpoint and keys in the AWS variables.")
    ] = None,
    backing: Annotated[
        str | None, Parameter(help="huge-tmpfs, page-cache or memfd; the first that works here.")
    ] = None,
    allow: Annotated[Path | None, Parameter(help="Allow-list (TOML): which user may open and put which model.")] = None,
) -> None:
    """Run the daemon until it is told to stop, by `lamella store stop`, SIGTERM or Ctrl-C."""
    from lamella.store.process import Order, become
    from lamella.store.records import Settings

    for option, value in (("--memory-mb", memory_mb), ("--disk-mb", disk_mb)):
        if value is not None and value < 0:
            raise ConfigError(f"{option} is {value}, it cannot be below zero")
    settings = Settings(
        root=(root or cache_dir() / "store").absolute(),
        memory_bytes=None if memory_mb is None else memory_mb << 20,
        disk_bytes=None if disk_mb is None else disk_mb << 20,
        policy=policy,
        remote=remote,
        backing=backing,
    )
    path = socket or Path(os.environ.get(client.SOCKET) or client.own_socket())
    become(Order(settings=settings, socket=path, allow=allow))


@store.command
def status(*, socket: Socket = None, json: Json = False) -> None:
    """What the daemon holds, in which tier, and who leases it."""
    report = client.status(socket)
    if json:
        print_json(report)
    else:
        _show(report)


@store.command
def put(
    model: Path,
    name: Annotated[str, Parameter(help="NAME@VERSION; a package's functions become NAME/FUNCTION@VERSION.")],
    *,
    socket: Socket = None,
    json: Json = False,
) -> None:
    """Put MODEL, a package directory or an .onnx file, into the store as NAME@VERSION."""
    from lamella.store.handing import hand_over

    names = hand_over(model, name, socket)
    if json:
        print_json({"models": names})
        return
    for each in names:
        print(each)


@store.command
def pin(
    name: str,
    *,
    off: Annotated[bool, Parameter(name="--off", negative="", help="Let it leave memory again.")] = False,
    socket: Socket = None,
    json: Json = False,
) -> None:
    """Bring a model, or every function of a package, into memory and keep it there."""
    with client.connect(socket) as connection:
        for each in _put_as(name, connection):
            connection.pin(each, not off)
    _done(name, "unpinned" if off else "pinned", json)


@store.command
def evict(name: str, *, socket: Socket = None, json: Json = False) -> None:
    """Take a model that nobody leases, or every function of a package, out of memory; it stays on disk."""
    with client.connect(socket) as connection:
        for each in _put_as(name, connection):
            _drop(each, connection, disk=False)
    _done(name, "evicted", json)


@store.command
def remove(name: str, *, socket: Socket = None, json: Json = False) -> None:
    """Take a model that nobody leases, or every function of a package, out of memory and off the disk."""
    with client.connect(socket) as connection:
        for each in _put_as(name, connection):
            _drop(each, connection, disk=True)
    _done(name, "removed", json)


@store.command
def stop(*, socket: Socket = None, json: Json = False) -> None:
    """End the daemon. Processes go on with what they have mapped."""
    with client.connect(socket) as connection:
        connection.stop()
        _done(str(connection.path), "stopped", json)  # asked now, another daemon's socket would be found


@store.command(name="exec")
def exec_(
    *command: Annotated[str, Parameter(allow_leading_hyphen=True, help="The program and its arguments.")],
    socket: Socket = None,
) -> None:
    """Run a program whose `InferenceSession`s are served from the store where the model is known."""
    if not command:
        raise ConfigError("no program to run", try_="lamella store exec python app.py")
    before = os.environ.get("PYTHONPATH")
    paths = [
        str(PRELOAD),
        *([before] if before else []),
    ]  # not where lamella lies: another environment has its own numpy
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if socket:
        environment[client.SOCKET] = str(socket.absolute())
    sys.stdout.flush()
    try:
        os.execvpe(command[0], command, environment)
    except OSError as error:
        raise ConfigError(f"cannot run {command[0]}: {error.strerror}") from error


def _put_as(name: str, connection: client.Connection) -> list[str]:
    """The models that `put` made as NAME@VERSION: one, or a package's functions. Their variants go with them."""
    plain, at, version = name.partition("@")
    models = [m.name for m in connection.status().store.models]
    functions = [m for m in models if m.startswith(f"{plain}/") and m.endswith(f"{at}{version}")]
    return functions if name not in models and functions else [name]


def _drop(name: str, connection: client.Connection, *, disk: bool) -> None:
    """A model and its variant for any CPU, which may be gone."""
    connection.evict(name, disk=disk)
    with suppress(UnknownModel):
        connection.evict(portable_name(name), disk=disk)


def _done(what: str, how: str, json: bool) -> None:
    if json:
        print_json({how: what})
    else:
        print(f"{what}: {how}")


def _show(report: Report) -> None:
    out = console()
    tiers = [
        (
            t.name,
            t.backing,
            megabytes(t.used_bytes),
            "-" if t.budget_bytes is None else megabytes(t.budget_bytes),
            str(t.blobs),
            t.why,
        )
        for t in report.store.tiers
    ]
    out.print(table(["tier", "backing ", "used MB", "budget MB", "blobs", "why "], tiers))
    models = [
        (
            m.name,
            megabytes(m.bytes),
            megabytes(m.shared_bytes),
            megabytes(m.memory_bytes),
            str(m.leases),
            "yes" if m.pinned else "",
            str(m.hits),
            str(m.loads),
        )
        for m in report.store.models
    ]
    out.print(table(["model", "MB", "shared MB", "in memory MB", "leases", "pinned ", "hits", "loads"], models))
    users = [(str(u.uid), str(u.connections), str(u.leases), megabytes(u.leased_bytes)) for u in report.users]
    out.print(table(["user", "connections", "leases", "leased MB"], users))
    out.print(
        f"policy {report.store.policy}, {report.store.evictions} eviction(s), {report.store.damaged} damaged blob(s), "
        f"{report.refused} refused"
    )
    for note in report.store.notes:
        out.print(note, markup=False, highlight=False)
