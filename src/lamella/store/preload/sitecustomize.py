"""Found by `site` before the program starts: waits for onnxruntime to be imported, and hooks it then.

A program that never imports onnxruntime pays for this file alone, and for no import. Whatever `sitecustomize` the
program would have found without us is run as well.
"""

import sys


class _Watch:
    """A finder that finds nothing but onnxruntime, once."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        """Where onnxruntime is found, with the hook behind its loading."""
        if name != "onnxruntime":
            return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec

        spec = find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module):  # type: ignore[no-untyped-def]
            load(module)
            try:
                from lamella.store.hook import install
            except ImportError:  # another environment than lamella's: the program goes its ordinary way
                return
            install(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _run_hidden() -> None:
    """Run the `sitecustomize` that this one stands before."""
    from importlib.machinery import PathFinder

    here = __file__.rpartition("/")[0]
    spec = PathFinder.find_spec("sitecustomize", [p for p in sys.path if p.rstrip("/") != here])
    if spec and spec.loader and spec.origin != __file__:
        from importlib.util import module_from_spec

        spec.loader.exec_module(module_from_spec(spec))


sys.meta_path.insert(0, _Watch())
_run_hidden()
