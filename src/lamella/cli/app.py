"""The `lamella` program: which verbs there are, and how an error leaves.

Verbs are imported when they are called. Exit codes: 0 done, 2 usage, 3 infeasible, 4 a platform limit or law, 1 the
rest, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cyclopts import App, CycloptsError

from lamella import __version__
from lamella.cli.options import arguments
from lamella.errors import LamellaError

app = App(
    name="lamella",
    help="Find the cheapest way to serve a deep-learning model on serverless functions, and prove it on this machine.",
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # ours to answer: it says what is kept
)
VERBS = {
    "inspect": "What a model is made of, and where it can be divided.",
    "calibrate": "Measure what operators take on this machine, to predict models that were never run.",
    "profile": "Measure a model on this machine, per unit and per cut.",
    "plan": "Find the cheapest way to serve a model on a platform.",
    "explain": "Why a plan is as it is: other kinds of plans, and what each constraint costs.",
    "diff": "What changed between two plans, and what it does to cost and latency.",
    "check": "Check a plan against the laws and its platform's limits.",
    "package": "Write what ships: optimised graphs, mapped weights, manifests.",
    "run": "Answer a request with a plan's functions on this machine.",
    "compare": "Deploy several plans for real and measure them side by side.",
    "report": "Make one page to read of what `compare` measured.",
    "platforms": "What is known of each platform, and from where; check a file of your own.",
    "store": "Share one copy of weights among this machine's processes: serve, put, status, pin, exec, ...",
    "clean": "Remove what dead runs left behind.",
    "demo": "The main job, start to end, in three minutes.",
}
for verb, about in VERBS.items():
    app.command(f"lamella.cli.{verb}:{verb}", name=verb, help=about)


_received: list[int] = []
"""Signals that ended the program. Kept, because an import that is interrupted may fail with an error of its own."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code; SIGTERM ends it as Ctrl-C does."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is usual:  # whoever ignores it for us means it
            signal.signal(number, _end)
    code = run(sys.argv[1:] if argv is None else argv)
    if _received:
        _clear_own()
    sys.exit(code)


def _end(number: int, frame: object) -> None:
    _received.append(number)
    raise KeyboardInterrupt


def _clear_own() -> None:
    """Remove what this process made and still holds.

    A signal may come between a thing's making and the block that removes it, or in the middle of removing.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    from lamella.limits import detect, sweep
    from lamella.limits.owner import Owner
    from lamella.scratch import leftovers, remove

    with suppress(LamellaError, OSError):
        sweep(detect(), Owner.US)
    for left in leftovers([Path()]):
        if left.owner is Owner.US:
            remove(left.path)


def run(argv: Sequence[str]) -> int:
    """The exit code of a command line."""
    arguments.set(tuple(argv))
    try:
        app(list(argv), exit_on_error=False, print_error=False, result_action="return_value")
    except KeyboardInterrupt:
        return _ended(*_received[:1])
    except Exception as error:
        if _received:
            return _ended(_received[0])
        if os.environ.get("LAMELLA_DEBUG") and not isinstance(error, EXPECTED):
            raise
        return _said(error, argv)
    return 0


def _ended(number: int = signal.SIGINT) -> int:
    how = "terminated" if number == signal.SIGTERM else "interrupted"
    print(f"\nlamella: {how}; what was measured is kept, the same command goes on from there", file=sys.stderr)
    return 128 + number


EXPECTED = (CycloptsError, LamellaError, BrokenPipeError)


def _said(error: Exception, argv: Sequence[str]) -> int:
    """Tell what went wrong and what to try; the exit code."""
    match error:
        case CycloptsError():
            print(f"lamella: {error}", file=sys.stderr)
            known = bool(argv) and argv[0] in VERBS
            print(f"  try:   lamella {argv[0]} --help" if known else "  try:   lamella --help", file=sys.stderr)
            return 2
        case LamellaError():
            print(f"lamella: {error}", file=sys.stderr)
            return error.exit_code
        case BrokenPipeError():
            return 1
        case _:
            print(f"lamella: {type(error).__name__}: {error}", file=sys.stderr)
            print("  try:   again with LAMELLA_DEBUG=1, and report what it prints", file=sys.stderr)
            return 1
