"""Packets, names and bounds, without a daemon."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lamella.store
from lamella import errors
from lamella.errors import StoreError, StoreQuota, UnknownModel, WireError
from lamella.store import client, protocol
from lamella.store.access import Quota
from lamella.store.following import following
from lamella.store.ledger import Ledger
from lamella.store.sources import Source, Sources
from tests.unit.store_daemon.conftest import environment, make

DIGEST = "0" * 64
REQUESTS = st.one_of(
    st.builds(protocol.Open, st.text(min_size=1, max_size=60)),
    st.builds(protocol.Put, st.just("m@1"), st.lists(st.just(DIGEST), max_size=5).map(tuple), st.none()),
    st.builds(protocol.Pin, st.just("m@1"), st.booleans()),
    st.just(protocol.Ask()),
)


@given(REQUESTS)
def test_a_request_arrives_as_it_was_sent(request: protocol.Request) -> None:
    assert protocol.request(protocol.encode(request)) == request


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_be_a_request_or_be_refused(data: bytes) -> None:
    with suppress(WireError):
        assert isinstance(protocol.request(data), protocol.Request)


@given(REQUESTS, st.data())
def test_a_request_with_one_byte_changed_is_a_request_or_refused(
    request: protocol.Request, data: st.DataObject
) -> None:
    packet = bytearray(protocol.encode(request))
    packet[data.draw(st.integers(0, len(packet) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(WireError):
        assert isinstance(protocol.request(bytes(packet)), protocol.Request)


def test_an_error_keeps_its_class_on_the_way() -> None:
    found = protocol.raised(protocol.failed(UnknownModel("no m@1", where="there", try_="that")))
    assert type(found) is UnknownModel
    assert (found.message, found.where, found.try_) == ("no m@1", "there", "that")
    assert type(protocol.raised(protocol.Failed("of a later version", "x"))) is StoreError
    assert type(protocol.raised(protocol.failed(errors.ConfigError("x")))) is errors.ConfigError


def test_the_first_stage_of_a_plan_is_followed_by_the_others_of_its_version_and_variant() -> None:
    names = ["p/s-1@1", "p/s-10@1", "p/s-2@1", "p/s-1@2", "p.portable/s-2@1", "q/s-2@1", "p@1"]
    assert following("p/s-1@1", names) == ["p/s-2@1", "p/s-10@1"]
    assert following("p/s-2@1", names) == []
    assert following("p@1", names) == []


def test_the_ledger_counts_equal_segments_of_a_user_once_and_forgets_them(tmp_path: Path) -> None:
    record = make(tmp_path, "m@1").record
    ledger = Ledger(Quota(leased_mb=1, connections=1, leases=9))
    ledger.connect(5, 2)
    for _ in range(6):
        ledger.check(5, record, 0)
        ledger.lease(5, record)
    assert [u.leased_bytes for u in ledger.users()] == [record.bytes]
    large = msgspec.structs.replace(record, graph=msgspec.structs.replace(record.graph, id=DIGEST, bytes=1 << 20))
    with pytest.raises(StoreQuota, match="would add 1 MB"):
        ledger.check(5, large, 0)
    with pytest.raises(StoreQuota, match="connections"):
        ledger.connect(5, 2)
    ledger.connect(6, 2)
    with pytest.raises(StoreQuota, match="2 of 2"):
        ledger.connect(7, 2)
    for _ in range(6):
        ledger.release(5, record)
    for uid in (5, 6):
        ledger.disconnect(uid)
    assert ledger.users() == []


def test_a_file_s_model_is_told_by_one_s_own_word_and_by_trusted_ones_never_by_a_third_s(tmp_path: Path) -> None:
    sources = Sources(tmp_path / "sources.json")
    for model, uid, trusted in (("a@1", 5, False), ("b@1", 6, False), ("c@1", 0, True)):
        sources.add(Source(sha256=DIGEST, model=model, uid=uid, trusted=trusted))
    again = Sources(tmp_path / "sources.json")
    assert [[claim.model for claim in again.claims(DIGEST, uid)] for uid in (5, 6, 7, 0)] == [
        ["a@1", "c@1"],
        ["b@1", "c@1"],
        ["c@1"],
        ["c@1"],
    ]
    assert (tmp_path / "sources.json").stat().st_mode & 0o777 == 0o600


def test_damaged_claims_are_set_aside_and_new_ones_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "sources.json"
    path.write_bytes(b'{"junk')
    Sources(path).add(Source(sha256=DIGEST, model="a@1", uid=5, trusted=False))
    assert [claim.model for claim in Sources(path).claims(DIGEST, 5)] == ["a@1"]
    assert path.with_suffix(".damaged").read_bytes() == b'{"junk'


def test_the_client_loads_neither_the_tiers_nor_the_planner_s_libraries() -> None:
    heavy = ("onnx", "obstore", "cyclopts", "rich", "lamella.store.shelves", "lamella.store.daemon", "lamella.graph")
    check = f"import sys, lamella.store.client; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], env=environment(), capture_output=True, check=True)
    assert done.stdout == b"[]\n"


def test_the_package_gives_the_client_s_functions_when_asked() -> None:
    assert lamella.store.session is client.session
    with pytest.raises(AttributeError, match="nothing"):
        lamella.store.nothing  # noqa: B018
