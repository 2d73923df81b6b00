"""`python -m grpo_gsm8k.fast_eval_vllm`: evaluation only, of a JSONL that is there already; the same options as `eval`.

Differs from `eval` in two defaults, engine vllm and eval_path artifacts/gsm8k/val.jsonl, and prepares no data.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from grpo_gsm8k.cli import run_command
from grpo_gsm8k.commands.eval import run_eval
from grpo_gsm8k.commands.from_config import config_command
from grpo_gsm8k.commands.resume import OPTIONS
from grpo_gsm8k.config import EvalConfig
from grpo_gsm8k.options import Resolved

EVAL_PATH = "artifacts/gsm8k/val.jsonl"


@config_command(EvalConfig, "eval", extra=OPTIONS)
def command(resolved: Resolved[EvalConfig], resume: str | None, allow_changes: bool) -> None:
    """Evaluate a model on a JSONL that is there already, with vLLM; prepares no data."""
    if resume is None and resolved.sources["engine"] == "default":
        resolved = resolved.filled("engine", "vllm", "fast_eval_vllm")
    if resume is None and resolved.sources["eval_path"] == "default":
        resolved = resolved.filled("eval_path", EVAL_PATH, "fast_eval_vllm")
    run_eval(resolved, resume, allow_changes, prepare_data=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the evaluation on `arguments` (default: the process's own) and returns its exit code."""
    return run_command(command, arguments, "python -m grpo_gsm8k.fast_eval_vllm")


if __name__ == "__main__":
    sys.exit(main())
