"""Lets the test files of this folder share `conformance` and `tiny_models`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
