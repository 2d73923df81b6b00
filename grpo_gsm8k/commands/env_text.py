"""Rollouts in a terminal: turn by turn, or token by token in colours (named in brackets where there are none)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from grpo_gsm8k.runs.loss_mask import KINDS, Kind, MaskedRollout, count_kinds
from grpo_gsm8k.runs.token_texts import Decode, token_texts

# Neighbouring tokens of the model take turns in two shades, so that one sees where a token ends.
_STYLES: dict[Kind, tuple[str, str]] = {
    "trained": ("black on dark_sea_green2", "black on dark_sea_green3"),
    "prompt": ("bright_black", "bright_black"),
    "environment": ("black on navajo_white1", "black on navajo_white1"),
    "truncated": ("black on light_coral", "black on indian_red1"),
    "left_out": ("black on thistle1", "black on plum2"),
}


def print_rollout(masked: MaskedRollout, decode: Decode) -> None:
    """Prints a rollout turn by turn, its score, and how many of its tokens are of what kind."""
    console, rollout = _console(), masked.stored.rollout
    _print_head(console, masked)
    prompt = Text(decode(rollout.prompt_token_ids).rstrip("\n"))
    _print_part(console, f"prompt, {len(rollout.prompt_token_ids)} tokens", prompt)
    end = 0
    for number, turn in enumerate(rollout.turns, start=1):
        if turn.start > end:
            said = Text(decode(rollout.token_ids[end : turn.start]).strip("\n"))
            _print_part(console, f"environment, {turn.start - end} tokens", said)
        end = turn.end
        logprobs = rollout.logprobs[turn.start : turn.end]
        mean = f", mean log-prob {sum(logprobs) / len(logprobs):.3f}" if logprobs else ""
        what = f"model, turn {number}, {turn.end - turn.start} tokens, ended by {turn.stop_reason}{mean}"
        _print_part(console, what, Text(turn.text.strip("\n") or "(no text)", "bold"))
    score = rollout.score
    answer = "nothing" if score.answer is None else repr(score.answer)
    numbers = "".join(f", {name} {value:g}" for name, value in rollout.metrics.items())
    how = f" ({score.explanation})" if score.explanation else ""
    console.print(Text(f"  read {answer}{how}, gold {rollout.problem.gold!r}{numbers}", "bright_black"))
    console.print(Text(f"  tokens: {_counted(masked.counts)}", "bright_black"))
    if masked.cause is not None:
        console.print(Text(f"  nothing is trained on: {masked.cause}", "red"))
    console.print()


def print_mask(masked: MaskedRollout, decode: Decode) -> None:
    """Prints a rollout token by token in the colours of their kinds."""
    console, rollout = _console(), masked.stored.rollout
    _print_head(console, masked)
    texts = token_texts(rollout.prompt_token_ids + rollout.token_ids, decode)
    line = Text()
    for span in masked.spans:
        if console.color_system is None:
            line.append(f"[{span.kind} {span.end - span.start}]")
        for at in range(span.start, span.end):
            line.append(_visible(texts[at]), _STYLES[span.kind][at % 2])
    console.print(line)
    console.print(Text(f"  tokens: {_counted(masked.counts)}", "bright_black"))
    if masked.cause is not None:
        console.print(Text(f"  nothing is trained on: {masked.cause}", "red"))
    console.print()


def print_counts(masked: Sequence[MaskedRollout]) -> None:
    """Prints how many tokens of each kind all rollouts hold, and why some have no trained token."""
    console, counts = _console(), count_kinds(masked)
    total = max(1, sum(counts.values()))
    console.print(f"{len(masked)} rollouts, {total:,} tokens")
    for kind, said in KINDS.items():
        if counts[kind]:
            share = f"{counts[kind]:>9,}  {100 * counts[kind] / total:5.1f} %  "
            console.print(Text(f"  {kind.replace('_', ' '):<12}", _STYLES[kind][0]) + Text(share + said))
    causes = Counter(one.cause.split(":")[0] for one in masked if one.cause is not None)
    for cause, num in causes.most_common():
        console.print(f"  {num} without a trained token: {cause}")


def _console() -> Console:
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def _print_head(console: Console, masked: MaskedRollout) -> None:
    rollout, stored = masked.stored.rollout, masked.stored
    advantage = "" if stored.advantage is None else f", advantage {stored.advantage:+.3f}"
    scored = f"{rollout.score.status}, reward {rollout.score.value:g}{advantage}"
    said = f"  {scored}, ended by {rollout.stop_reason}, seed {rollout.seed}"
    console.print(Text(masked.name, "bold") + Text(said))


def _print_part(console: Console, what: str, text: Text) -> None:
    console.print(Text(f"  {what}", "bright_black"))
    for line in text.split("\n"):
        console.print(Text("    ") + line)


def _visible(text: str) -> str:
    """Returns a token's text with control characters made visible, and a mark for one that adds no text of its own."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else chr(0x2400 + ord(c)) if ord(c) < 32 else "·" for c in text)
    return shown or "▫"


def _counted(counts: Counter[Kind]) -> str:
    return ", ".join(f"{kind.replace('_', ' ')} {counts[kind]}" for kind in KINDS if counts[kind])
