"""Which models are the later stages of a plan, by their names: `plan/stage-2@1` follows `plan/stage-1@1`."""

from __future__ import annotations

import re
from collections.abc import Iterable


def following(model: str, names: Iterable[str]) -> list[str]:
    """The other stages of the plan whose first stage this is, in order; none for any other model."""
    plan, slash, rest = model.partition("/")
    version = rest.rpartition("@")[2]
    if not slash:
        return []
    same = {n for n in (*names, model) if n.startswith(f"{plan}/") and n.endswith(f"@{version}")}
    stages = sorted(same, key=_natural)
    return stages[1:] if stages[0] == model else []


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts stage-2 before stage-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
