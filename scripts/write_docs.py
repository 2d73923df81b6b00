"""Writes docs/options.md from the config classes, so that an option is described in one place."""

from __future__ import annotations

import sys
from pathlib import Path

from grpo_gsm8k.config import DataPrepConfig, EvalConfig, PretokenizeConfig, RenderEvalConfig, RenderPairsConfig, SftConfig
from grpo_gsm8k.config_env import EnvRolloutsConfig, EnvVerifyConfig, LossMaskConfig
from grpo_gsm8k.config_rl import ExpertIterationConfig, GrpoConfig
from grpo_gsm8k.config_traces import TracesFormatConfig, TracesGenerateConfig
from grpo_gsm8k.options import options_table, presets
from grpo_gsm8k.prompts import list_templates

TARGET = Path(__file__).resolve().parents[1] / "docs" / "options.md"
COMMANDS = {
    "eval": EvalConfig,
    "sft": SftConfig,
    "grpo": GrpoConfig,
    "expert-iteration": ExpertIterationConfig,
    "data prep": DataPrepConfig,
    "data pretokenize": PretokenizeConfig,
    "data render-eval": RenderEvalConfig,
    "data render-pairs": RenderPairsConfig,
    "env verify": EnvVerifyConfig,
    "env rollouts": EnvRolloutsConfig,
    "env loss-mask": LossMaskConfig,
    "traces generate": TracesGenerateConfig,
    "traces format": TracesFormatConfig,
}


def render() -> str:
    """Returns the page."""
    parts = [
        "# Options\n\nMade by `make docs` from the config classes. Every option is a flag (dashes or underscores), a key of a "
        "`--config` file (.toml, .yaml, .json) or preset, and a `key=value` override. Precedence: default, then preset or "
        "file, then flag or override."
    ]
    for name, cls in COMMANDS.items():
        parts.append(f"## `{name}`\n\n{options_table(cls)}")
    rows = [f"| `{name}` | {table['command']} | {table['description']} |" for name, table in presets().items()]
    parts.append("\n".join(["## Presets\n\n| preset | command | what it is |\n|---|---|---|", *rows]))
    rows = [f"| `{name}` | {description} |" for name, description in list_templates().items()]
    parts.append("\n".join(["## Templates\n\n| template | what it is |\n|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
    print(TARGET.relative_to(Path.cwd()) if TARGET.is_relative_to(Path.cwd()) else TARGET, file=sys.stderr)
