"""Options of `traces generate` and `traces format` (see config.py and options.py)."""

from __future__ import annotations

from dataclasses import dataclass

from grpo_gsm8k.config import RunOptions
from grpo_gsm8k.options import option
from grpo_gsm8k.r1_traces import TraceOptions

TRACE_GRADERS = ("numeric", "gsm8k_strict", "math")


@dataclass(frozen=True)
class TracesGenerateConfig(RunOptions, TraceOptions):
    """Options of `traces generate`: those of r1_traces.py, and a run's."""


@dataclass(frozen=True)
class TracesFormatConfig(RunOptions):
    """Options of `traces format`."""

    model_id: str = option("tiny", "Hub id or folder of the model whose tokenizer is used, or tiny.")
    model_revision: str | None = option(None, "Commit, branch or tag of a hub model.")
    infile: str = option("artifacts/deepseek_r1_gsm8k_traces.jsonl", "JSONL of traces, as traces generate leaves it.")
    outfile: str = option("artifacts/r1_sft_pairs.jsonl", "JSONL of pairs to write; its report is <outfile>.report.json.")
    template: str = option(
        "auto", "Prompt template, which also says how a solution is written; auto: question for tiny, else qwen_math_cot."
    )
    grader: str = option("numeric", "Grader that reads and judges the final answers.", choices=TRACE_GRADERS)
    keep: str = option("correct", "Keep traces graded correct, or all that have an answer.", choices=("correct", "all"))
    max_total_tokens: int = option(2048, "Tokens of the longest pair that is kept, prompt and end token included.", min=2)
    min_response_tokens: int = option(1, "Tokens of the shortest response that is kept, its end token included.", min=1)
