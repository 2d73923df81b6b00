"""`templates`: the prompt templates."""

from __future__ import annotations

import click

from grpo_gsm8k.prompts import list_templates, load_template


@click.command("templates")
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List the prompt templates, or print one (a shipped name, or the path of your own, which is checked)."""
    if name is None:
        shipped = list_templates()
        width = max(len(known) for known in shipped)
        for known, description in shipped.items():
            click.echo(f"{known:<{width}}  {description}")
        return
    template = load_template(name)
    click.echo(f"# {template.name} ({template.kind}), sha256 {template.sha256}; what follows is the file", err=True)
    click.echo(template.source, nl=False)
