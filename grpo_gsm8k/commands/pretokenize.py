"""`data pretokenize`: JSONL of examples to a folder of shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from grpo_gsm8k.commands.from_config import config_command
from grpo_gsm8k.commands.start import started
from grpo_gsm8k.config import PretokenizeConfig
from grpo_gsm8k.options import Resolved

SHOWN = 5  # dropped examples named on the console; the manifest has them all


@config_command(PretokenizeConfig, "data pretokenize")
def command(resolved: Resolved[PretokenizeConfig]) -> None:
    """Tokenise training examples once: JSONL of prompt and response, or of chat messages, to shards (.pt) and a manifest.

    Killed at any moment, the same command goes on where it was. Doing it again verifies the hashes and changes nothing; asking
    for something else in the same folder is refused.
    """
    run_pretokenize(resolved)


def run_pretokenize(resolved: Resolved[PretokenizeConfig]) -> None:
    """Pretokenises the data of a config, as a run of its own."""
    config = resolved.config
    infile = Path(str(config.infile))
    folder = Path(config.out_dir) if config.out_dir is not None else Path(config.artifacts_dir) / "pretokenized" / infile.stem
    with started("data pretokenize", resolved) as start:
        from grpo_gsm8k.engines.loading import load_tokenizer
        from grpo_gsm8k.training_data.jsonl_examples import Limits
        from grpo_gsm8k.training_data.pretokenize import PretokenizeRequest, pretokenize

        request = PretokenizeRequest(
            infile=infile,
            out_dir=folder,
            tokenizer_name=config.model_id,
            limits=Limits(config.max_total_tokens, config.overlong),
            special_tokens=config.special_tokens,
            shard_size=config.shard_size,
        )
        done = pretokenize(request, load_tokenizer(config.model_id, config.model_revision))
        manifest = done.manifest
        start.run.write_json(
            "data.json", {"files": [{"path": str(infile), **manifest["source"], "rows": manifest["num_lines"]}]}
        )
        counts = {key: manifest[key] for key in ("num_lines", "num_examples", "num_dropped", "num_tokens", "num_trained")}
        shards = {name: file["sha256"] for name, file in manifest["files"].items()}
        start.run.write_json("result.json", {"folder": str(folder), "changed": done.changed, **counts, "sha256": shards})
    click.echo(f"{'pretokenised' if done.changed else 'verified, nothing to change'}: {folder}")
    click.echo(summary(manifest))


def summary(manifest: dict[str, Any]) -> str:
    """Returns what was made as a person reads it."""
    tokens, trained = manifest["num_tokens"], manifest["num_trained"]
    lines = [
        f"  {manifest['num_examples']} of {manifest['num_lines']} examples in {len(manifest['files'])} shard(s)",
        f"  {tokens} tokens, {trained} of them trained ({100 * trained / tokens:.1f} %)",
        f"  dropped as longer than {manifest['max_total_tokens']} tokens: {manifest['num_dropped']}",
    ]
    for item in manifest["dropped"][:SHOWN]:
        lines.append(f"    line {item['line']}  {item['id']}  {item['num_tokens']} tokens")
    if manifest["num_dropped"] > SHOWN:
        lines.append("    … (manifest.json names them all)")
    return "\n".join(lines)
