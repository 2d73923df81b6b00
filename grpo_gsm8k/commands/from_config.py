"""Click commands made from config classes: every option is a flag, a `key=value` override and a file key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from grpo_gsm8k.errors import ConfigError, InputError
from grpo_gsm8k.options import Option, Resolved, options, resolve

CONTEXT = {
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "help_option_names": ["-h", "--help"],
    "max_content_width": 120,
}


class ConfigCommand(click.Command):
    """A command whose options stand in its help under the headings of `sections` (by key), the others before them."""

    sections: Mapping[str, str] = {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options, section by section in the order in which the parameters are."""
        rows: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is not None:
                rows.setdefault(self.sections.get(parameter.name or "", "Options"), []).append(row)
        for section, written in rows.items():
            with formatter.section(section):
                formatter.write_dl(written)


def config_command(
    cls: type,
    name: str,
    *,
    extra: tuple[click.Parameter, ...] = (),
    refine: Callable[[Resolved[Any]], Resolved[Any]] | None = None,
) -> Callable[[Callable[..., None]], click.Command]:
    """Returns a decorator: `body(resolved, **extra)` becomes a click command with one flag an option of `cls`.

    Flags may be written with dashes or underscores. `--config`, `--dry-run` and `key=value` are added to every command;
    --dry-run prints the resolved config as JSON and starts nothing. `refine` returns the config with what follows from
    where its values came from.
    """

    def decorate(body: Callable[..., None]) -> click.Command:
        def callback(config: str | None, dry_run: bool, overrides: tuple[str, ...], **given: Any) -> None:
            flags = {opt.key: given.pop(opt.key) for opt in options(cls)}
            resolved: Resolved[Any] = resolve(cls, name, config=config, overrides=overrides, flags=flags, validate=False)
            resolved = resolved if refine is None else refine(resolved)
            if not given.get("resume"):  # a resumed run brings its own config
                resolved.validate()
            if dry_run and given.get("resume"):
                raise ConfigError(
                    "--dry-run shows what a new run would be; a resumed one goes on with the config in its directory"
                )
            if dry_run:
                import json

                _check_inputs(resolved)
                click.echo(json.dumps({"command": name, **resolved.record()}, indent=2, ensure_ascii=False))
                return
            body(resolved, **given)

        parameters: list[click.Parameter] = [
            *(parameter for parameter in extra if isinstance(parameter, click.Argument)),
            click.Argument(["overrides"], nargs=-1, metavar="[KEY=VALUE]..."),
            click.Option(["--config"], metavar="PRESET|FILE", help="A shipped preset's name, or a .toml, .yaml or .json file."),
            click.Option(["--dry-run"], is_flag=True, help="Resolve and check the options, print them, and start nothing."),
            *(parameter for parameter in extra if not isinstance(parameter, click.Argument)),
            *(_flag(opt) for opt in options(cls)),
        ]
        command = ConfigCommand(
            name.rpartition(" ")[2], callback=callback, params=parameters, help=body.__doc__, context_settings=dict(CONTEXT)
        )
        command.sections = {opt.key: opt.section for opt in options(cls)}
        return command

    return decorate


def _check_inputs(resolved: Resolved[Any]) -> None:
    """Raises: InputError for a file or folder that was named as an input and is not there."""
    from grpo_gsm8k.commands.runs_again import INPUTS

    for key in INPUTS:
        value = getattr(resolved.config, key, None)
        if value is not None and resolved.sources[key] != "default" and not Path(value).exists():
            raise InputError(f"{key} ({resolved.sources[key]}): there is no {value} here")


def _flag(opt: Option) -> click.Option:
    default = ",".join(opt.default) if isinstance(opt.default, tuple) else opt.default
    shown = "" if default is None else f"  [default: {str(default).lower() if isinstance(default, bool) else default}]"
    metavar = (
        "|".join(opt.choices) if opt.choices and opt.kind is not tuple else opt.kind.__name__.upper().replace("TUPLE", "A,B")
    )
    return click.Option(
        [opt.flag, opt.key], multiple=True, type=str, metavar=metavar.replace("STR", "TEXT"), help=opt.help + shown
    )
