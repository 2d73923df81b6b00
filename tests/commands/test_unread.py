"""Options that nothing would read are named when they are given, and only then."""

from __future__ import annotations

from itertools import chain

import pytest

from grpo_gsm8k.commands.unread import unread_by_run, unread_by_update, warn_unread
from grpo_gsm8k.config_rl import GrpoConfig
from grpo_gsm8k.options import resolve

UNREAD = {
    "engine_mem_util=0.5": "engine_mem_util is given, but engine transformers does not read it",
    "correction_cap=3": "correction_cap is given, but correction none does not read it",
    "max_resamples=2": "max_resamples is given, but zero_variance keep does not read it",
    "mixture=basic env=wordle": "mixture is given, but env wordle, which prepares no data, does not read it",
    "env_timeout_s=2": "env_timeout_s is given, but env tiny, whose scoring cannot hang, does not read it",
    "lora_alpha=8": "lora_alpha is given, but training without lora_rank does not read it",
    "eval_n=8 env=wordle": "eval_n is given, but env wordle, which prepares no data, does not read it",
}
READ = (
    *(
        "batch_size=4",
        "correction_cap=3 correction=token",
        "max_resamples=2 zero_variance=resample",
        "lora_alpha=8 lora_rank=2",
    ),
    *("env_timeout_s=2 reward=math", "env_timeout_s=2 env=math", "mixture=basic env=gym", "eval_n=8"),
)


def said(overrides: str, engine: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is said of a run of these options (env tiny unless they say another) with an engine."""
    given = overrides if "env=" in overrides else f"{overrides} env=tiny"
    resolved = resolve(GrpoConfig, "grpo", overrides=given.split())
    config = resolved.config
    warn_unread(resolved, chain(unread_by_run(config, engine), unread_by_update(config, config.zero_variance or "keep")))
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(("overrides", "line"), UNREAD.items())
def test_an_option_that_nothing_would_read_is_named(overrides: str, line: str, caplog: pytest.LogCaptureFixture) -> None:
    assert said(overrides, "transformers", caplog) == [line]


@pytest.mark.parametrize("overrides", READ)
def test_an_option_that_is_read_is_not_named(overrides: str, caplog: pytest.LogCaptureFixture) -> None:
    assert said(overrides, "transformers", caplog) == []


def test_vllm_reads_the_memory_and_not_the_batch_size(caplog: pytest.LogCaptureFixture) -> None:
    line = "batch_size is given, but engine vllm does not read it"
    assert said("batch_size=4 engine_mem_util=0.5", "vllm", caplog) == [line]
