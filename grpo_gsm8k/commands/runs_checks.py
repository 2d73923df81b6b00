"""What is not as it was when a run was made: said before it is done again, with what each difference means for equality."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grpo_gsm8k.commands.resume import read_world
from grpo_gsm8k.commands.runs_again import Restored
from grpo_gsm8k.engines.model_files import model_record
from grpo_gsm8k.errors import HarnessError
from grpo_gsm8k.prompts import load_template
from grpo_gsm8k.runs.divergence import named_files
from grpo_gsm8k.runs.git import package_digest
from grpo_gsm8k.runs.record import RunRecord
from grpo_gsm8k.runs.storage import file_sha256

Effect = Literal["none", "may change bits", "rules out equality"]
OWN_EVAL_SET = "eval_set.jsonl"


@dataclass(frozen=True)
class Check:
    """One thing that a result follows from: what it was, what it is, and what that means."""

    name: str
    then: str
    now: str
    effect: Effect


def check_all(restored: Restored, code: Path) -> list[Check]:
    """Returns every check of a run that is about to be done again with the package in `code`."""
    record = restored.record
    now = read_world(str(record.values.get("determinism")), int(str(record.values.get("num_threads") or 1)))
    now["code"] = package_digest(code / "grpo_gsm8k")[: len(now["code"])]
    checks = [
        Check(name, str(then), str(now.get(name)), "none" if str(then) == now.get(name) else "may change bits")
        for name, then in record.world.items()
    ]
    if record.world.get("determinism") == "fast":
        checks.append(Check("repeats", "fast", "fast: kernels may add up in another order each time", "may change bits"))
    if record.command == "data prep":  # its files are what comes out, not what goes in
        return checks
    names = named_files(record.files)
    return checks + [_check_file(restored, name, dict(row)) for name, row in zip(names, record.files, strict=True)]


def _check_file(restored: Restored, name: str, row: dict[str, object]) -> Check:
    then, now = str(row.get("sha256") or row.get("commit")), _identity(restored, row)
    if then == now:
        return Check(name, then, now, "none")
    if row.get("split"):
        return Check(name, then, f"{now}, so it is prepared anew from its source", "may change bits")
    return Check(name, then, now, "rules out equality")


def _identity(restored: Restored, row: dict[str, object]) -> str:
    record, role = restored.record, row.get("role")
    try:
        with contextlib.chdir(restored.cwd):
            if role in ("model", "adapter"):
                revision, adapter = record.values.get("model_revision"), record.values.get("adapter")
                rows = model_record(str(record.values["model_id"]), revision, adapter)
                return named_files(rows)[str(role)]
            if role == "template":
                return load_template(str(record.values["template"])).sha256
            path = _path(record, row)
            if path.is_dir():
                return _shards(path)
            return file_sha256(path)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except HarnessError as error:
        return str(error)


def _path(record: RunRecord, row: dict[str, object]) -> Path:
    if row.get("source") == OWN_EVAL_SET:
        return record.path / OWN_EVAL_SET
    return Path(str(row.get("path") or row.get("name")))


def _shards(folder: Path) -> str:
    """What data.json says of a pretokenised folder: one hash over those of its shards."""
    import hashlib

    from grpo_gsm8k.training_data.shards import read_folder_manifest

    hashed = hashlib.sha256()
    for file in read_folder_manifest(folder)["files"].values():
        hashed.update(file_sha256(folder / file["path"]).encode())
    return hashed.hexdigest()


def checks_text(checks: list[Check], record: RunRecord, *, at_commit: bool) -> list[str]:
    """Returns the checks as a person reads them: what is the same by name, what differs with both values."""
    same = [check.name for check in checks if check.effect == "none"]
    differ = [check for check in checks if check.effect != "none"]
    lines = [f"  as it was: {', '.join(same) or 'nothing'}"]
    for check in differ:
        lines.append(f"  {check.effect}: {check.name} was {_short(check.then)} and is {_short(check.now)}")
    if any(check.name == "code" for check in differ):
        sha = str(record.git.get("sha"))
        if at_commit:
            lines.append(
                "    commit and dirty.diff do not make the code that ran: files that git ignores or that were left out"
            )
        else:
            lines.append(f"    --at-commit runs the code that ran then, commit {sha[:12]}{_dirty(record)}")
    if not differ:
        lines.append("  nothing differs: the two must be equal to the last bit")
    elif any(check.effect == "rules out equality" for check in differ):
        lines.append("  so the two cannot be equal; the first divergence says where that begins")
    else:
        lines.append("  so the two may be equal")
    return lines


def _dirty(record: RunRecord) -> str:
    return " with dirty.diff" if record.git.get("dirty") else ""


def _short(value: str) -> str:
    return f"{value[:16]}…" if len(value) in (40, 64) and " " not in value else value
