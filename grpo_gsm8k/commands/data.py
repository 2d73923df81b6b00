"""`data`: prepare and verify pinned data sets; make training shards and eval sets of them."""

from __future__ import annotations

from pathlib import Path

import click

from grpo_gsm8k.commands.data_overlap import command as overlap_command
from grpo_gsm8k.commands.from_config import config_command
from grpo_gsm8k.commands.pretokenize import command as pretokenize_command
from grpo_gsm8k.commands.render_eval import command as render_eval_command
from grpo_gsm8k.commands.render_pairs import command as render_pairs_command
from grpo_gsm8k.commands.start import started
from grpo_gsm8k.config import DataPrepConfig
from grpo_gsm8k.errors import DataError
from grpo_gsm8k.options import Resolved


@click.group("data", context_settings={"help_option_names": ["-h", "--help"]})
def group() -> None:
    """Prepare and verify pinned data sets; make training shards and eval sets of them."""


@config_command(DataPrepConfig, "data prep")
def prep(resolved: Resolved[DataPrepConfig]) -> None:
    """Prepare a data set: pin its commit, hold out validation, write {train,val,test}.jsonl, a manifest and a raw snapshot.

    Doing it again verifies the hashes and changes nothing; asking for something else in the same folder is refused.
    """
    run_prep(resolved)


def run_prep(resolved: Resolved[DataPrepConfig]) -> None:
    """Prepares the data of a config, as a run of its own."""
    with started("data prep", resolved) as start:
        from grpo_gsm8k.commands.assembly import data_folder, prep_request
        from grpo_gsm8k.data.prep import prepare
        from grpo_gsm8k.data.prepared import data_record

        folder = data_folder(resolved.config)
        prepared = prepare(prep_request(resolved.config))
        start.run.write_json("data.json", {"files": data_record(folder)})
        start.run.write_json("result.json", {"folder": str(folder), "changed": prepared.changed, "rows": prepared.rows})
        source = prepared.manifest["source"]
        pinned = f" at commit {source['commit']}" if source.get("commit") else ""
        click.echo(f"{'prepared' if prepared.changed else 'verified, nothing to change'}: {folder}")
        click.echo(f"  {resolved.config.dataset} from {source.get('repo') or source['kind']}{pinned}")
        for split, file in prepared.manifest["files"].items():
            click.echo(f"  {split:<6}{file['rows']:>6} rows  sha256 {file['sha256']}")


@group.command("verify")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--snapshot-dir", "--snapshot_dir", type=click.Path(path_type=Path), help="Check the raw snapshot there as well.")
def verify(folder: Path, snapshot_dir: Path | None) -> None:
    """Hash every file of a prepared or pre-tokenised FOLDER again and name what is missing or changed."""
    from grpo_gsm8k.data.prepared import manifest_of
    from grpo_gsm8k.data.prepared import verify as find_changed

    changed = find_changed(folder, snapshot_dir)
    for line in changed:
        click.echo(line, err=True)
    if changed:
        raise DataError(f"{folder}: {len(changed)} file(s) are not what was prepared")
    click.echo(f"{folder}: {len(manifest_of(folder)['files'])} files are what was prepared")


group.add_command(prep)
group.add_command(overlap_command)
group.add_command(pretokenize_command)
group.add_command(render_eval_command)
group.add_command(render_pairs_command)
