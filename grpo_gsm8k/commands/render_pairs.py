"""`data render-pairs`: problems with published solutions to pairs of prompt and response, for supervised fine-tuning."""

from __future__ import annotations

from pathlib import Path

import click

from grpo_gsm8k.commands.choices import fill_template
from grpo_gsm8k.commands.from_config import config_command
from grpo_gsm8k.commands.start import started
from grpo_gsm8k.config import RenderPairsConfig
from grpo_gsm8k.options import Resolved


@config_command(RenderPairsConfig, "data render-pairs")
def command(resolved: Resolved[RenderPairsConfig]) -> None:
    """Render problems as training pairs: JSONL with id, prompt and response a line; the response is the published solution.

    The prompts are those that `eval` and `data render-eval` make of the same problems.
    """
    with started("data render-pairs", resolved) as start:
        from grpo_gsm8k.data.jsonl import write_jsonl
        from grpo_gsm8k.data.prepared import file_record
        from grpo_gsm8k.data.rows import load_problems
        from grpo_gsm8k.engines.loading import load_tokenizer
        from grpo_gsm8k.errors import DataError
        from grpo_gsm8k.prompts import render_batch
        from grpo_gsm8k.runs.storage import make_folder

        resolved = fill_template(start, resolved)
        config = resolved.config
        infile = Path(str(config.infile))
        problems = load_problems(infile)[: config.limit]
        for problem in problems:
            if not problem.answer.strip():
                raise DataError(f"{infile}: {problem.id} has no solution to train on; give 'answer'")
        prompts = render_batch(load_tokenizer(config.model_id, config.model_revision), problems, template=config.template)
        stem = f"{infile.stem}_{Path(config.model_id).name}.jsonl"
        outfile = Path(config.outfile) if config.outfile is not None else Path(config.artifacts_dir) / "pairs" / stem
        make_folder(outfile.parent)
        pairs = zip(problems, prompts, strict=True)
        sha256 = write_jsonl(outfile, ({"id": p.id, "prompt": q.text, "response": p.answer} for p, q in pairs))
        start.run.write_json("data.json", {"files": [file_record(infile)]})
        start.run.write_json("result.json", {"outfile": str(outfile), "rows": len(problems), "sha256": sha256})
    click.echo(f"{outfile}: {len(problems)} pairs, sha256 {sha256}")
