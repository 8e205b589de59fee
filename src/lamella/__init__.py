"""lamella finds the cheapest way to serve a deep-learning model on serverless functions.

`lamella.load` is the way in from Python. This module loads nothing on purpose: `lamella.runtime` lives below it, and
importing the runtime *is* a function's cold start. So `load` is found when it is first asked for.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from lamella.frameworks.loading import load
else:

    def __getattr__(name: str) -> object:
        if name != "load":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from lamella.frameworks import load

        return load
