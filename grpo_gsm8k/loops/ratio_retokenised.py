"""Whether the engine's log-probs belong to other tokens of the same text: the cause of a mismatch called re-tokenisation.

Two ways lead there. A client decodes what was sampled and encodes it again, so that the tokens are not those whose log-probs
came with them; or the log-probs are of text encoded again, and the tokens are as sampled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from grpo_gsm8k.loops.ratio_causes import Evidence, Probe, SampledTurn, mean_abs

CAUSE = "re-tokenisation"
REMEDY = "keep the token ids that the engine sampled with their log-probs, and encode no text again"
MAX_ROUNDS = 12
FAR = 10  # times the tolerance: a token with another's log-prob


def try_retokenisation(probe: Probe) -> Evidence:
    """The learner's log-probs of the contexts' text encoded again, and of the tokens of the same text that fit the engine's.

    What was sampled is searched for: where a log-prob is first far off, the text of that token and the next is cut otherwise,
    and the cut that fits furthest is kept.
    """
    encoded = [replace(turn, context=probe.encode(probe.text(turn.context))) for turn in probe.turns]
    if encoded != list(probe.turns):
        after = probe.gap(encoded)
        if after <= probe.tolerance:
            return probe.found(CAUSE, after, "with the context's text encoded again", REMEDY)
    turns = [cut for turn in probe.turns if (cut := _readable(probe, turn)).token_ids]
    whole = list(turns)
    differences = probe.differences(turns) if turns else []
    for _ in range(MAX_ROUNDS):
        candidates = [
            (number, candidate)
            for number, turn in enumerate(turns)
            if (place := _first_far(probe, differences[number])) < len(differences[number])
            for candidate in _other_cuts(probe, turn, place)
        ]
        given = probe.differences([candidate for _, candidate in candidates]) if candidates else []
        improved = False
        for (number, candidate), values in zip(candidates, given, strict=True):
            if _fit(probe, values) > _fit(probe, differences[number]):
                turns[number], differences[number], improved = candidate, values, True
        if not improved:
            break
    changed = [(old, new) for old, new in zip(whole, turns, strict=True) if old != new]
    num_cut = len(set(probe.turns) - set(whole))
    if not changed and not num_cut:
        return Evidence(CAUSE, "no other tokens of the same text fit the engine's log-probs any further")
    example = f" ({_example(probe, *changed[0])})" if changed else ""
    said = f"with other tokens of the same text in {len(changed)} of {len(probe.turns)} turns{example}"
    said += f", {num_cut} of them only up to a replacement character, behind which what was sampled is lost" if num_cut else ""
    return probe.found(CAUSE, mean_abs(differences), said, REMEDY)


def _readable(probe: Probe, turn: SampledTurn) -> SampledTurn:
    """Returns the turn up to the first U+FFFD: the bytes that it stands for cannot be found again."""
    lost = probe.encode("\ufffd")
    places = (at for at in range(len(turn.token_ids)) if turn.token_ids[at : at + len(lost)] == lost)
    return replace(turn, token_ids=turn.token_ids[: next(places, len(turn.token_ids))])


def _first_far(probe: Probe, differences: list[float]) -> int:
    """Returns the first place that is far off, or the number of places."""
    far = FAR * probe.tolerance
    return next((place for place, value in enumerate(differences) if not abs(value) <= far), len(differences))


def _fit(probe: Probe, differences: list[float]) -> tuple[int, float]:
    """Returns how far the log-probs fit, then how well up to there."""
    place = _first_far(probe, differences)
    return place, -mean_abs([differences[:place]])


def _other_cuts(probe: Probe, turn: SampledTurn, place: int) -> Iterator[SampledTurn]:
    """Yields the turn with its text encoded again, and with the token at `place`, or it and the next, cut otherwise."""
    ids = turn.token_ids
    vocabulary = probe.tokenizer.get_vocab()
    seen = {ids}
    options = [probe.encode(probe.text(ids))]
    for width in (1, 2):
        piece = "".join(probe.tokenizer.convert_ids_to_tokens(list(ids[place : place + width])))
        cuts = [(piece,), *((piece[:at], piece[at:]) for at in range(1, len(piece)))]
        known = [tuple(vocabulary[part] for part in cut) for cut in cuts if all(part in vocabulary for part in cut)]
        options += [(*ids[:place], *cut, *ids[place + width :]) for cut in known]
    for option in options:
        if option and option not in seen:
            seen.add(option)
            yield replace(turn, token_ids=option)


def _example(probe: Probe, old: SampledTurn, new: SampledTurn) -> str:
    place = next(
        (at for at, (a, b) in enumerate(zip(old.token_ids, new.token_ids, strict=False)) if a != b),
        min(len(old.token_ids), len(new.token_ids)) - 1,
    )
    shown = [[probe.text([token]) for token in turn.token_ids[place : place + 2]] for turn in (old, new)]
    return f"token {place + 1} on: {shown[1]!r} for {shown[0]!r}"
