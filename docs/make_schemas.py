"""Write the JSON schema of every document into `docs/reference/schemas/`; `make docs` runs this."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from lamella.compare.record import Comparison
from lamella.documents import Document
from lamella.package import Manifest
from lamella.plan.document import Plan
from lamella.plan.explanation.diff import Difference
from lamella.plan.explanation.document import Explanation, Refusal
from lamella.plan.explanation.front import Front
from lamella.plan.explanation.places import Places
from lamella.predictor.document import Calibration
from lamella.profile.document import Profile
from lamella.runtime.function import Function
from lamella.store.records import ModelRecord

SCHEMAS = Path(__file__).parent / "reference" / "schemas"
DOCUMENTS: dict[str, type[Document]] = {
    "calibration": Calibration,
    "profile": Profile,
    "plan": Plan,
    "explanation": Explanation,
    "refusal": Refusal,
    "difference": Difference,
    "places": Places,
    "front": Front,
    "manifest": Manifest,
    "function": Function,
    "comparison": Comparison,
    "stored-model": ModelRecord,
}


def main(directory: Path = SCHEMAS) -> None:
    """One file per document."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, kind in DOCUMENTS.items():
        (directory / f"{name}.json").write_text(json.dumps(msgspec.json.schema(kind), indent=1) + "\n")


if __name__ == "__main__":
    main()
