"""Traces to pairs of prompt and response, with why each trace that was left out was left out.

A response is a solution as the prompt's template writes one (its `shot`): the cleaned reasoning and the normalised final
answer, which is the gold where the trace was right. Traces are taken in order of problem id, sample index and model, so that
the pairs do not depend on the order in which answers came.

A trace is left out for the first of these reasons that fits (`REASONS`, in this order): it is the same trace as an earlier
line; its answer was cut or filtered; no reasoning is left; the grader failed, no final answer is found, or the answer is
wrong; its text holds a mark that would end sampling or a turn; the response is not graded as the trace was; another trace
gives the same pair; it is longer or shorter, in tokens, than asked for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_gsm8k.data.jsonl import stream_jsonl
from grpo_gsm8k.data.prompt_tokens import special_token_texts, text_hash
from grpo_gsm8k.errors import DataError, PromptError
from grpo_gsm8k.prompts import Template, render_batch
from grpo_gsm8k.rewards.protocol import Grader
from grpo_gsm8k.traces.cleaning import RULES, clean_reasoning
from grpo_gsm8k.training_data.examples import ExampleReader
from grpo_gsm8k.types import Problem, Score

REASONS = (
    "repeated",
    "not_ended",
    "no_reasoning",
    "grader_error",
    "no_answer",
    "wrong",
    "holds_a_mark",
    "reads_otherwise",
    "duplicate",
    "too_long",
    "too_short",
)
TEXTS = ("id", "question", "gold", "reasoning", "answer", "finish_reason", "model", "prompt_sha256")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_SLOT = re.compile(r"\{(reasoning|gold)\}")


@dataclass(frozen=True)
class FormatRequest:
    """How traces become pairs. `keep`: "correct" or "all"; lengths in tokens."""

    template: Template
    keep: str = "correct"
    max_total_tokens: int = 2048
    min_response_tokens: int = 1


@dataclass
class Formatted:
    """The pairs, and what became of every trace: `num_read` is the pairs plus all that was dropped."""

    pairs: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    cleaned: Counter[str] = field(default_factory=Counter)
    num_read: int = 0
    num_response_tokens: int = 0

    def report(self) -> dict[str, Any]:
        """Returns the counts as JSON; they add up."""
        reasons = Counter(row["reason"] for row in self.dropped)
        assert self.num_read == len(self.pairs) + reasons.total()
        return {
            "num_read": self.num_read,
            "num_kept": len(self.pairs),
            "num_dropped": reasons.total(),
            "dropped": {reason: reasons[reason] for reason in REASONS},
            "sentences_cleaned": {rule: self.cleaned[rule] for rule in RULES},
            "num_response_tokens": self.num_response_tokens,
        }


def read_traces(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Returns (line number, trace) in order of problem id, sample index and model. Raises: DataError naming path and line."""
    traces = []
    for number, row in stream_jsonl(path):
        for name in TEXTS:
            if not isinstance(row.get(name), str):
                raise DataError(f"{path}:{number}: {name!r} is {row.get(name)!r:.60}; a trace of traces generate is needed")
        if not isinstance(row.get("sample_index"), int):
            raise DataError(f"{path}:{number}: 'sample_index' is {row.get('sample_index')!r:.60}; a whole number is needed")
        traces.append((number, row))
    return sorted(traces, key=lambda item: (*_key(item[1]), item[0]))


def _key(row: Mapping[str, Any]) -> tuple[str, int, str, str]:
    return row["id"], row["sample_index"], row["model"], row["prompt_sha256"]


def response_shape(template: Template) -> str:
    """Returns how a solution is written after the template's prompt, with `{reasoning}` and `{gold}`.

    Raises: PromptError when the template does not say so.
    """
    name = f"template {template.name!r}"
    if template.shot is None or "{reasoning}" not in template.shot or "{gold}" not in template.shot:
        raise PromptError(f"{name} does not say how a solution is written; its 'shot' must hold {{reasoning}} and {{gold}}")
    if template.kind == "chat":
        return template.shot.strip("\n")
    opening = template.body.rpartition("{question}")[2]
    shot = template.shot.rpartition("{question}")[2]
    if not shot.startswith(opening):
        raise PromptError(f"{name}: its 'shot' does not go on after the question as its body ends ({opening[:40]!r})")
    return shot.removeprefix(opening).rstrip("\n")


def format_traces(
    traces: Sequence[tuple[int, dict[str, Any]]], tokenizer: Any, grader: Grader, request: FormatRequest
) -> Formatted:
    """Returns the pairs of traces (as `read_traces` gives them). Raises: PromptError, DataError."""
    shape = response_shape(request.template)
    marks = (*TAGS, *special_token_texts(tokenizer))
    done = Formatted(num_read=len(traces))
    scores = grader.grade_batch([_completion(row) for _, row in traces], [row["gold"] for _, row in traces])
    known: set[tuple[str, int, str, str]] = set()
    for (number, row), score in zip(traces, scores, strict=True):
        reason = "repeated" if _key(row) in known else _fault(row, score, request.keep)
        known.add(_key(row))
        cleaned = clean_reasoning(row["reasoning"])
        if reason is None and not cleaned.text:
            reason = "no_reasoning"
        if reason is None and any(mark in cleaned.text for mark in (*marks, *request.template.stop)):
            reason = "holds_a_mark"
        if reason is not None:
            done.dropped.append(_dropped(number, row, reason))
            continue
        final = row["gold"] if score.status == "correct" else str(score.answer)
        response = _fill(shape, {"reasoning": cleaned.text, "gold": final})
        again = grader.grade(response, row["gold"])
        if again.status != score.status:
            done.dropped.append(_dropped(number, row, "reads_otherwise"))
            continue
        done.cleaned.update(cleaned.dropped)
        provenance = {name: row.get(name) for name in ("sample_index", "model", "served_model", "request_id", "prompt_sha256")}
        provenance |= {
            "problem_id": row["id"],
            "line": number,
            "grader": f"{grader.name} {grader.version}",
            "status": score.status,
        }
        provenance |= {"sentences_cleaned": cleaned.dropped.total()}
        identity = f"{row['id']}/{row['sample_index']}-{text_hash(row['model'], row['prompt_sha256'])}"
        done.pairs.append({"id": identity, "prompt": row["question"], "response": response, "provenance": provenance})
    _render(done, traces, tokenizer, request.template)
    done.pairs = list(_fitting(done, tokenizer, request))
    done.dropped.sort(key=lambda row: int(row["line"]))
    return done


def _fill(shape: str, values: Mapping[str, str]) -> str:
    return _SLOT.sub(lambda slot: values[slot[1]], shape)


def _completion(row: Mapping[str, Any]) -> str:
    """What is graded: the final answer; where there is none, what the reasoning marks as one."""
    return str(row["answer"]) if row["answer"].strip() else f"<think>{row['reasoning']}</think>"


def _fault(row: Mapping[str, Any], score: Score, keep: str) -> str | None:
    if row["finish_reason"] != "stop":
        return "not_ended"
    if not row["reasoning"].strip():
        return "no_reasoning"
    if score.status == "error":
        return "grader_error"
    if score.status == "unparsed" or score.answer is None:
        return "no_answer"
    return "wrong" if keep == "correct" and score.status != "correct" else None


def _dropped(number: int, row: Mapping[str, Any], reason: str) -> dict[str, Any]:
    return {"line": number, "id": row["id"], "sample_index": row["sample_index"], "reason": reason}


def _render(done: Formatted, traces: Sequence[tuple[int, dict[str, Any]]], tokenizer: Any, template: Template) -> None:
    """Puts the rendered prompt where the pair has its question so far."""
    by_line = dict(traces)
    rows = [by_line[pair["provenance"]["line"]] for pair in done.pairs]
    problems = [Problem(row["id"], row["question"], "", row["gold"]) for row in rows]
    for pair, prompt in zip(done.pairs, render_batch(tokenizer, problems, template=template), strict=True):
        pair["prompt"] = prompt.text


def _fitting(done: Formatted, tokenizer: Any, request: FormatRequest) -> Iterator[dict[str, Any]]:
    """Yields the pairs that are no duplicates and of the length that is asked for; drops the others."""
    reader = ExampleReader(tokenizer)
    examples = [reader.parse(pair, pair["provenance"]["line"], "traces", "trace") for pair in done.pairs]
    seen: set[tuple[str, str]] = set()
    for pair, sequence in zip(done.pairs, reader.encode(examples), strict=True):
        text = (pair["prompt"], " ".join(pair["response"].casefold().split()))
        num_response = sum(sequence.trained)
        reason = "duplicate" if text in seen else None
        if reason is None and len(sequence.token_ids) > request.max_total_tokens:
            reason = "too_long"
        if reason is None and num_response < request.min_response_tokens:
            reason = "too_short"
        seen.add(text)
        if reason is None:
            done.num_response_tokens += num_response
            yield pair
        else:
            made = pair["provenance"]
            done.dropped.append(
                _dropped(made["line"], {"id": made["problem_id"], "sample_index": made["sample_index"]}, reason)
            )
