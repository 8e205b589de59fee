"""The command line: verbs that read as the workflow, `--json` on all of them, exit codes that mean something."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported: no command phones anybody

from lamella.cli.app import main

__all__ = ["main"]
