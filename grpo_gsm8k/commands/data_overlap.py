"""`data overlap`: what of an eval set is in training data, for any two files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from grpo_gsm8k.commands.from_config import CONTEXT

if TYPE_CHECKING:
    from grpo_gsm8k.data.overlap import Overlap

_QUESTIONS = ("question", "problem")
_TRAINED = ("response", "completion", "reasoning", "trace", "answer", "solution")


@click.command("overlap", context_settings=CONTEXT)
@click.argument("training", metavar="TRAINING", type=click.Path(path_type=Path))
@click.argument("evaluated", metavar="EVAL", type=click.Path(path_type=Path))
@click.option(
    "--ngram", type=click.IntRange(min=2), default=13, show_default=True, help="Words in common that put a pair on record."
)
@click.option("--num-pairs", "--num_pairs", type=click.IntRange(min=0), default=10, show_default=True, help="Pairs shown.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(training: Path, evaluated: Path, ngram: int, num_pairs: int, as_json: bool) -> None:
    """Find the questions of EVAL in TRAINING: the same, in other typography, nearly, or a long run of their words.

    The files are JSONL or parquet: problems, pairs, chats, traces or rendered eval sets. Exit code 1 when TRAINING holds a
    question of EVAL (exact or normalised, in what is asked or in a response), else 0; what is near, or shares NGRAM words,
    is for you to judge.
    """
    import json
    from itertools import chain

    from grpo_gsm8k.data.overlap import SAME_PROBLEM, EvalQuestions, in_order
    from grpo_gsm8k.errors import ProofError
    from grpo_gsm8k.training_data.overlap import find_overlaps, overlap_record

    texts, trained = _read(training, as_training=True)
    questions, _ = _read(evaluated, as_training=False)
    found = in_order(chain(*find_overlaps(EvalQuestions(questions, ngram=ngram), texts, trained)))
    if as_json:
        record = overlap_record(found, len(texts), len(questions), ngram, max_pairs=None)
        click.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(_text(found, len(texts), len(questions), ngram, num_pairs)))
    same = {pair.eval_id for pair in found if pair.kind in SAME_PROBLEM}
    if same:
        raise ProofError(f"{training} holds {len(same)} of the {len(questions)} questions of {evaluated}; take them out of one")


def _read(path: Path, *, as_training: bool) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Returns (id, text) of what each row asks, shots included where it is a training row, and of what it trains.

    Raises: DataError with the place of a row without text.
    """
    from grpo_gsm8k.data.rows import read_rows

    asked, trained = [], []
    for index, (place, row) in enumerate(read_rows(path)):
        identity = str(row.get("id", row.get("problem_id", f"{path.stem}/{index:05d}")))
        asked.append((identity, _row_text(row, place, as_training)))
        trained.append((identity, _trained_text(row)))
    return asked, trained


def _trained_text(row: Mapping[str, Any]) -> str:
    messages = row["messages"] if isinstance(row.get("messages"), list) else []
    said = [message.get("content") for message in messages if isinstance(message, dict) and message.get("role") == "assistant"]
    return "\n".join(text for text in [*said, *(row.get(name) for name in _TRAINED)] if isinstance(text, str))


def _row_text(row: Mapping[str, Any], place: str, as_training: bool) -> str:
    from grpo_gsm8k.errors import DataError

    if isinstance(row.get("messages"), list):
        said = [message for message in row["messages"] if isinstance(message, dict)]
        texts = [message.get("content") for message in said if message.get("role") != "assistant"]
    else:
        asked = next((row[name] for name in _QUESTIONS if row.get(name) is not None), None)
        prompt = row.get("prompt")
        texts = [asked] if asked is not None else []
        if prompt is not None and (asked is None or (as_training and str(asked) not in str(prompt))):
            texts.append(prompt)
        elif prompt is not None and as_training:
            texts = [prompt]
    whole = [text for text in texts if isinstance(text, str) and text.strip()]
    if not whole or len(whole) < len(texts):
        there = ", ".join(sorted(map(str, row))) or "nothing"
        raise DataError(f"{place}: no text in 'question', 'problem', 'prompt' or 'messages' (the row has: {there})")
    return "\n".join(whole)


def _text(found: Sequence[Overlap], num_training: int, num_eval: int, ngram: int, num_pairs: int) -> list[str]:
    from grpo_gsm8k.data.overlap import KINDS
    from grpo_gsm8k.training_data.overlap import summary

    said = {
        "exact": "the question as it stands",
        "normalised": "the question, in other case, spacing, punctuation or markup",
        "near": "80 % of the question's words in order, around a rare run",
        "ngram": f"a rare run of {ngram} or more words",
    }
    lines = [f"{num_training} training texts, {num_eval} eval questions", "              pairs  eval questions  same numbers"]
    for kind in KINDS:
        pairs = [pair for pair in found if pair.kind == kind]
        num_questions, num_same = len({pair.eval_id for pair in pairs}), sum(pair.same_numbers for pair in pairs)
        lines.append(f"  {kind:<10}{len(pairs):>7}{num_questions:>16}{num_same:>14}  {said[kind]}")
    for pair in found[:num_pairs]:
        numbers = "same numbers" if pair.same_numbers else "other numbers"
        lines += ["", f"{pair.kind}: {100 * pair.share:.0f} % of the words, {pair.run_words} in a run, {numbers}"]
        for name, identity, text in (
            ("training", pair.training_id, pair.training_text),
            ("eval", pair.eval_id, pair.eval_text),
        ):
            lines.append(f"  {name:<9}{identity}: {' '.join(text.split())}")
    if len(found) > num_pairs:
        lines += ["", f"… {len(found) - num_pairs} more pairs (--num-pairs, or --json for all)"]
    return [*lines, "", summary(found, num_eval)]
