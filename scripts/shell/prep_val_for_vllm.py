#!/usr/bin/env python
"""`grpo-gsm8k data render-eval` as a script: problems to JSONL with prompt, gold and gold_num a line.

python scripts/shell/prep_val_for_vllm.py --model_id MODEL --infile VAL.jsonl --outfile RENDERED.jsonl
"""

from __future__ import annotations

import sys

from grpo_gsm8k.cli import run_command
from grpo_gsm8k.commands.render_eval import command

if __name__ == "__main__":
    sys.exit(run_command(command, None, "prep_val_for_vllm.py"))
