"""`lamella clean`: remove what dead runs left behind."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from lamella.cli.options import Json, S3Bucket, S3Endpoint
from lamella.cli.show import print_json
from lamella.limits import detect, sweep
from lamella.limits.owner import Owner
from lamella.limits.sweep import abandoned
from lamella.objects import ObjectStore, bucket
from lamella.scratch import leftovers, remove


class Cleaned(msgspec.Struct, frozen=True):
    """`lamella clean --json`."""

    groups: tuple[str, ...]
    paths: tuple[str, ...]
    objects: tuple[str, ...]
    elsewhere: tuple[str, ...]
    """Left alone: their owner is, or was, on another machine or in another container."""
    dry_run: bool


def clean(
    *directories: Annotated[Path, Parameter(help="Where else documents and packages were written.")],
    dry_run: Annotated[bool, Parameter(name="--dry-run", negative="", help="Only say what would be removed.")] = False,
    s3_endpoint: S3Endpoint = None,
    s3_bucket: S3Bucket = None,
    json: Json = False,
) -> None:
    """Remove processes, control groups and temporary files of runs that are dead; never what a living run uses.

    Looks in the cache, in the current directory and in those given, and in the bucket where one is named. Runs clean up
    after themselves and workers die with their driver, so there is something to do only after one was killed.
    """
    limiter = detect()
    groups = abandoned(limiter) if dry_run else sweep(limiter)
    found = leftovers([Path(), *directories])
    dead = [left.path for left in found if left.owner is Owner.DEAD]
    gone = [path for path in dead if dry_run or remove(path)]
    where = bucket(s3_bucket, s3_endpoint)
    objects = _dead_objects(ObjectStore(where), dry_run) if where else ()
    cleaned = Cleaned(
        groups=tuple(groups),
        paths=tuple(map(str, gone)),
        objects=objects,
        elsewhere=tuple(str(left.path) for left in found if left.owner is Owner.ELSEWHERE),
        dry_run=dry_run,
    )
    if json:
        print_json(cleaned)
        return
    for name in (*cleaned.groups, *cleaned.paths, *cleaned.objects):
        print(name)
    for name in cleaned.elsewhere:
        print(f"left alone, its owner is on another machine or in another container: {name}")
    for path in sorted(set(dead) - set(gone)):
        print(f"cannot remove {path}", file=sys.stderr)
    print(
        f"{'would remove' if dry_run else 'removed'} {len(groups)} control group(s) "
        f"and {len(gone)} temporary file(s) or directories" + (f", {len(objects)} object(s)" if where else "")
    )


def _dead_objects(store: ObjectStore, dry_run: bool) -> tuple[str, ...]:
    """Objects whose owner is dead; they are removed."""
    dead = tuple(key for key, owner in store.leftovers().items() if owner is Owner.DEAD)
    if dead and not dry_run:
        store.delete(dead)
    return dead
