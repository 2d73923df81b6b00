"""Rollouts as a page shows them: every token coloured by whether it is trained on, its log-probs where it is pointed at."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_gsm8k.errors import DataError
from grpo_gsm8k.runs.loss_mask import KINDS, Kind, MaskedRollout, count_kinds, mask_rollout
from grpo_gsm8k.runs.report_files import RunFiles
from grpo_gsm8k.runs.rollout_files import FOLDER, read_rollouts
from grpo_gsm8k.runs.storage import write_text
from grpo_gsm8k.runs.token_texts import Decode, run_decoder, token_texts

NUM_ROLLOUTS = 6
MAX_TOKENS = 400
UNLIKELY = -2.302585  # a token that had less than a chance in ten
CLASSES: dict[Kind, str] = {"trained": "t", "prompt": "p", "environment": "e", "truncated": "x", "left_out": "o"}


@dataclass(frozen=True)
class Piece:
    """Text to be drawn in one colour, and what is said when it is pointed at."""

    css: str
    text: str
    tip: str


@dataclass(frozen=True)
class RolloutView:
    """One rollout as the page shows it; `num_hidden` tokens at its end are left out."""

    masked: MaskedRollout
    pieces: list[Piece]
    counts: list[tuple[Kind, int]]
    num_hidden: int


def view_rollout(masked: MaskedRollout, decode: Decode | None, *, max_tokens: int | None = MAX_TOKENS) -> RolloutView:
    """Returns a rollout's pieces: one a token of the model, one a run of tokens of the prompt or the environment.

    `decode` None (no tokenizer is at hand) gives the text of each turn in one piece. `max_tokens` None leaves nothing out.
    """
    rollout = masked.stored.rollout
    ids = rollout.prompt_token_ids + rollout.token_ids
    counts = [(kind, masked.counts[kind]) for kind in KINDS if masked.counts[kind]]
    if decode is None:
        return RolloutView(masked, _pieces_by_turn(masked), counts, 0)
    shown = len(ids) if max_tokens is None else min(len(ids), len(rollout.prompt_token_ids) + max_tokens)
    texts = token_texts(ids[:shown], decode)
    sampling, learner = masked.logprobs, masked.learner_logprobs
    pieces = []
    for span in masked.spans:
        start, end = span.start, min(span.end, shown)
        if start >= end:
            break
        css = CLASSES[span.kind]
        if span.kind in ("prompt", "environment"):
            pieces.append(Piece(css, "".join(texts[start:end]), f"{span.end - start} tokens: {KINDS[span.kind]}"))
            continue
        for at in range(start, end):
            pieces.append(_token_piece(css, ids[at], texts[at], sampling[at], learner[at]))
    return RolloutView(masked, pieces, counts, len(ids) - shown)


def _token_piece(css: str, token: int, text: str, sampling: float | None, learner: float | None) -> Piece:
    tip = f"{token}: log-prob {sampling:.4f}"
    if learner is not None and sampling is not None:
        tip += f", learner {learner:.4f} ({learner - sampling:+.1e})"
    unlikely = sampling is not None and sampling < UNLIKELY
    return Piece(f"{css} u" if unlikely else css, text or "▫", tip)


def _pieces_by_turn(masked: MaskedRollout) -> list[Piece]:
    """The model's turns as text; of the other tokens their number is known, not what they read."""
    rollout, counts = masked.stored.rollout, masked.counts
    css = CLASSES[next((kind for kind in masked.kinds if kind in ("trained", "truncated", "left_out")), "left_out")]
    pieces = [Piece("p", f"[{counts['prompt']} tokens of the prompt]\n", "no tokenizer at hand")]
    end = 0
    for turn in rollout.turns:
        if turn.start > end:
            pieces.append(Piece("e", f"\n[{turn.start - end} tokens of the environment]\n", "no tokenizer at hand"))
        pieces.append(Piece(css, turn.text, f"{turn.end - turn.start} tokens"))
        end = turn.end
    return pieces


def collect_rollouts(files: RunFiles, *, mask_truncated: bool) -> dict[str, Any]:
    """Returns what the page shows of a run's kept rollouts: samples of its first and its last step, and their masks' counts."""
    steps = saved_steps(files.run_dir)
    decode = None
    try:
        decode = run_decoder(files.run_dir) if steps else None
    except DataError as error:
        files.notes.append(str(error))
    shown = []
    for step in dict.fromkeys([*steps[:1], *steps[-1:]]):
        try:
            stored = read_rollouts(files.run_dir / FOLDER / f"step_{step}.jsonl")
        except DataError as error:
            files.notes.append(str(error))
            continue
        masked = [mask_rollout(one, mask_truncated=mask_truncated) for one in stored]
        views = [view_rollout(one, decode) for one in sample(masked)]
        counts = count_kinds(masked)
        shown.append({"step": step, "num": len(masked), "views": views, "counts": [(k, counts[k]) for k in KINDS if counts[k]]})
    return {"steps": shown, "num_saved": len(steps), "has_tokens": decode is not None}


def saved_steps(run_path: Path) -> list[int]:
    """Returns the steps whose rollouts a run kept, in order."""
    found = (re.fullmatch(r"step_(\d+)\.jsonl", path.name) for path in (run_path / FOLDER).glob("step_*.jsonl"))
    return sorted(int(match[1]) for match in found if match)


def sample(masked: Sequence[MaskedRollout], num: int = NUM_ROLLOUTS) -> list[MaskedRollout]:
    """Returns `num` rollouts drawn by a hash of their names, in their order: not chosen, and the same every time."""
    ranked = sorted(masked, key=lambda one: hashlib.sha256(one.name.encode("utf-8", errors="surrogatepass")).digest())
    drawn = {id(one) for one in ranked[:num]}
    return [one for one in masked if id(one) in drawn]


def write_loss_mask(path: Path, title: str, masked: Sequence[MaskedRollout], shown: Sequence[RolloutView]) -> None:
    """Writes one self-contained page: what of all rollouts `masked` is trained on, and the tokens of those `shown`."""
    from grpo_gsm8k.runs.report_page import page_environment

    counts = count_kinds(masked)
    causes: dict[str, int] = {}
    for one in masked:
        if one.cause is not None:
            causes[one.cause.split(":")[0]] = causes.get(one.cause.split(":")[0], 0) + 1
    values: Mapping[str, Any] = {
        "title": title,
        "num": len(masked),
        "counts": [(kind, counts[kind], KINDS[kind]) for kind in KINDS if counts[kind]],
        "num_tokens": sum(counts.values()),
        "causes": causes,
        "views": shown,
    }
    write_text(path, page_environment().get_template("loss_mask.html.j2").render(values))
