"""grpo_gsm8k: evaluation and post-training on verifiable reasoning, with runs that can be proved."""

__version__ = "0.1.0"
