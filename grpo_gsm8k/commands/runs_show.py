"""`runs show`: one run's provenance and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from grpo_gsm8k.commands.from_config import CONTEXT

if TYPE_CHECKING:
    from grpo_gsm8k.runs.description import RunDescription

PACKAGES = ("torch", "transformers", "vllm", "peft", "numpy")


@click.command("show", context_settings=CONTEXT)
@click.argument("run", default="latest")
@click.option("--all", "show_all", is_flag=True, help="Show the options that were left at their defaults too.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--artifacts-dir", default="artifacts", show_default=True, help="Folder under which runs/ lies.")
def command(run: str, show_all: bool, as_json: bool, artifacts_dir: str) -> None:
    """Show RUN (a path, a name under runs/, or latest): where it comes from, its headline, its files, what to be warned of.

    The config is shown with the origin of each value (preset, file, flag, override, or auto and why).
    """
    import json

    from grpo_gsm8k.commands.runs_list import printable
    from grpo_gsm8k.runs.description import describe_run
    from grpo_gsm8k.runs.directory import open_run
    from grpo_gsm8k.runs.reading import reading

    path = open_run(run, Path(artifacts_dir)).path
    with reading(path):
        found = describe_run(path)
        if as_json:
            record = asdict(found)
            record["entry"] |= {"path": str(found.entry.path), "name": found.entry.name}
            click.echo(json.dumps(record, indent=2))
        else:
            click.echo(printable(description_text(found, show_all)))


def description_text(found: RunDescription, show_all: bool) -> str:
    """Returns a run's description as a person reads it in a terminal."""
    from grpo_gsm8k.commands.runs_list import headline_text, table

    entry, status = found.entry, found.status
    ended = f", ended {status['ended_at']}" if status.get("ended_at") else ""
    resumed = f", resumed {found.num_resumed}x" if found.num_resumed else ""
    headline = entry.headline
    which = "" if headline is None else f" {headline.grader}, {headline.num_problems} problems, step {headline.step}"
    facts = [
        ("status", f"{entry.state}, created {entry.created_at}{ended}{resumed}"),
        ("command", " ".join(map(str, _list(found.command.get("argv")))) or str(entry.command)),
        ("headline", headline_text(headline) + which),
        ("steps", "-" if entry.num_steps is None else str(entry.num_steps)),
        ("code", _code(found)),
        ("packages", ", ".join(f"{name} {found.packages[name]}" for name in PACKAGES if found.packages.get(name)) or "-"),
        ("machine", _machine(found)),
        ("data", "\n          ".join(map(_data_text, found.data)) or "-"),
    ]
    lines = [entry.name, *(f"{name:<10}{said}" for name, said in facts)]
    shown = [row for row in found.config if show_all or row[2] != "default"]
    hidden = len(found.config) - len(shown)
    lines += ["", f"config ({hidden} more at their defaults: --all)" if hidden else "config"]
    lines += [f"  {line}" for line in table([(key, str(value), source) for key, value, source in shown]).split("\n")]
    total = sum(size for _, size, _ in found.files)
    lines += ["", f"files ({sum(num for _, _, num in found.files)}, {total:,} bytes)"]
    lines += [f"  {size:>13,}  {name}" + (f" ({num} files)" if num > 1 else "") for name, size, num in found.files]
    lines += ["", *(f"warning: {said}" for said in found.warnings)] if found.warnings else []
    return "\n".join(lines)


def _code(found: RunDescription) -> str:
    sha = str(found.git.get("sha", "-"))
    branch = f" on {found.git['branch']}" if found.git.get("branch") else ""
    dirty = ", with uncommitted changes" if found.git.get("dirty") else ""
    digest = f", package files {found.world['code']}" if found.world.get("code") else ""
    return f"{sha}{branch}{dirty}{digest}"


def _machine(found: RunDescription) -> str:
    system, world = found.system, found.world
    if not system:
        return "-"
    cpu, release, memory = (_dict(system.get(key)) for key in ("cpu", "os", "memory_bytes"))
    total = memory.get("MemTotal")
    size = f", {total / 2**30:.0f} GiB" if isinstance(total, int) else ""
    modes = f", determinism {world.get('determinism')}, {world.get('num_threads')} thread(s)" if world else ""
    name = f"{cpu.get('model')}, {cpu.get('usable_cores')} cores{size}, GPU {world.get('gpu', '-')}"
    return f"{name}, {release.get('distribution') or release.get('system')}{modes}"


def _data_text(row: Mapping[str, Any]) -> str:
    split = f"{row.get('dataset')}/{row.get('split')}" if row.get("dataset") else ""
    name = " ".join(str(part) for part in (row.get("role"), split or row.get("path") or row.get("source")) if part)
    rows = f", {row['rows']} rows" if row.get("rows") is not None else ""
    commit = f", commit {row['commit']}" if row.get("commit") else ""
    sha256 = f", sha256 {str(row['sha256'])[:16]}…" if row.get("sha256") else ""
    return f"{name}{rows}{commit}{sha256}"


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
