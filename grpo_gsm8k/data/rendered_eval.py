"""Pre-rendered eval sets: a JSONL of prompts with their golds, and beside it `<file>.meta.json`, which says how it was made.

A line holds `prompt` (the text), `gold` (the final answer) and `gold_num` (its number, null where the gold is none), and, where
this package made it, `id`, `question`, `answer`, `prompt_token_ids` and `meta`. The reader is strict: what it accepts can be
evaluated as it stands.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from grpo_gsm8k.data.jsonl import encode_jsonl, parse_jsonl, read_file
from grpo_gsm8k.data.prompt_tokens import prompt_token_ids, reads_back, text_hash, tokenizer_identity
from grpo_gsm8k.errors import DataError
from grpo_gsm8k.rewards.numbers import gold_number, parse_gold
from grpo_gsm8k.runs.storage import digest, make_folder, write_bytes, write_json
from grpo_gsm8k.types import Problem, Prompt

FORMAT = 1
FIELDS = ("prompt", "gold", "gold_num")
# What other models' chat templates write, and plain text does not: <|…|> anywhere, the rest where a prompt begins.
_FOREIGN = re.compile(r"<[|｜][^<>|｜\s]{1,40}[|｜]>|\A(?:<s>|<bos>|<start_of_turn>|\[INST\])")


def meta_path(path: Path) -> Path:
    """Returns where the record of a rendered eval set lies."""
    return path.with_name(f"{path.name}.meta.json")


def number_of_gold(gold: str) -> int | float | str | None:
    """Returns a gold's number as JSON holds it: an int, a float where that is exact, else a fraction as text; None for none."""
    parsed = parse_gold(gold)
    if parsed is None:
        return None
    value = Fraction(parsed.value)
    if value.denominator == 1:
        return value.numerator
    return float(value) if _exact_float(value) else str(value)


def _exact_float(value: Fraction) -> bool:
    return abs(value) < 10**15 and Fraction(repr(float(value))) == value


def write_rendered_eval_set(
    path: Path, items: Sequence[tuple[Problem, Prompt]], tokenizer: Any, tokenizer_name: str, how: Mapping[str, Any]
) -> tuple[dict[str, Any], bool]:
    """Writes an eval set and its record (whole, the record last); returns the record and whether anything changed.

    `how` is what else the record says: template, shots, the file the problems came from.
    Raises: DataError when there is no problem, or the file is there and no render of ours put it there; StorageError.
    """
    if not items:
        raise DataError(f"{path}: no problem to render; at least one is needed")
    content = encode_jsonl(_to_row(problem, prompt) for problem, prompt in items)
    record = {
        "format": FORMAT,
        "rows": len(items),
        "sha256": digest(content),
        "tokenizer": tokenizer_identity(tokenizer, tokenizer_name),
        **how,
    }
    if path.exists() and not meta_path(path).exists():
        raise DataError(f"{path}: is there already and has no {meta_path(path).name}, so no render put it there; name another")
    if path.exists() and rendered_meta(path) == json.loads(json.dumps(record)) and digest(read_file(path)) == record["sha256"]:
        return record, False
    make_folder(path.parent)
    write_bytes(path, content)
    write_json(meta_path(path), record)
    return record, True


def _to_row(problem: Problem, prompt: Prompt) -> dict[str, Any]:
    row: dict[str, Any] = {"id": problem.id, "question": problem.question, "answer": problem.answer, "prompt": prompt.text}
    row |= {"prompt_token_ids": list(prompt.token_ids), "gold": problem.gold, "gold_num": number_of_gold(problem.gold)}
    return row | ({"meta": dict(problem.meta)} if problem.meta else {})


def rendered_meta(path: Path) -> dict[str, Any] | None:
    """Returns the record of a rendered eval set, or None where there is none. Raises: DataError when it cannot be read."""
    beside = meta_path(path)
    if not beside.exists():
        return None
    try:
        record = json.loads(read_file(beside))
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or record.get("format") != FORMAT or not {"sha256", "tokenizer"} <= record.keys():
        raise DataError(f"{beside}: not a record of format {FORMAT}; render the eval set again")
    return record


def load_rendered_eval_set(path: Path, tokenizer: Any) -> list[tuple[Problem, Prompt]]:
    """Returns the problems of a rendered eval set, each with its prompt as `tokenizer` sees it.

    With a record beside the file, the file must have its sha256 and the tokenizer its digest (and chat template, where the
    prompts are chats). Without one, every prompt must read back from its tokens, and hold no special token of another model.
    `prompt_token_ids`, where given, must be this tokenizer's; without, `prompt_token_ids` of this package makes them.
    Raises: DataError with path (and line) for a file that is missing, empty or unreadable, a line without prompt, gold or
    gold_num, a gold_num that is not the gold's number, an id given twice, and prompts that are not this tokenizer's.
    """
    content = read_file(path)
    rows = list(parse_jsonl(content, str(path)))
    record = rendered_meta(path)
    if record is not None:
        _check_record(path, content, record, tokenizer)
    problems: dict[str, Problem] = {}
    for number, row in rows:
        problem = _to_problem(row, f"{path}:{number}", f"{path.stem}/{number - 1:05d}")
        if problem.id in problems:
            raise DataError(f"{path}:{number}: the id {problem.id!r} was given to an earlier line; ids are unique in a file")
        problems[problem.id] = problem
    texts = [row["prompt"] for _, row in rows]
    made = prompt_token_ids(tokenizer, texts)
    vocabulary = tokenizer.get_vocab() if record is None else {}
    items = []
    for (number, row), problem, text, ids in zip(rows, problems.values(), texts, made, strict=True):
        place = f"{path}:{number}"
        ids = _given_ids(row, text, ids, tokenizer, place)
        if record is None:
            _check_foreign(text, ids, tokenizer, vocabulary, place)
        items.append((problem, Prompt(problem.id, ids, text)))
    return items


def _check_record(path: Path, content: bytes, record: Mapping[str, Any], tokenizer: Any) -> None:
    if digest(content) != record["sha256"]:
        raise DataError(f"{path}: changed since it was rendered (sha256 differs from {meta_path(path).name}); render it again")
    made, here = record["tokenizer"], tokenizer_identity(tokenizer, "")
    if made["sha256"] != here["sha256"]:
        raise DataError(
            f"{path}: rendered with another tokenizer ({made.get('name')}, sha256 {made['sha256'][:12]}… and here"
            f" {here['sha256'][:12]}…); render it again with this model_id"
        )
    is_chat = record.get("template", {}).get("kind") == "chat"
    if is_chat and made.get("chat_template_sha256") != here["chat_template_sha256"]:
        raise DataError(f"{path}: rendered with another chat template than this tokenizer has; render it again")


def _to_problem(row: Mapping[str, Any], place: str, made_id: str) -> Problem:
    for name in FIELDS:
        if name not in row:
            shown = ", ".join(sorted(row)) or "nothing"
            raise DataError(f"{place}: no {name!r} (the line has: {shown}); prompt, gold and gold_num are needed")
    for name in ("prompt", "gold"):
        if not isinstance(row[name], str) or not row[name].strip():
            raise DataError(f"{place}: {name!r} is {row[name]!r:.60}; text is needed")
    answer, gold = row.get("answer", row["gold"]), row["gold"]
    if "####" in gold:  # a whole published answer given as the gold
        try:
            gold = gold_number(gold)
        except ValueError as error:
            raise DataError(f"{place}: {error}") from None
    expected = parse_gold(gold)
    if not _is_number_of(row["gold_num"], None if expected is None else Fraction(expected.value)):
        needed = json.dumps(number_of_gold(gold))
        raise DataError(f"{place}: 'gold_num' is {row['gold_num']!r:.60}, but the number of gold {gold!r:.40} is {needed}")
    identity, meta = row.get("id", f"{made_id}-{text_hash(row['prompt'])}"), row.get("meta", {})
    question = row.get("question", row["prompt"])
    if not isinstance(identity, (str, int)) or isinstance(identity, bool) or identity == "":
        raise DataError(f"{place}: 'id' is {identity!r:.60}; text is needed")
    if not isinstance(meta, dict) or not isinstance(question, str) or not isinstance(answer, str):
        raise DataError(f"{place}: 'question' and 'answer' are text and 'meta' is an object, where they are given")
    return Problem(str(identity), question, answer, gold, meta)


def _is_number_of(given: Any, value: Fraction | None) -> bool:
    if given is None or value is None:
        return given is None and value is None
    if isinstance(given, str):
        read = parse_gold(given)
        return read is not None and Fraction(read.value) == value
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not math.isfinite(given):
        return False
    return Fraction(given) == value or (abs(value) < 10**300 and given == float(value))


def _given_ids(row: Mapping[str, Any], text: str, made: tuple[int, ...], tokenizer: Any, place: str) -> tuple[int, ...]:
    """Returns the line's own ids where it has them; they must be what the tokenizer makes of the text, with or without BOS."""
    ids = made
    if "prompt_token_ids" in row:
        given = row["prompt_token_ids"]
        ways = [made, *(prompt_token_ids(tokenizer, [text], way)[0] for way in ("none", "add"))] if given != [*made] else [made]
        if not isinstance(given, list) or tuple(given) not in ways:
            raise DataError(f"{place}: 'prompt_token_ids' are not what this tokenizer makes of 'prompt'; render it again")
        ids = tuple(given)
    if not ids:
        raise DataError(f"{place}: the tokenizer makes no tokens of the prompt")
    return ids


def _check_foreign(text: str, ids: Sequence[int], tokenizer: Any, vocabulary: Mapping[str, int], place: str) -> None:
    unknown = [found[0] for found in _FOREIGN.finditer(text) if found[0] not in vocabulary]
    if unknown:
        raise DataError(
            f"{place}: the prompt holds {unknown[0]!r}, which is no token of this tokenizer: it was rendered for another model;"
            " render it with this model_id"
        )
    if not reads_back(tokenizer, text, ids):
        raise DataError(f"{place}: the prompt does not read back from this tokenizer's tokens; render it with this model_id")
