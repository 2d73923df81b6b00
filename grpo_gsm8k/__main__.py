"""`python -m grpo_gsm8k` is the command line."""

import sys

from grpo_gsm8k.cli import main

sys.exit(main())
