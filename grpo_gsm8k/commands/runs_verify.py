"""`runs verify`: whether a run directory is still what the run left."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from grpo_gsm8k.commands.from_config import CONTEXT


@click.command("verify", context_settings=CONTEXT)
@click.argument("run", default="latest")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--artifacts-dir", default="artifacts", show_default=True, help="Folder under which runs/ lies.")
def command(run: str, as_json: bool, artifacts_dir: str) -> None:
    """Check RUN (a path, a name under runs/, or latest) against what it recorded of itself.

    Every file against the sha256 in manifest.json, which is written when a run ends; the ledger's digests, the aggregates and
    the result against the completions and rollouts they were made from; checkpoints against COMPLETE; data files, where they
    are still there, against data.json. What was changed, cut, removed or added is named. Exit 0: all is as recorded; 1: not.
    """
    import json

    from grpo_gsm8k.commands.runs_list import printable
    from grpo_gsm8k.errors import ProofError
    from grpo_gsm8k.runs.directory import find_run
    from grpo_gsm8k.runs.verify import verify_run

    found = verify_run(find_run(run, Path(artifacts_dir)))
    if as_json:
        record = {**asdict(found), "path": str(found.path), "intact": not found.problems}
        click.echo(json.dumps(record, indent=2))
    else:
        lines = [f"{problem.file}: {problem.what}" for problem in found.problems]
        lines += [f"checked  {said}" for said in found.checked]
        lines += [f"note     {said}" for said in found.notes]
        verdict = "not what was recorded" if found.problems else "as recorded"
        sealed = f", manifest sha256 {found.manifest_sha256}" if found.manifest_sha256 else ""
        click.echo(printable("\n".join([*lines, f"{found.path.name} ({found.state}): {verdict}{sealed}"])))
    if found.problems:
        num = len(found.problems)
        said = "1 thing is" if num == 1 else f"{num} things are"
        raise ProofError(f"{found.path}: {said} not what the run recorded; the first: {found.problems[0].file}")
