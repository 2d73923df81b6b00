"""Published rows to `Problem`s, and back to the JSONL that this project writes.

A problem's id is `<data set>/<split>/[<group>/]<index>-<hash>`: the row's index in the published split (within its group,
such as a MATH subject) and the first 8 hex digits of the sha256 of its question. Parquet and JSONL of the same rows give
the same ids.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_gsm8k.data.jsonl import parse_jsonl, read_file, read_jsonl
from grpo_gsm8k.errors import DataError
from grpo_gsm8k.rewards.numbers import gold_number, parse_gold
from grpo_gsm8k.types import Problem

Row = Mapping[str, Any]
_BOX = re.compile(r"\\(?:boxed|fbox)\s*")


@dataclass(frozen=True, slots=True)
class RowShape:
    """How a data set's rows are read: column names, and `gold` from a row (raises ValueError saying what is wrong)."""

    question: str
    answer: str
    gold: Callable[[Row], str]
    group: str | None = None
    meta: tuple[str, ...] = ()


def last_boxed(text: str) -> str:
    r"""Returns the content of the last `\boxed{…}` (or `\fbox{…}`, or `\boxed 3`). Raises: ValueError when there is none."""
    starts = list(_BOX.finditer(text))
    if not starts:
        raise ValueError(r"no \boxed{} in the solution; a MATH solution boxes its final answer")
    at = starts[-1].end()
    if text[at : at + 1] != "{":
        return re.split(r"[\s$]", text[at:], maxsplit=1)[0]
    depth = 0
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, at):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[at + 1 : brace.start()].strip()
    raise ValueError(r"the last \boxed{ is never closed")


def question_hash(question: str) -> str:
    """Returns the first 8 hex digits of the sha256 of a question."""
    return hashlib.sha256(question.encode("utf-8", errors="surrogatepass")).hexdigest()[:8]


def normalised(question: str) -> str:
    """Returns a question as it is compared for sameness: case and runs of white space do not count."""
    return " ".join(question.casefold().split())


def read_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Returns (place, row) for each row of a .jsonl or .parquet file; the place is what an error about the row names.

    Raises: DataError when the file cannot be read as what its name says.
    """
    if path.suffix == ".jsonl":
        return [(f"{path}:{number}", row) for number, row in read_jsonl(path)]
    if path.suffix != ".parquet":
        raise DataError(f"{path}: a data file is .jsonl or .parquet")
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(pyarrow.BufferReader(read_file(path))).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not a parquet file that can be read ({str(error).splitlines()[0]})") from None
    if not rows:
        raise DataError(f"{path}: the file holds no rows")
    return [(f"{path}: row {number}", row) for number, row in enumerate(rows, start=1)]


def to_problems(rows: Iterable[tuple[str, Row]], shape: RowShape, prefix: str) -> list[Problem]:
    """Returns one problem a (place, row), ids beginning with `prefix`. Raises: DataError with the place of a bad row."""
    problems = []
    counts: Counter[str] = Counter()
    for place, row in rows:
        question, answer = (_text(row, column, place) for column in (shape.question, shape.answer))
        group = f"{prefix}/{_slug(_text(row, shape.group, place))}" if shape.group else prefix
        try:
            gold = shape.gold(row)
        except ValueError as error:
            raise DataError(f"{place}: {error}") from None
        _whole(gold, "gold", place)
        meta = {column: row[column] for column in shape.meta if column in row}
        problems.append(Problem(f"{group}/{counts[group]:05d}-{question_hash(question)}", question, answer, gold, meta))
        counts[group] += 1
    return problems


def _text(row: Row, column: str, place: str) -> str:
    if column not in row:
        raise DataError(f"{place}: no {column!r} (the row has: {', '.join(sorted(map(str, row))) or 'nothing'})")
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: {column!r} is {'empty' if value == '' else repr(value)[:60]}; text is needed")
    return _whole(value, column, place)


def _whole(text: str, column: str, place: str) -> str:
    r"""Half a character (JSON's "\ud800" alone) cannot be tokenized, nor written as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            rf"{place}: {column!r} has half a character, \u{ord(text[error.start]):04x}, at position {error.start}; "
            "give the whole character, or leave it out"
        ) from None
    return text


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower().replace("&", " and ")).strip("_")


def to_row(problem: Problem) -> dict[str, Any]:
    """Returns the JSON object of a problem, as {train,val,test}.jsonl hold it."""
    row = {"id": problem.id, "question": problem.question, "answer": problem.answer, "gold": problem.gold}
    return row | ({"meta": dict(problem.meta)} if problem.meta else {})


def parse_problems(content: bytes, name: str) -> list[Problem]:
    """Returns the problems of JSONL content; see `load_problems`."""
    return _unique((f"{name}:{number}", row) for number, row in parse_jsonl(content, name))


def load_problems(path: Path) -> list[Problem]:
    r"""Returns the problems of any .jsonl (or .parquet) that has questions and answers, prepared here or not.

    The question is `question`, `prompt` or `problem`; the reference solution `answer` or `solution`. The gold is `gold`, or
    else what follows the answer's last `####`, or else its last `\boxed{}`, or else the whole answer where it is a number.
    Rows without `id` are called `<file name>/<index>-<hash>`.
    Raises: DataError with the place of a bad row and what is wrong with it.
    """
    if path.suffix == ".parquet":
        return _unique(read_rows(path), stem=path.stem)
    return _unique(((f"{path}:{number}", row) for number, row in read_jsonl(path)), stem=path.stem)


def _unique(rows: Iterable[tuple[str, Row]], stem: str = "row") -> list[Problem]:
    problems: dict[str, Problem] = {}
    for index, (place, row) in enumerate(rows):
        problem = _any_problem(place, row, f"{stem}/{index:05d}")
        if problem.id in problems:
            raise DataError(f"{place}: the id {problem.id!r} was given to an earlier row too; ids are unique in a file")
        problems[problem.id] = problem
    return list(problems.values())


def _first(row: Row, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


def _any_problem(place: str, row: Row, made_id: str) -> Problem:
    asks = _first(row, ("question", "prompt", "problem"))
    question = _text(row, asks or "question", place)
    answers = _first(row, ("answer", "solution"))
    if answers is None and row.get("gold") is None:
        raise DataError(f"{place}: no 'answer' and no 'gold' (the row has: {', '.join(sorted(map(str, row)))})")
    answer = _scalar(row[answers], answers, place) if answers else ""
    gold = _scalar(row["gold"], "gold", place) if row.get("gold") is not None else _gold_of(answer, place)
    meta = row.get("meta", {})
    if not isinstance(meta, dict):
        raise DataError(f"{place}: 'meta' is {type(meta).__name__}; an object is needed")
    identity = row.get("id", f"{made_id}-{question_hash(question)}")
    if not isinstance(identity, (str, int)) or isinstance(identity, bool) or identity == "":
        raise DataError(f"{place}: 'id' is {identity!r}; text is needed")
    return Problem(_whole(str(identity), "id", place), question, answer, gold, meta)


def _scalar(value: Any, name: str, place: str) -> str:
    if isinstance(value, str):
        return _whole(value, name, place)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{place}: {name!r} is {type(value).__name__}; text or a number is needed")


def _gold_of(answer: str, place: str) -> str:
    try:
        if "####" in answer:
            return gold_number(answer)
        if _BOX.search(answer):
            return last_boxed(answer)
    except ValueError as error:
        raise DataError(f"{place}: {error}") from None
    if parse_gold(answer) is None:
        raise DataError(
            rf"{place}: the answer has no '####', no \boxed{{}} and is no number; end it with '#### <number>' or give 'gold'"
        )
    return answer.strip()


def duplicate_groups(problems: Iterable[Problem]) -> Iterator[list[int]]:
    """Yields the indices of problems that ask the same question, one list a question, in order of first appearance."""
    groups: dict[str, list[int]] = {}
    for index, problem in enumerate(problems):
        groups.setdefault(normalised(problem.question), []).append(index)
    yield from groups.values()
