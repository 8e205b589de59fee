"""Models that are Python objects: found by name, exported to ONNX, compared with the original, imported."""

from __future__ import annotations

from lamella.frameworks.loading import load

__all__ = ["load"]
