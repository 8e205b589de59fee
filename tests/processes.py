"""Processes and threads that tests start: none outlives the block it belongs to, however the block ends.

`with subprocess.Popen(...)` alone waits for the child, whatever went wrong in the block: where an assertion fails
before the child is told to end, the run never does. The same holds for a thread that is joined on the way out.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

JOIN_S = 30.0


@contextmanager
def running(argv: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process, killed where the block raises, and waited for."""
    with subprocess.Popen(argv, **options) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


@contextmanager
def beside(*targets: Callable[[], object], stop: Callable[[], object] | None = None) -> Iterator[None]:
    """Threads beside the block; `stop` tells them to end, and they must have ended a while after it.

    They are daemons: one that does not end is a failure here, and holds nothing up.
    """
    started = [threading.Thread(target=target, daemon=True) for target in targets]
    for thread in started:
        thread.start()
    try:
        yield
    finally:
        if stop:
            stop()
        for thread in started:
            thread.join(JOIN_S)
    assert not any(thread.is_alive() for thread in started), f"a thread had not ended after {JOIN_S:.0f} s"
