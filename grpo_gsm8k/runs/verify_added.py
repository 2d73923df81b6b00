"""What later commands added to a run, each with a digest of its own: labels, audits made with them, certificates."""

from __future__ import annotations

from grpo_gsm8k.runs.storage import is_as_sealed
from grpo_gsm8k.runs.verification import Verification, counted

LABELS = "audit/labels.jsonl"
FOLDERS = ("audit", "certificates")


def check_added(found: Verification) -> None:
    """Compares labels line by line, audits and certificates with the digests of their own."""
    sealed: dict[str, bool | None] = {}
    for name in sorted(_names(found)):
        value = found.object(name)
        if value is not None:
            sealed[name] = is_as_sealed(value)
    rows = found.rows(LABELS)
    if rows is not None:
        states = [is_as_sealed(row) for row in rows]
        sealed[LABELS] = False if False in states else None if None in states else True
        if not rows:
            found.wrong(LABELS, "is empty, and is written with labels or not at all")
        elif True in states and any((row.get("index"), row.get("num_labels")) != (i, len(rows)) for i, row in enumerate(rows)):
            found.wrong(
                LABELS, f"has {counted(len(rows), 'line', 'lines')} that do not follow each other: some were removed or added"
            )
    for name, is_as_written in sealed.items():
        if is_as_written is False:
            found.wrong(name, "was changed (the digest of its own does not fit what it holds)")
        elif is_as_written is None and (found.path / name).stat().st_size:
            found.note(f"{name} has no digest of its own, so nothing says whether it was changed")
    if num := sum(state is True for state in sealed.values()):
        found.checked.append(f"{counted(num, 'file', 'files')} of labels, audits and certificates against digests of their own")


def _names(found: Verification) -> list[str]:
    try:
        return [path.relative_to(found.path).as_posix() for each in FOLDERS for path in (found.path / each).glob("*.json")]
    except OSError as error:
        found.wrong(FOLDERS[0], f"cannot be read ({error.strerror or error})")
        return []
