"""Keras on its torch backend, with its own settings file in the cache; set before a test module imports it."""

import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"
os.environ["KERAS_HOME"] = str(Path(os.environ["LAMELLA_CACHE"]) / "keras")
