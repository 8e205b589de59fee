"""What ships: per function an optimised graph, its weights in one mapped file, and a manifest with hashes."""

from lamella.package.build import build, build_function
from lamella.package.integrity import read_sealed, seal, verify
from lamella.package.manifest import Manifest
from lamella.profile.layouts import Favour

__all__ = ["Favour", "Manifest", "build", "build_function", "read_sealed", "seal", "verify"]
