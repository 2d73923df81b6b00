"""What a person may hand in - configs, JSONL, templates, mixtures, labels, completions - never ends in a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpo_gsm8k.cli import main
from grpo_gsm8k.rewards.registry import GRADERS, make_grader
from grpo_gsm8k.types import Score

QUICK = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
LONG = settings(QUICK, max_examples=1000, derandomize=False)

STRANGE: st.SearchStrategy[Any] = st.sampled_from(
    [
        *(None, True, 0, -1, 2**63, 10**400, float("nan"), float("inf"), [], {}, [[]], [None], {"": None}),
        *("", "tiny", "none", "\ud800", "\0", "/", "a\nb\u2028\x1b[31m", "x" * 5000, "18", "#### 18", r"\boxed{18}"),
        [{"role": "user", "content": "1 + 1?"}],
    ]
)
VALUES = STRANGE | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    (
        "command description limit model_id k_shot graders seed out_dir temperature eval-path run_name lr env env_path mixture "
        "template wandb max_steps group_size artifacts_dir"
    ).split()
)
ROW_KEYS = st.sampled_from(
    (
        "id question answer gold prompt response messages problem_id sample_index completion correct scores reasoning content "
        "meta dataset prompt_token_ids"
    ).split()
)
JSON = VALUES.map(lambda value: json.dumps(value).encode())
ROWS = st.dictionaries(ROW_KEYS, VALUES, max_size=6) | st.fixed_dictionaries(
    {"id": VALUES, "question": st.text(max_size=20), "answer": st.text(max_size=20) | st.just("#### 18")},
    optional={
        "gold": VALUES,
        "prompt": VALUES,
        "response": VALUES,
        "completion": st.text(max_size=20),
        "problem_id": st.text(),
    },
)
LINES = ROWS.map(lambda row: json.dumps(row).encode()) | JSON | st.binary(max_size=30)
WRAPS: list[Callable[[bytes], bytes]] = [
    lambda content: content,
    lambda content: b"\xef\xbb\xbf" + content,
    lambda content: content.replace(b"\n", b"\r\n"),
    lambda content: content.decode(errors="replace").encode("utf-16"),
    lambda content: content[: len(content) * 2 // 3],
    lambda content: content + b"\n\n",
    lambda content: b"[" * 100_000 + content,
    lambda content: b'{"a":' * 50_000 + content,
    lambda content: content + b"9" * 5000,
    lambda content: b"a = " + b"9" * 5000 + b"\n" + content,
    lambda content: b"a = 2021-02-30\n" + content,
    lambda content: b"a: &a [*a]\n" + content,
]
WRAPPED = st.sampled_from(WRAPS)
JSONL = st.builds(lambda lines, wrap: wrap(b"".join(line + b"\n" for line in lines)), st.lists(LINES, max_size=4), WRAPPED)
CONFIGS = st.builds(
    lambda table, wrap: wrap(json.dumps(table).encode()),
    st.dictionaries(KEYS | st.text(max_size=8), VALUES, max_size=5),
    WRAPPED,
) | st.builds(
    lambda pairs, wrap: wrap("\n".join(f"{key} = {json.dumps(value)}" for key, value in pairs).encode()),
    st.lists(st.tuples(KEYS | st.text(max_size=8), VALUES), max_size=5),
    WRAPPED,
)
TEXTS = (
    st.text(alphabet=st.characters(), max_size=200)
    | st.text(alphabet=r"0123456789.,-+/%$\{}^_()[]=#* xeπfracsqrtboxedanswertext", max_size=200)
    | st.builds(lambda part, num: part * num, st.text(min_size=1, max_size=12), st.integers(1, 5000))
    | st.builds(
        lambda part, num: r"\boxed{" + part * num + "}" * (num % 3),
        st.sampled_from([r"\frac{1}{", "{", "9", "2^", "1+", r"\sqrt{", "(", "-", ".", ",", "10**", "!"]),
        st.integers(1, 3000),
    )
)

SUFFIXES = ("toml", "yaml", "json")
CONFIG_COMMANDS = ("eval", "sft", "grpo", "expert-iteration", "data prep", "data pretokenize", "env rollouts tiny")
# Each takes {file}, and leaves what it makes under {out}.
FILE_COMMANDS = (
    "data overlap {file} {file}",
    "runs audit {file} --artifacts-dir {out}",
    "runs audit {good} --label {file} --artifacts-dir {out}",
    "data render-eval --infile {file} --outfile {out}/eval.jsonl --artifacts_dir {out}",
    "data render-eval --infile {problems} --k_shot 1 --shots_path {file} --outfile {out}/eval.jsonl --artifacts_dir {out}",
    "data render-eval --infile {problems} --template {file} --outfile {out}/eval.jsonl --artifacts_dir {out}",
    "data render-pairs --infile {file} --outfile {out}/pairs.jsonl --artifacts_dir {out}",
    "data pretokenize --infile {file} --out_dir {out}/shards --artifacts_dir {out}",
    "data prep --dataset gsm8k --source {file} --out_dir {out}/data --artifacts_dir {out}",
    "data prep --dataset gym --mixture {file} --out_dir {out}/data --artifacts_dir {out}",
    "traces format --infile {file} --outfile {out}/pairs.jsonl --artifacts_dir {out}",
    "env verify jsonl --env_path {file} --artifacts_dir {out}",
    "eval --eval_path {file} --limit 1 --wandb disabled --artifacts_dir {out}",
    "sft --data_path {file} --eval_set_path {file} --max_steps 1 --wandb disabled --artifacts_dir {out}",
)
QUICK_COMMANDS = FILE_COMMANDS[:2]


def check(*arguments: str) -> str:
    """Returns what a command said: it ended with a code of ours, an error in one line that a terminal of UTF-8 can show."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    said = err.buffer.getvalue().decode()  # type: ignore[attr-defined]
    errors = [line for line in said.split("\n") if line.startswith("error: ")]
    assert code in (0, 1, 2), said
    assert len(errors) == (code != 0), said
    assert "Traceback" not in said and "unexpected failure" not in said, said
    return said


def check_config(content: bytes, suffix: str, command: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"config.{suffix}"
        path.write_bytes(content)
        check(*command.split(), "--config", str(path), "--dry-run")


def check_file(command: str, make: Callable[[Path], Any]) -> str:
    """Returns what a command said of a file that `make` made."""
    with tempfile.TemporaryDirectory() as folder:
        file, problems, good = (Path(folder) / f"{name}.jsonl" for name in ("file", "problems", "good"))
        problems.write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
        good.write_text('{"problem_id": "a", "gold": "2", "completion": "#### 2"}\n')
        make(file)
        given = command.format(file=file, problems=problems, good=good, out=Path(folder) / "out")
        return check(*given.split())


def check_grader(name: str, completion: str, gold: str) -> None:
    grader = make_grader(name)
    try:
        began = time.monotonic()
        score = grader.grade(completion, gold)
        assert time.monotonic() - began < 30
    finally:
        getattr(grader, "close", lambda: None)()
    assert isinstance(score, Score) and score.status in ("correct", "wrong", "unparsed", "error")


@QUICK
@given(CONFIGS | JSONL, st.sampled_from(SUFFIXES), st.sampled_from(CONFIG_COMMANDS))
def test_a_config_file_of_anything_is_taken_or_refused_in_one_line(content: bytes, suffix: str, command: str) -> None:
    check_config(content, suffix, command)


@pytest.mark.slow
@LONG
@given(CONFIGS | JSONL, st.sampled_from(SUFFIXES), st.sampled_from(CONFIG_COMMANDS))
def test_many_config_files_of_anything_are_taken_or_refused(content: bytes, suffix: str, command: str) -> None:
    check_config(content, suffix, command)


@pytest.mark.parametrize("command", QUICK_COMMANDS)
@settings(QUICK, max_examples=4)
@given(content=JSONL)
def test_a_data_file_of_anything_is_taken_or_refused_in_one_line(command: str, content: bytes) -> None:
    check_file(command, lambda path: path.write_bytes(content))


@pytest.mark.slow
@pytest.mark.parametrize("command", FILE_COMMANDS)
@settings(LONG, max_examples=80)
@given(content=JSONL | CONFIGS)
def test_many_data_files_of_anything_are_taken_or_refused(command: str, content: bytes) -> None:
    check_file(command, lambda path: path.write_bytes(content))


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path.name), lambda path: None])
@pytest.mark.parametrize(
    "command", [one if one in QUICK_COMMANDS else pytest.param(one, marks=pytest.mark.slow) for one in FILE_COMMANDS]
)
def test_what_is_no_plain_file_is_refused_by_name(command: str, make: Callable[[Path], Any]) -> None:
    assert "file.jsonl" in check_file(command, make)


@QUICK
@given(st.sampled_from([name for name in GRADERS if name != "math"]), TEXTS, TEXTS)
def test_a_grader_gives_a_score_of_any_text(name: str, completion: str, gold: str) -> None:
    check_grader(name, completion, gold)


@pytest.mark.slow
@LONG
@given(st.sampled_from([name for name in GRADERS if name != "math"]), TEXTS, TEXTS)
def test_graders_give_a_score_of_many_texts(name: str, completion: str, gold: str) -> None:
    check_grader(name, completion, gold)


@pytest.mark.slow
@settings(LONG, max_examples=60)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8))
def test_the_math_grader_gives_a_score_of_many_texts(pairs: list[tuple[str, str]]) -> None:
    grader = make_grader("math", timeout_s=2.0)
    try:
        scores = grader.grade_batch([completion for completion, _ in pairs], [gold for _, gold in pairs])
    finally:
        grader.close()
    assert all(score.status in ("correct", "wrong", "unparsed", "error") for score in scores)
