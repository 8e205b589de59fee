"""The catalogue of platforms: limits, prices, the memory-to-CPU rule, channels, starts. Data, not code."""

from lamella.platforms.platform import Platform
from lamella.platforms.reading import names, platform

__all__ = ["Platform", "names", "platform"]
