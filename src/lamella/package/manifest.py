"""The package's own document: which functions, in which order, made from what, for which machine."""

from __future__ import annotations

import msgspec

from lamella.documents import Document
from lamella.machine import Machine


class Manifest(Document, frozen=True, kw_only=True):
    """`manifest.json`. Each function has a directory of its name with `function.json` and its files.

    Its own hash lies beside it, in `manifest.sha256`.
    """

    model: str
    model_hash: str
    planner: str
    platform: str
    functions: tuple[str, ...]
    machine: Machine
    sha256: dict[str, str]
    """Hash of each `function.json`, by function."""
    plan_sha256: str
    """Hash of `plan.json`."""
    refused: dict[str, str] = msgspec.field(default_factory=dict)
    """Functions whose products were to be blocked, and why they are not."""
