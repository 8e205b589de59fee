"""The catalogue of platforms: limits, prices, the memory-to-CPU rule. Data, not code."""

from lamella.platforms.platform import Platform, names, platform

__all__ = ["Platform", "names", "platform"]
