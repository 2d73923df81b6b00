"""`python -m grpo_gsm8k.data_prep` is `grpo-gsm8k data prep`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from grpo_gsm8k.cli import run_command
from grpo_gsm8k.commands.data import prep


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `data prep` on `arguments` (default: the process's own) and returns its exit code."""
    return run_command(prep, arguments, "python -m grpo_gsm8k.data_prep")


if __name__ == "__main__":
    sys.exit(main())
