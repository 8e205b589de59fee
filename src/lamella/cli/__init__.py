"""The command line: verbs that read as the workflow, `--json` on all of them, exit codes that mean something."""

from lamella.cli.app import main

__all__ = ["main"]
