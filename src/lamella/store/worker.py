"""An instance whose function may come from the store: `python -m lamella.store.worker`, as of `runtime.worker`."""

import time

STARTED = time.monotonic()

from lamella.runtime import worker  # noqa: E402 - the clock must start before the imports it measures
from lamella.store.opening import open_shared  # noqa: E402

if __name__ == "__main__":
    import sys

    worker.import_channel(*sys.argv[4:5])
    worker.main(open_shared, started=STARTED, imported=time.monotonic())
