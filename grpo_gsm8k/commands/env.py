"""`env`: the environments, whether they are sound, and what their rollouts look like and are trained on."""

from __future__ import annotations

import click

from grpo_gsm8k.commands.from_config import CONTEXT, config_command
from grpo_gsm8k.config_env import EnvRolloutsConfig, EnvVerifyConfig, LossMaskConfig
from grpo_gsm8k.errors import DataError
from grpo_gsm8k.options import Resolved

ENV = click.Argument(["name"], metavar="ENV")
TARGET = click.Argument(["target"], metavar="ENV|RUN")


@click.group("env", context_settings=CONTEXT)
def group() -> None:
    """Environments: list and verify them; show rollouts, and which of their tokens are trained on."""


@group.command("list")
def list_envs() -> None:
    """List the environments."""
    from grpo_gsm8k.envs.registry import describe_envs

    lines = describe_envs()
    width = max(map(len, lines))
    for name, line in lines.items():
        click.echo(f"{name:<{width}}  {line}")


@config_command(EnvVerifyConfig, "env verify", extra=(ENV,))
def verify(resolved: Resolved[EnvVerifyConfig], name: str) -> None:
    """Check every problem of ENV against its own grader.

    A published answer must earn the full score and a wrong one must not; golds that cannot be read, empty and repeated
    questions, and questions in two splits are named. Exit code 2 where a fault is found.
    """
    from grpo_gsm8k.commands.env_rollouts import open_source
    from grpo_gsm8k.envs.verify import verify as verify_split

    config = resolved.config
    env = open_source(name, config)
    try:
        found = [verify_split(env, split) for split in (env.splits if config.split == "all" else (config.split,))]
    finally:
        env.close()
    for one in found:
        checked = f"{one.num_right} of {one.num_problems} published answers earn the full score"
        click.echo(f"{one.env} {one.split}: {checked} (version: {one.version})")
        for finding in one.findings:
            click.echo(f"  {'FAULT' if finding.is_fault else 'note '} {finding.num} {finding.kind}")
            for example in finding.examples:
                click.echo(f"        {example}")
    faults = [f"{finding.num} {finding.kind} in {one.split}" for one in found for finding in one.findings if finding.is_fault]
    if faults:
        raise DataError(f"environment {name} is not sound: {'; '.join(faults)}")


@config_command(EnvRolloutsConfig, "env rollouts", extra=(TARGET,))
def rollouts(resolved: Resolved[EnvRolloutsConfig], target: str) -> None:
    """Print rollouts turn by turn: of a RUN as it kept them, or of an ENV sampled now with a model (default: tiny)."""
    from grpo_gsm8k.commands.env_rollouts import find_rollouts
    from grpo_gsm8k.commands.env_text import print_rollout

    found = find_rollouts(target, resolved.config)
    for masked in found.shown:
        print_rollout(masked, found.decode)


@config_command(LossMaskConfig, "env loss-mask", extra=(TARGET,))
def loss_mask(resolved: Resolved[LossMaskConfig], target: str) -> None:
    """Show which tokens of rollouts are trained on: of a RUN as it kept them, or of an ENV sampled now.

    Colours each token by trained, prompt, environment and truncated, in the terminal and in one HTML page. Exit code 2 where a
    rollout has no trained token and should have one: the cause is named. One that is left out by choice (a group whose rewards
    are all equal, a rollout that expert iteration did not keep, a truncated one where mask_truncated asks for that) is counted.
    """
    from pathlib import Path

    from grpo_gsm8k.commands.env_rollouts import check_masks, find_rollouts
    from grpo_gsm8k.commands.env_text import print_counts, print_mask
    from grpo_gsm8k.runs.report_rollouts import view_rollout, write_loss_mask

    config = resolved.config
    found = find_rollouts(target, config, mask_truncated=config.mask_truncated)
    for masked in found.shown:
        print_mask(masked, found.decode)
    print_counts(found.all)
    page = found.page if config.html is None else Path(config.html)
    views = [view_rollout(masked, found.decode, max_tokens=None) for masked in found.shown]
    write_loss_mask(page, found.title, found.all, views)
    click.echo(f"page  {page}")
    check_masks(found.all)


group.add_command(verify)
group.add_command(rollouts)
group.add_command(loss_mask)
