"""Taking up an interrupted run: its own options, the same data, the same world; what differs is refused, or put on record."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

import click

from grpo_gsm8k.config import RunOptions
from grpo_gsm8k.errors import ConfigError, InputError, ProofError
from grpo_gsm8k.options import Resolved
from grpo_gsm8k.runs.checkpoints import split_resume
from grpo_gsm8k.runs.directory import RunDirectory, open_run
from grpo_gsm8k.runs.git import package_digest
from grpo_gsm8k.runs.redact import REDACTED
from grpo_gsm8k.runs.snapshot import read_nvidia, read_system, read_versions
from grpo_gsm8k.runs.storage import digest, parse_json, read_plain

R = TypeVar("R", bound=RunOptions)

UUID = re.compile(r" \(UUID: [^)]*\)")  # another GPU of the same kind gives the same bits, and a new pod has another
ARITHMETIC = ("torch", "transformers", "peft", "vllm", "numpy", "tokenizers")  # packages that decide bits

OPTIONS = (
    click.Option(["--resume"], metavar="RUN", help="Take up an interrupted run: a path, a name under runs/, or latest."),
    click.Option(
        ["--allow-changes"],
        is_flag=True,
        help="Resume although options, data, code, packages or machine changed; what differs goes on the record.",
    ),
)


@dataclass(frozen=True)
class Resumed(Generic[R]):
    """A run to take up: its directory, the config it goes on with, the checkpoint asked for, and what was allowed to change."""

    run: RunDirectory
    resolved: Resolved[R]
    step: int | None
    changes: list[str]


def read_resumed(name: str, given: Resolved[R], command: str, allow_changes: bool) -> Resumed[R]:
    """Returns the run to resume. Raises: InputError when there is none; ConfigError for an option given that differs."""
    where, step = split_resume(name)
    run = open_run(where, Path(given.config.artifacts_dir))
    try:
        record = parse_json(read_plain(run.path / "config.json"))
        kind = parse_json(read_plain(run.path / "command.json"))["command"]
        values: dict[str, Any] = {}
        for key, value in record["values"].items():
            values[key] = tuple(value) if isinstance(value, list) else value
        sources = dict(record["sources"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{run.path} stopped before its config was written whole and cannot be resumed: {error}") from None
    if kind != command:
        raise ConfigError(f"{run.path} is a run of {kind!r}, not of {command!r}")
    names = {spec.name for spec in fields(given.config)}
    if set(values) != names:
        raise ConfigError(f"{run.path} has other options than this version: {', '.join(sorted(set(values) ^ names))}")
    asked = {key for key, source in given.sources.items() if source != "default"} - {"artifacts_dir"}
    changes = [
        f"{key} is {values[key]!r} there and {getattr(given.config, key)!r} here"
        for key in sorted(asked)
        if getattr(given.config, key) != values[key] and REDACTED not in str(values[key])  # a secret has to be given again
    ]
    if changes and not allow_changes:
        raise ConfigError(
            f"--resume goes on with the run's own options, but {', '.join(changes)}; leave them out or use --allow-changes"
        )
    for key in asked:
        values[key], sources[key] = getattr(given.config, key), given.sources[key]
    config = type(given.config)(**values)
    return Resumed(run, Resolved(config, sources), step, changes)


def read_world(mode: str, num_threads: int) -> dict[str, str]:
    """Returns what the bits of a result may depend on besides options and data: code, packages, machine, threads, mode."""
    gpu = read_nvidia()
    versions = read_versions(gpu)
    system = read_system()
    packages = {name: str(versions["stack"].get(name)) for name in ARITHMETIC}
    return {
        "code": package_digest()[:16],
        "python": platform.python_version(),
        **packages,
        "cuda": str(versions["cuda"]),
        "cpu": f"{system['cpu']['model']} ({digest(system['cpu']['flags'])[:8]})",
        "gpu": UUID.sub("", gpu["list"]["output"].strip()) if gpu["present"] else "none",
        "determinism": mode,
        "num_threads": str(num_threads),
    }


def check_same(what: str, there: Mapping[str, Any], here: Mapping[str, Any], allow_changes: bool) -> list[str]:
    """Returns what differs, one line a key. Raises: ProofError when something does and changes are not allowed."""
    keys = sorted(there.keys() | here.keys())
    differ = [f"{key} was {there.get(key)!r} and is {here.get(key)!r}" for key in keys if there.get(key) != here.get(key)]
    if differ and not allow_changes:
        raise ProofError(
            f"the {what} changed since the run began ({'; '.join(differ)}); use --allow-changes to go on, on record"
        )
    return differ
