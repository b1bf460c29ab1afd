"""The pictures of docs/reports.md are there, and are the only ones. tests/test_documented_lines.py runs its commands."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_pictures_exist() -> None:
    pictures = re.findall(r"\]\((pictures/[^)]+)\)", (DOCS / "reports.md").read_text())
    assert {Path(picture).name for picture in pictures} == {path.name for path in (DOCS / "pictures").iterdir()}
