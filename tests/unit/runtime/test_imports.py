"""The runtime's import is the cold start: what it loads is a list, and how much a budget."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import NamedTuple

THE_THREE = "import numpy, onnxruntime, msgspec"
WORKER = "import lamella.runtime.worker"
START = f"{WORKER}; lamella.runtime.worker.this_machine()"
HEAVY = """asyncio concurrent email hashlib html http importlib.metadata importlib.resources json logging
    multiprocessing pickle random shutil ssl sqlite3 subprocess tempfile unittest xml zipfile""".split()
LEAVES = {"channels", "codecs", "documents", "errors", "limits", "machine", "runtime", "units"}
MORE_MODULES = 40
"""Modules on top of the three: what pathlib, socket and ctypes load, and our own."""
SECONDS = 2.0
FLOOR_MB = 80


class Loaded(NamedTuple):
    modules: frozenset[str]
    seconds: float
    resident_mb: float


@cache
def loaded(code: str) -> Loaded:
    """What a fresh process has loaded after `code`, how long that took, and its memory."""
    program = f"""
import time
start = time.perf_counter()
{code}
seconds = time.perf_counter() - start
import sys
modules = list(sys.modules)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
import json
print(json.dumps([modules, seconds, int(status["VmHWM"].split()[0]) / 1024]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    modules, seconds, resident_mb = json.loads(done.stdout)
    return Loaded(frozenset(modules), seconds, resident_mb)


def tops(modules: frozenset[str]) -> set[str]:
    """Top-level packages that are not the standard library's."""
    names = {name.partition(".")[0] for name in modules}
    return {name for name in names if name not in sys.stdlib_module_names} - {"__main__", "__mp_main__"}


def test_the_worker_loads_numpy_onnxruntime_msgspec_and_what_those_load_and_no_other_package() -> None:
    assert tops(loaded(START).modules) - {"lamella"} <= tops(loaded(THE_THREE).modules)
    assert tops(loaded(THE_THREE).modules) >= {"numpy", "onnxruntime", "msgspec"}


def test_of_lamella_the_worker_loads_leaves_only() -> None:
    ours = {name for name in loaded(START).modules if name.startswith("lamella.")}
    assert {name.split(".")[1] for name in ours} <= LEAVES
    assert "lamella.runtime.instance" not in ours


def test_the_worker_loads_no_heavy_standard_module_that_the_three_do_not_load_themselves() -> None:
    extra = loaded(START).modules - loaded(THE_THREE).modules
    assert sorted(extra.intersection(HEAVY)) == []


def test_the_worker_loads_few_modules_more_than_the_three() -> None:
    extra = loaded(START).modules - loaded(THE_THREE).modules
    assert len(extra) <= MORE_MODULES, sorted(extra)


def test_the_import_is_quick_and_its_memory_floor_low() -> None:
    assert loaded(WORKER).seconds < SECONDS
    assert loaded(WORKER).resident_mb < FLOOR_MB
    assert loaded(WORKER).resident_mb - loaded(THE_THREE).resident_mb < 6


def test_onnx_and_the_planner_do_not_come_along_by_way_of_the_packages_own_init() -> None:
    modules = loaded("import lamella.runtime.function, lamella.limits, lamella.documents").modules
    assert modules.isdisjoint({"onnx", "ml_dtypes", "rich", "cyclopts", "lamella.graph", "lamella.plan"})
