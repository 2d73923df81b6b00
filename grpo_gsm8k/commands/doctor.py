"""`doctor`: whether this machine is fit for runs, line by line, and what to do where it is not."""

from __future__ import annotations

from pathlib import Path

import click

from grpo_gsm8k.commands.from_config import CONTEXT
from grpo_gsm8k.errors import EnvironmentFailure

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor", context_settings=CONTEXT)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.option("--artifacts-dir", default="artifacts", show_default=True, help="Folder whose disk is looked at.")
def command(as_json: bool, artifacts_dir: str) -> None:
    """Check this machine: GPU, driver, torch, vLLM, memory, disk, hub, W&B, determinism, container; say what to do.

    Each line is ok, warn (runs work, something is less than it could be) or fail (runs will not work, or not on the GPU that is
    there), with the remedy. The exit code follows the worst line: 0 where it is ok or warn, 1 where it is fail. Nothing is sent
    over the network, nothing is changed, no secret is printed, and what hangs is given up after a time (nvidia-smi 15 s, torch
    90 s, vLLM 180 s).
    """
    import json
    from dataclasses import asdict

    from grpo_gsm8k.commands import doctor_checks as host
    from grpo_gsm8k.commands.doctor_gpu import Accelerator

    accelerator = Accelerator()
    found = []
    lines = (
        ("python", host.check_python),
        ("gpu", accelerator.check_gpu),
        ("driver", accelerator.check_driver),
        ("torch", accelerator.check_torch),
        ("gpu memory", accelerator.check_memory),
        ("vllm", accelerator.check_vllm),
        ("determinism", host.check_determinism),
        ("shared memory", host.check_shared_memory),
        ("disk", lambda: host.check_disk(Path(artifacts_dir))),
        ("hub token", host.check_hub_auth),
        ("hub cache", host.check_hub_cache),
        ("wandb", host.check_wandb),
        ("container", host.check_container),
    )
    for check in host.run_checks(lines):
        found.append(check)
        if not as_json:
            click.echo(f"{click.style(f'{check.state:<4}', fg=COLOURS[check.state])}  {check.name:<13}  {check.found}")
            if check.state != "ok" and check.remedy:
                click.echo(f"{'':<21}→ {check.remedy}")
    state = host.worst(found)
    if as_json:
        click.echo(json.dumps({"worst": state, "checks": [asdict(check) for check in found]}, indent=2, ensure_ascii=False))
    failed = [check.name for check in found if check.state == "fail"]
    if failed:
        raise EnvironmentFailure(f"this machine is not fit for runs: {', '.join(failed)}")
    if not as_json:
        num_warnings = sum(check.state == "warn" for check in found)
        click.echo(f"fit for runs: {len(found) - num_warnings} ok, {num_warnings} to know about")
