"""Click commands made from config classes: every option is a flag, a `key=value` override and a file key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from grpo_gsm8k.errors import ConfigError
from grpo_gsm8k.options import Option, Resolved, options, resolve

CONTEXT = {
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "help_option_names": ["-h", "--help"],
    "max_content_width": 120,
}


def config_command(
    cls: type, name: str, *, extra: tuple[click.Parameter, ...] = ()
) -> Callable[[Callable[..., None]], click.Command]:
    """Returns a decorator: `body(resolved, **extra)` becomes a click command with one flag an option of `cls`.

    Flags may be written with dashes or underscores. `--config`, `--dry-run` and `key=value` are added to every command;
    --dry-run prints the resolved config as JSON and starts nothing.
    """

    def decorate(body: Callable[..., None]) -> click.Command:
        def callback(config: str | None, dry_run: bool, overrides: tuple[str, ...], **given: Any) -> None:
            flags = {opt.key: given.pop(opt.key) for opt in options(cls)}
            resolved: Resolved[Any] = resolve(
                cls, name, config=config, overrides=overrides, flags=flags, validate=not given.get("resume")
            )
            if dry_run and given.get("resume"):
                raise ConfigError(
                    "--dry-run shows what a new run would be; a resumed one goes on with the config in its directory"
                )
            if dry_run:
                import json

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
        return click.Command(
            name.rpartition(" ")[2], callback=callback, params=parameters, help=body.__doc__, context_settings=dict(CONTEXT)
        )

    return decorate


def _flag(opt: Option) -> click.Option:
    default = ",".join(opt.default) if isinstance(opt.default, tuple) else opt.default
    shown = "" if default is None else f"  [default: {str(default).lower() if isinstance(default, bool) else default}]"
    metavar = (
        "|".join(opt.choices) if opt.choices and opt.kind is not tuple else opt.kind.__name__.upper().replace("TUPLE", "A,B")
    )
    return click.Option(
        [opt.flag, opt.key], multiple=True, type=str, metavar=metavar.replace("STR", "TEXT"), help=opt.help + shown
    )
