"""A daemon whose loads take a while, so that others are served meanwhile: `serve_slowly.py SETTINGS SOCKET [ALLOW]`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from lamella.store import shelves
from lamella.store.access import Access, read_allow_list
from lamella.store.records import Settings
from lamella.store.serving import serve

LOAD_S = 0.15


class SlowLoad(shelves.Load):
    """The store's own, later, and written down."""

    def run(self) -> None:
        with settings.root.with_name("loads").open("a") as file:
            file.write(f"{self.id}\n")
        time.sleep(LOAD_S)
        super().run()


if __name__ == "__main__":
    given, path = json.loads(sys.argv[1]), Path(sys.argv[2])
    settings = Settings(**given | {"root": Path(given["root"])})
    rules = read_allow_list(Path(sys.argv[3])) if sys.argv[3:] else None
    os.umask(0o077)
    shelves.Load = SlowLoad  # type: ignore[misc]
    made = shelves.Shelves(settings)
    serve(made, settings.root, path, Access(rules), lambda: print("serving", flush=True))
