"""The command line: one small file per command under commands/, loaded only when it is asked for.

Exit codes: 0 done · 1 the environment or a proof failed · 2 bad input · 130 Ctrl-C · 143 SIGTERM.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

import click

import grpo_gsm8k
from grpo_gsm8k.errors import HarnessError, unknown_name
from grpo_gsm8k.runs.lifecycle import Interrupted, signals_raise
from grpo_gsm8k.runs.redact import scrub

# name: (module:attribute, one line of help). The help stands here so that `--help` imports no command.
COMMANDS = {
    "eval": ("grpo_gsm8k.commands.eval:command", "Evaluate a model: prepare data, sample, grade, report."),
    "sft": ("grpo_gsm8k.commands.sft:command", "Fine-tune on given responses, with evaluation in a process of its own."),
    "expert-iteration": (
        "grpo_gsm8k.commands.expert_iteration:command",
        "Improve a model on its own correct answers, round by round.",
    ),
    "grpo": ("grpo_gsm8k.commands.grpo:command", "Train by reinforcement: GRPO and its relatives."),
    "data": ("grpo_gsm8k.commands.data:group", "Prepare and verify data sets; make training shards and eval sets."),
    "traces": ("grpo_gsm8k.commands.traces:group", "Ask a reasoning model for traces; make training pairs of them."),
    "presets": ("grpo_gsm8k.commands.presets:command", "List the shipped presets, or print one."),
    "templates": ("grpo_gsm8k.commands.templates:command", "List the prompt templates, or print one."),
    "env": ("grpo_gsm8k.commands.env:group", "List and verify environments; show rollouts and what of them is trained on."),
    "runs": ("grpo_gsm8k.commands.runs:group", "Compare the evaluations of runs, problem by problem."),
    "report": ("grpo_gsm8k.commands.report:command", "Write report.html of a run directory."),
    "doctor": ("grpo_gsm8k.commands.doctor:command", "Check this machine for runs: GPU, torch, vLLM, memory, disk, hub."),
}


MAX_CHARS = 4000  # of a line that says what went wrong


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the commands' names in the order in which they are listed above."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Returns the command, imported now."""
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Returns the command and what is left for it; an unknown one is refused with the nearest known."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(unknown_name("command", args[0], COMMANDS))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list of commands from their one-line helps alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(grpo_gsm8k.__version__, prog_name="grpo-gsm8k")
def cli() -> None:
    """Evaluate and post-train language models on verifiable reasoning; every run leaves a directory that proves it."""


def run_command(command: click.Command, arguments: Sequence[str] | None, name: str) -> int:
    """Returns the exit code of a click command; what goes wrong is said in one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # text of a damaged file, or a terminal that lacks a character
    try:
        with signals_raise():
            command.main(args=None if arguments is None else list(arguments), prog_name=name, standalone_mode=False)
            sys.stdout.flush()
        return 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        return _say(" ".join(error.format_message().split()), error.exit_code)
    except click.Abort:
        return _say("interrupted (SIGINT)", 130)
    except HarnessError as error:
        return _say(str(error), error.exit_code)
    except Interrupted as stop:
        return _say(f"interrupted ({stop})", stop.exit_code)
    except KeyboardInterrupt:
        return _say("interrupted (SIGINT)", 130)
    except BrokenPipeError:  # whoever read our output has gone; nothing may be written to it on the way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        kept = [note for note in getattr(error, "__notes__", []) if "run.log" in note]
        if isinstance(error, OSError) and error.strerror and not kept:  # a folder that may not be entered, a name too long
            return _say(f"{error.strerror}{'' if error.filename is None else f': {os.fsdecode(error.filename)}'}", 1)
        where = kept[0] if kept else _keep_traceback()
        return _say(f"unexpected failure: {type(error).__name__}: {' '.join(str(error).split())} ({where})", 1)


def _keep_traceback() -> str:
    """Returns in words where the traceback that is being handled was kept: a failure outside of a run has no run.log."""
    try:
        descriptor, name = tempfile.mkstemp(prefix="grpo_gsm8k_", suffix=".traceback")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(scrub(traceback.format_exc()))
    except OSError as error:
        return f"its traceback could not be kept: {error.strerror or error}"
    return f"traceback in {name}"


def _say(said: str, code: int) -> int:
    """Prints one line, whatever text of a damaged file stands in it, and returns the exit code."""
    from grpo_gsm8k.runs.catalog import one_line

    line = one_line(" ".join(said.split()))
    shown = line if len(line) <= MAX_CHARS else f"{line[:MAX_CHARS]}… ({len(line) - MAX_CHARS:,} more characters)"
    click.echo(scrub(f"error: {shown}" if code not in (130, 143) else shown), err=True)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line on `arguments` (default: the process's own) and returns its exit code."""
    return run_command(cli, arguments, "grpo-gsm8k")


if __name__ == "__main__":
    sys.exit(main())
