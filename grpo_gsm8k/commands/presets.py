"""`presets`: the shipped configs."""

from __future__ import annotations

import click

from grpo_gsm8k.errors import ConfigError, unknown_name
from grpo_gsm8k.options import presets


@click.command("presets")
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List the shipped presets, or print the options of one."""
    shipped = presets()
    if name is None:
        width = max(len(known) for known in shipped)
        for known, table in shipped.items():
            click.echo(f"{known:<{width}}  {table.get('command', '')}: {table.get('description', '')}")
        return
    if name not in shipped:
        raise ConfigError(unknown_name("preset", name, shipped))
    for key, value in shipped[name].items():
        click.echo(f"{key} = {value!r}" if not isinstance(value, bool) else f"{key} = {str(value).lower()}")
