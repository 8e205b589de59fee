"""A real browser, where one is installed."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture(scope="session")
def browser() -> str:
    """Its program; a test that asks is skipped where there is none."""
    found = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    return found or pytest.skip("no chromium here: the page was not seen in a browser")
