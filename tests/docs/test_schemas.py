"""The schemas that are shipped are those of the documents."""

from pathlib import Path

import pytest

from docs.make_schemas import DOCUMENTS, SCHEMAS, main


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_shipped_schema_is_that_of_its_document(name: str, tmp_path: Path) -> None:
    main(tmp_path)
    written = (SCHEMAS / f"{name}.json").read_text()
    assert written == (tmp_path / f"{name}.json").read_text(), "python docs/make_schemas.py"
