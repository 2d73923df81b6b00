"""Puts this folder's own module (`training_runs.py`) where its tests can import it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
