"""The layer order of the design is read off the imports and enforced."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import grpo_gsm8k

PACKAGE = Path(grpo_gsm8k.__file__).parent
LAYERS = [
    {"types", "errors"},
    {"options", "config", "config_rl", "config_env", "config_traces", "presets", "r1_traces"},
    {"runs"},
    {"data", "prompts", "turns", "rewards", "envs", "models", "templates"},
    {"algorithms", "tokenize", "training_data", "traces"},
    {"engines", "learners"},
    {"loops"},
    {"cli", "commands", "data_prep", "fast_eval_vllm", "__main__"},
]
TORCH_FREE_LAYERS = range(4)
HEAVY = {"torch", "transformers", "vllm", "trl", "peft", "accelerate", "datasets", "wandb"}


def layer_of(module: str) -> int:
    first = module.split(".")[0]
    found = [number for number, names in enumerate(LAYERS) if first in names]
    assert found, f"{module} belongs to no layer: put it into one"
    return found[0]


def imported_modules(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it but under TYPE_CHECKING; relative ones do not occur (ruff, style)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_a_module_imports_only_its_own_layer_and_lower_ones(path: Path) -> None:
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    own = layer_of(module)
    for name in imported_modules(path):
        if name.startswith("grpo_gsm8k.") and name != "grpo_gsm8k.__version__":
            assert layer_of(name.removeprefix("grpo_gsm8k.")) <= own, f"{module} (layer {own}) imports {name}"
        if own in TORCH_FREE_LAYERS and module != "runs.metrics":
            assert name.split(".")[0] not in HEAVY, f"{module} (layer {own}) imports {name}"


def test_a_vendor_is_imported_in_engines_and_learners_only() -> None:
    homes = {"vllm": {"engines/vllm.py"}, "peft": {"engines", "learners"}, "wandb": {"runs/metrics.py"}}
    for path in FILES:
        where = str(path.relative_to(PACKAGE))
        for name in imported_modules(path):
            vendor = name.split(".")[0]
            if vendor in homes:
                assert any(where.startswith(home) for home in homes[vendor]), f"{where} imports {vendor}"


@pytest.mark.parametrize(
    "code",
    [
        "import grpo_gsm8k",
        "from grpo_gsm8k.cli import main; main(['--help'])",
        "from grpo_gsm8k.cli import main; main(['eval', '--help'])",
        "from grpo_gsm8k.cli import main; main(['data', 'prep', '--help'])",
        "from grpo_gsm8k.cli import main; main(['eval', '--dry-run', '--limit', '3'])",
        "import grpo_gsm8k.config, grpo_gsm8k.prompts, grpo_gsm8k.rewards, grpo_gsm8k.data",
    ],
)
def test_naming_and_helping_import_nothing_heavy(code: str) -> None:
    check = f"{code}\nimport sys; bad = sorted({HEAVY!r} & set(sys.modules)); assert not bad, bad"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
