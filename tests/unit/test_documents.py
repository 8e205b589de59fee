"""Documents on disk: read whole and checked, written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from lamella import documents
from lamella.documents import Document
from lamella.errors import ConfigError, StorageError

MADE_BY = "lamella plan MODEL -o plan.json"


class Recipe(Document, frozen=True, kw_only=True):
    name: str
    grams: tuple[int, ...] = ()


BREAD = Recipe(name="brød", grams=(500, 350, 10))


def read(path: Path) -> Recipe:
    return documents.read(path, Recipe, made_by=MADE_BY)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    documents.write(tmp_path / "deep" / "er" / "bread.json", BREAD)
    assert read(tmp_path / "deep" / "er" / "bread.json") == BREAD


def test_a_document_is_indented_json_with_its_version_that_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "bread.json"
    documents.write(path, BREAD)
    text = path.read_text()
    assert '\n "name": "brød"' in text
    assert '"lamella": 1' in text
    assert text.endswith("}\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_writing_replaces_the_older_document_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "bread.json"
    documents.write(path, Recipe(name="older"))
    documents.write(path, BREAD)
    assert read(path) == BREAD
    assert os.listdir(tmp_path) == ["bread.json"]


def test_a_reader_that_opened_the_older_document_keeps_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "bread.json"
    documents.write(path, Recipe(name="older"))
    with path.open("rb") as older:
        documents.write(path, BREAD)
        assert msgspec.json.decode(older.read(), type=Recipe).name == "older"


def test_a_document_that_cannot_be_encoded_leaves_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "bread.json"
    documents.write(path, BREAD)
    with pytest.raises(TypeError):
        documents.write(path, Recipe(name=object()))  # type: ignore[arg-type]
    assert read(path) == BREAD
    assert os.listdir(tmp_path) == ["bread.json"]


def test_a_place_that_cannot_be_written_is_a_storage_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot write .*bread\.json") as caught:
        documents.write(tmp_path / "file" / "bread.json", BREAD)
    assert caught.value.where == str(tmp_path / "file")


def test_a_directory_in_the_documents_place_stays_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    (tmp_path / "bread.json").mkdir()
    with pytest.raises(StorageError, match="Is a directory"):
        documents.write(tmp_path / "bread.json", BREAD)
    assert os.listdir(tmp_path) == ["bread.json"]


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit, ValueError, MemoryError])
def test_whatever_ends_the_writing_leaves_the_older_document_and_nothing_beside_it(
    ending: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "bread.json"
    documents.write(path, BREAD)

    def write_half() -> None:
        with documents.replacing(path) as file:
            file.write(b"half")
            raise ending

    with pytest.raises(ending):
        write_half()
    assert read(path) == BREAD
    assert os.listdir(tmp_path) == ["bread.json"]


def test_an_interrupt_as_the_document_takes_its_place_leaves_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*paths: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        documents.write(tmp_path / "bread.json", BREAD)
    assert os.listdir(tmp_path) == []


def test_a_pipe_is_written_as_it_is_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        documents.write(pipe, BREAD)
        assert msgspec.json.decode(os.read(reader, 4096), type=Recipe) == BREAD
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_what_cannot_be_written_is_refused_beforehand_as_it_would_be_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "bread.json", tmp_path / "file" / "deep" / "bread.json", tmp_path):
        with pytest.raises(StorageError) as early:
            documents.check_writable(path)
        with pytest.raises(StorageError) as late:
            documents.write(path, BREAD)
        assert early.value.where == late.value.where
        assert early.value.message.startswith(f"cannot write {path}: ")
        assert late.value.message.startswith(f"cannot write {path}: ")
    assert os.listdir(tmp_path) == ["file"]


def test_asking_whether_a_place_can_be_written_changes_nothing(tmp_path: Path) -> None:
    documents.check_writable(tmp_path / "not" / "yet" / "bread.json")
    documents.check_writable(Path("/dev/null"))
    assert os.listdir(tmp_path) == []
    documents.write(tmp_path / "bread.json", BREAD)
    documents.check_writable(tmp_path / "bread.json")
    assert read(tmp_path / "bread.json") == BREAD
    assert os.listdir(tmp_path) == ["bread.json"]


BROKEN = {
    "not JSON": b"bread: yes",
    "cut short": b'{"lamella": 1, "name": "br',
    "empty": b"",
    "a list": b"[1, 2]",
    "another document": b'{"lamella": 1, "flavour": "sour"}',
    "a value of the wrong type": b'{"lamella": 1, "name": 7}',
    "a version that is no number": b'{"lamella": "one", "name": "bread"}',
    "not UTF-8": b'{"lamella": 1, "name": "\xff\xfe"}',
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_no_such_document_is_named_with_the_command_that_makes_one(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bread.json"
    path.write_bytes(BROKEN[kind])
    with pytest.raises(ConfigError, match=r"bread\.json is not a recipe document") as caught:
        read(path)
    assert str(path) in caught.value.message
    assert caught.value.try_ == MADE_BY


@pytest.mark.parametrize("text", ['{"lamella": 2, "name": "bread"}', '{"lamella": 2, "title": "bread"}'])
def test_a_newer_version_is_refused_as_such_even_where_its_fields_differ(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bread.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bread\.json has schema version 2, this lamella reads version 1") as caught:
        read(path)
    assert caught.value.try_ == MADE_BY


def test_a_missing_document_is_named_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*bread\.json: No such file or directory") as caught:
        read(tmp_path / "bread.json")
    assert caught.value.try_ == MADE_BY


def test_a_directory_is_no_document(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LAMELLA_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/lamella"),
        ({"HOME": "/home/me"}, "/home/me/.cache/lamella"),
        ({"LAMELLA_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/home/me"}, "/home/me/.cache/lamella"),
    ],
)
def test_the_cache_is_where_the_user_says(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LAMELLA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert documents.cache_dir() == Path(expected)
