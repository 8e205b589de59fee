"""The page in a real browser, where one is installed: no errors, and nothing wider than a phone.

A page around it holds it in frames of several widths and measures them; the browser prints the result.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import msgspec
import pytest

from lamella.report import write
from tests.unit.report.made import comparison, sample, sharded, whole

WIDTHS = (320, 360, 768, 1280)
AROUND = """<!doctype html><title>frames</title>{frames}<p id="found"></p><script>
onload = () => {{
  const found = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument.documentElement;
    const tall = [...page.querySelectorAll("svg")].filter(s => s.getBoundingClientRect().height < 4).length;
    return [page.scrollWidth, page.clientWidth, page.querySelectorAll("svg").length, tall];
  }});
  document.getElementById("found").textContent = JSON.stringify(found);
}}
</script>"""


def look(folder: Path, browser: str) -> list[tuple[int, int, int, int]]:
    """Of `page.html` in a folder at each width: how wide it is, how wide it may be, drawings, and flat ones."""
    frames = "".join(f'<iframe src="page.html" width="{w}" height="800"></iframe>' for w in WIDTHS)
    (folder / "around.html").write_text(AROUND.format(frames=frames))
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--allow-file-access-from-files",
            "--enable-logging=stderr",
            f"--user-data-dir={folder / 'browser'}",
            "--virtual-time-budget=5000",
            "--dump-dom",
            (folder / "around.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert said == []
    result = re.search(r'<p id="found">(.*?)</p>', done.stdout)
    assert result, done.stderr
    found: list[tuple[int, int, int, int]] = json.loads(result[1])
    return found


@pytest.mark.parametrize("kind", ["sample", "long names, failures and 150 units"])
def test_a_browser_finds_no_fault_and_nothing_wider_than_its_window(kind: str, browser: str, tmp_path: Path) -> None:
    record = sample()
    if kind != "sample":
        name = "x" * 200
        plans = [whole("mopar-no-shards-no-codec"), msgspec.structs.replace(sharded(), why=name)]
        units = comparison(plans, units=150).units
        record = comparison(plans, model=name, failed={name: name}, limits_reason=name, command=("compare", name))
        record = msgspec.structs.replace(record, units=units)
    write(tmp_path / "page.html", record)
    found = look(tmp_path, browser)
    assert len(found) == len(WIDTHS)
    for scroll, client, drawings, flat in found:
        assert scroll <= client
        assert drawings > 8
        assert flat == 0
