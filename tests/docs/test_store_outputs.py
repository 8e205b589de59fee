"""The table of the store's answers: made of real answers, and says which are beyond law 3."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks import store_outputs
from benchmarks.store import daemon
from benchmarks.store_outputs import MODELS, PAGE, RESULTS, Results, page
from lamella import documents
from lamella.graph.blocked import block
from lamella.package.favour import TOLERANCE


@pytest.fixture(scope="module")
def published() -> Results:
    return documents.read(RESULTS, Results, made_by="python -m benchmarks.store_outputs")


def test_the_page_is_that_of_the_results_and_has_all_models(published: Results) -> None:
    assert PAGE.read_text() == page(published)
    assert tuple(published.rows) == MODELS
    assert all(max(row.session, row.worker) <= TOLERANCE for row in published.rows.values())


def test_a_model_beyond_the_law_is_named(published: Results) -> None:
    far = msgspec.structs.replace(published.rows["gcn"], worker=2 * TOLERANCE)
    told = page(msgspec.structs.replace(published, rows={**published.rows, "gcn": far}))
    assert "all models keep it" in page(published)
    assert "**beyond it: gcn**" in told


@pytest.mark.skipif(block() == 0, reason="the runtime has no blocked layout on this CPU")
def test_a_row_is_what_a_daemon_and_a_forked_worker_answer(cache_dir: Path, tmp_path: Path) -> None:
    with daemon(tmp_path):
        row = store_outputs.compared("bert-tiny", tmp_path)
    assert 0 < row.session <= TOLERANCE
    assert 0 < row.worker <= TOLERANCE
    assert (row.layouts.blocked, row.layouts.plain) == (12, 0)
    assert row.counted_mb < row.here_mb < row.any_mb


def test_the_worst_request_counts() -> None:
    wanted = [{"y": np.array([0.0, 2.0])}, {"y": np.array([0.0, 4.0])}]
    answers = [{"y": np.array([0.0, 2.0])}, {"y": np.array([1.0, 4.0])}]
    assert store_outputs.worst(wanted, answers, lambda feeds: feeds) == 0.25
