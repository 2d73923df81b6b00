#!/usr/bin/env python
"""`grpo-gsm8k data pretokenize` as a script: JSONL of examples to shards (.pt) and a manifest.

python scripts/shell/pretokenize_r1_pairs.py --model_id MODEL --infile PAIRS.jsonl --out_dir FOLDER --max_total_tokens 2048
"""

from __future__ import annotations

import sys

from grpo_gsm8k.cli import run_command
from grpo_gsm8k.commands.pretokenize import command

if __name__ == "__main__":
    sys.exit(run_command(command, None, "pretokenize_r1_pairs.py"))
