"""`data render-eval`: problems to prompts with their golds, as training evaluates them."""

from __future__ import annotations

from pathlib import Path

import click

from grpo_gsm8k.commands.choices import fill_template
from grpo_gsm8k.commands.from_config import config_command
from grpo_gsm8k.commands.start import started
from grpo_gsm8k.config import RenderEvalConfig
from grpo_gsm8k.options import Resolved


@config_command(RenderEvalConfig, "data render-eval")
def command(resolved: Resolved[RenderEvalConfig]) -> None:
    """Render problems for a model: JSONL with prompt, gold and gold_num a line, and <outfile>.meta.json, which says how.

    The prompts are those that `eval` gives its engine. Doing it again changes nothing; a file that no render wrote is never
    overwritten.
    """
    run_render_eval(resolved)


def run_render_eval(resolved: Resolved[RenderEvalConfig]) -> None:
    """Renders the eval set of a config, as a run of its own."""
    with started("data render-eval", resolved) as start:
        from grpo_gsm8k.data.prepared import file_record
        from grpo_gsm8k.data.rendered_eval import load_rendered_eval_set, meta_path, write_rendered_eval_set
        from grpo_gsm8k.data.rows import load_problems
        from grpo_gsm8k.engines.loading import load_tokenizer
        from grpo_gsm8k.prompts import load_template, render_batch

        resolved = fill_template(start, resolved)
        config = resolved.config
        infile = Path(str(config.infile))
        template = load_template(config.template)
        tokenizer = load_tokenizer(config.model_id, config.model_revision)
        problems = load_problems(infile)[: config.limit]
        shots = load_problems(Path(config.shots_path)) if config.shots_path is not None else []
        prompts = render_batch(tokenizer, problems, template=template, k_shot=config.k_shot, shots=shots, seed=config.seed)
        sources = [infile] + ([Path(config.shots_path)] if config.shots_path is not None else [])
        files = [file_record(path) for path in sources]
        how = {
            "template": {"name": template.name, "kind": template.kind, "sha256": template.sha256},
            "stop": list(template.stop),
            "k_shot": config.k_shot,
            "seed": config.seed if config.k_shot else None,
            "source": [{"name": path.name, "sha256": file["sha256"]} for path, file in zip(sources, files, strict=True)],
        }
        items = list(zip(problems, prompts, strict=True))
        outfile = _outfile(config, infile)
        record, changed = write_rendered_eval_set(outfile, items, tokenizer, config.model_id, how)
        read = load_rendered_eval_set(outfile, tokenizer)
        assert [prompt.token_ids for _, prompt in read] == [prompt.token_ids for prompt in prompts]
        start.run.write_json("data.json", {"files": files})
        start.run.write_json("result.json", {"outfile": str(outfile), "changed": changed, **record})
    click.echo(
        f"{'rendered' if changed else 'verified, nothing to change'}: {outfile} ({record['rows']} prompts, {template.name})"
    )
    click.echo(f"  record {meta_path(outfile)}")


def _outfile(config: RenderEvalConfig, infile: Path) -> Path:
    if config.outfile is not None:
        return Path(config.outfile)
    return Path(config.artifacts_dir) / "eval_sets" / f"{infile.stem}_{Path(config.model_id).name}.jsonl"
