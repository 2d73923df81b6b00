"""The generated page says what the code says."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_options_page_is_what_make_docs_writes() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "write_docs.py"))["render"]()
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == made, "run make docs"
