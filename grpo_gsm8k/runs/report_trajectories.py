"""Every trajectory of runs on one page: compressed in blocks that the page unpacks when they are paged to.

An index (one short entry a trajectory) is unpacked when the page opens, so that its cost hardly grows with the trajectories.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import heapq
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from markupsafe import Markup

from grpo_gsm8k.errors import DataError
from grpo_gsm8k.runs.evaluations import evaluated_steps
from grpo_gsm8k.runs.loss_mask import mask_rollout
from grpo_gsm8k.runs.report_files import RunFiles
from grpo_gsm8k.runs.report_page import TEMPLATES_DIR
from grpo_gsm8k.runs.report_rollouts import CLASSES, saved_steps
from grpo_gsm8k.runs.rollout_files import FOLDER, StoredRollout, read_rollouts
from grpo_gsm8k.runs.token_texts import Decode, run_decoder, token_texts

BLOCK = 50
MAX_CHARS = 20_000
DECODE_CACHE = 1 << 17


@dataclass(frozen=True)
class Source:
    """Trajectories of one kind of one run: what people call it, how many there are, and those that the page holds."""

    label: str
    num: int
    items: list[dict[str, Any]]


@dataclass(frozen=True)
class Browser:
    """What the page needs to page through trajectories: blocks and index as base64 of gzip, and the script with its hash."""

    sources: list[Source]
    blocks: list[str]
    index: str
    script: Markup
    script_hash: str


def collect_trajectories(runs: Sequence[tuple[str, RunFiles]], limit: int) -> Browser:
    """Returns up to `limit` trajectories of runs, each given with its letter: the last evaluation's, and the rollouts kept.

    Where there are more, each kind of each run gives equally many, drawn by a hash of (problem, sample): the same problems in
    each run. What cannot be read is noted in the run's files.
    """
    kinds: list[Callable[[int], Source]] = []
    for letter, files in runs:
        prefix = f"{letter} · " if letter else ""
        steps = evaluated_steps(files.run_dir)
        if steps:
            kinds.append(partial(_evaluation, files, steps[-1], prefix))
        if saved_steps(files.run_dir):
            kinds.append(partial(_rollouts, files, prefix))
    share = limit // max(1, len(kinds))
    sources = [source for read in kinds if (source := read(share)).items]
    items = [item for source in sources for item in source.items]
    blocks = [_packed(items[start : start + BLOCK]) for start in range(0, len(items), BLOCK)]
    entries = [
        [number, item["id"], item["sample"], item["verdict"]] for number, source in enumerate(sources) for item in source.items
    ]
    script = (TEMPLATES_DIR / "trajectories.js").read_text(encoding="utf-8")
    script_hash = "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Browser(sources, blocks, _packed({"block": BLOCK, "items": entries}), Markup(script), script_hash)


def _evaluation(files: RunFiles, step: int, prefix: str, share: int) -> Source:
    num = 0

    def rows() -> Iterable[tuple[bytes, int, dict[str, Any]]]:
        nonlocal num
        for row in files.rows(files.run_dir / f"eval/step_{step}.jsonl"):
            num += 1
            yield _rank(row.get("problem_id"), row.get("sample_index")), num, row

    drawn = sorted(heapq.nsmallest(share, rows()), key=lambda entry: entry[1])
    return Source(f"{prefix}evaluation of step {step}", num, [_evaluation_item(row) for _, _, row in drawn])


def _evaluation_item(row: Mapping[str, Any]) -> dict[str, Any]:
    scores: Mapping[str, Any] = row.get("scores") or {}
    said = [f"{name}: {score.get('status')}, read {score.get('answer')}" for name, score in scores.items()]
    return {
        "id": str(row.get("problem_id")),
        "sample": row.get("sample_index"),
        "verdict": next((str(score.get("status")) for score in scores.values()), "ungraded"),
        "question": _cut(row.get("question")),
        "facts": [f"gold {row.get('gold')}", *said, f"ended by {row.get('stop_reason')}", f"seed {row.get('seed')}"],
        "tokens": [["p", _cut(row.get("prompt"))], ["t0", _cut(row.get("completion"))]],
    }


def _rollouts(files: RunFiles, prefix: str, share: int) -> Source:
    decode = None
    try:
        decode = run_decoder(files.run_dir)
    except DataError as error:
        files.notes.append(str(error))
    found: list[tuple[bytes, int, int, StoredRollout]] = []
    num = 0
    for step in saved_steps(files.run_dir):
        try:
            stored = read_rollouts(files.run_dir / FOLDER / f"step_{step}.jsonl")
        except (DataError, KeyError, TypeError) as error:
            files.notes.append(str(error))
            continue
        num += len(stored)
        ranked = [
            (_rank(one.rollout.problem.id, one.rollout.sample_index), step, number, one) for number, one in enumerate(stored)
        ]
        found = heapq.nsmallest(share, [*found, *ranked], key=lambda entry: entry[:3])
    masks = files.object("config.json").get("values", {}).get("mask_truncated", False)
    cached = None if decode is None else _cached(decode)
    items = [_rollout_item(one, step, bool(masks), cached) for _, step, _, one in sorted(found, key=lambda entry: entry[1:3])]
    return Source(f"{prefix}training rollouts", num, items)


def _rollout_item(stored: StoredRollout, step: int, mask_truncated: bool, decode: Decode | None) -> dict[str, Any]:
    rollout = stored.rollout
    advantage = "" if stored.advantage is None else f", advantage {stored.advantage:.3g}"
    facts = [
        f"step {step}, reward {rollout.score.value:.3g}{advantage}",
        f"gold {rollout.problem.gold}, read {rollout.score.answer}",
        f"ended by {rollout.stop_reason}",
        f"seed {rollout.seed}",
    ]
    masked = mask_rollout(stored, mask_truncated=mask_truncated)
    if masked.cause is not None:
        facts.append(f"nothing of it is trained on: {masked.cause}")
    tokens: list[list[Any]] = []
    if decode is None:
        tokens = [["p", f"[{len(rollout.prompt_token_ids)} tokens of the prompt; no tokenizer at hand]\n"]]
        tokens += [["t0", _cut(turn.text)] for turn in rollout.turns]
    else:
        ids = rollout.prompt_token_ids + rollout.token_ids
        texts = token_texts(ids, decode)
        own, learner = masked.logprobs, masked.learner_logprobs
        for span in masked.spans:
            css = CLASSES[span.kind]
            if span.kind in ("prompt", "environment"):
                tokens.append([css, "".join(texts[span.start : span.end])])
                continue
            tokens += [_token(css, ids[at], texts[at], own[at], learner[at]) for at in range(span.start, span.end)]
        differences = [abs(token[4]) for token in tokens if len(token) == 5]
        if differences:
            mean = sum(differences) / len(differences)
            facts.append(f"learner − engine log-prob: mean |Δ| {mean:.1e}, largest {max(differences):.1e}")
    return {
        "id": rollout.problem.id,
        "sample": rollout.sample_index,
        "verdict": rollout.score.status,
        "question": _cut(rollout.problem.question),
        "facts": facts,
        "tokens": tokens,
    }


def _token(css: str, token: int, text: str, sampling: float | None, learner: float | None) -> list[Any]:
    """Returns [class, text, token id, log-prob when sampled, learner's minus that], as far as they are on record."""
    found: list[Any] = [css, text, token]
    if sampling is not None:
        found.append(round(sampling, 4))
        if learner is not None:
            found.append(float(f"{learner - sampling:.2g}"))
    return found


def _cached(decode: Decode) -> Decode:
    """Returns a decoder that remembers: the windows in which tokens are decoded are few, and come again and again."""
    remembered = lru_cache(DECODE_CACHE)(decode)
    return lambda token_ids: remembered(tuple(token_ids))


def _rank(problem: object, sample: object) -> bytes:
    return hashlib.sha256(f"{problem}\0{sample}".encode("utf-8", errors="surrogatepass")).digest()


def _cut(text: object) -> str:
    whole = str(text)
    return whole if len(whole) <= MAX_CHARS else f"{whole[:MAX_CHARS]}\n[… {len(whole) - MAX_CHARS:,} more characters]"


def _packed(value: Any) -> str:
    """Returns JSON, gzipped (without a time, so that the same run gives the same page) and in base64."""
    content = json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()
