"""Pages made of templates: the Jinja environment, and how numbers and text are written on a page."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from grpo_gsm8k.runs.report_curves import short

TEMPLATES_DIR = Path(__file__).resolve().parents[1] / "templates"
MAX_TEXT_CHARS = 20_000

_CONTROL = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}


@cache
def page_environment() -> Environment:
    """Returns the environment that every page is rendered in: all text escaped, a name that is not there an error."""
    page = Environment(
        loader=FileSystemLoader(TEMPLATES_DIR),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters |= {"percent": _percent, "points": _points, "number": _number, "short": _short, "shown": _shown}
    return page


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _points(value: float | None) -> str:
    """Returns a difference of two shares in percentage points, with its sign."""
    return "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def _short(value: float | None) -> str:
    return "–" if value is None else short(value)


def _shown(value: Any) -> str:
    """Returns any value as text for the page: control characters made visible, very long text cut with a note."""
    text = value if isinstance(value, str) else "–" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    text = text.translate(_CONTROL)
    if len(text) <= MAX_TEXT_CHARS:
        return text
    return f"{text[:MAX_TEXT_CHARS]}\n[… {len(text) - MAX_TEXT_CHARS:,} more characters in the run directory]"
