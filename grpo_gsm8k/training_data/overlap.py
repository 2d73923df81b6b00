"""The leak gate: what of an eval set is in the training data, on record before a run trains on them.

The same problem (the same tokens, or the same words, see `data.overlap`), in a prompt or quoted in what is trained, stops the
run; near-duplicates and long runs of words in common are put on record, with both texts, for a person to judge.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from grpo_gsm8k.data.overlap import (
    KINDS,
    MAX_TEXTS,
    NEAR_SHARE,
    NGRAM,
    SAME_PROBLEM,
    SEED_WORDS,
    EvalQuestions,
    Overlap,
    in_order,
)
from grpo_gsm8k.errors import ProofError
from grpo_gsm8k.tokenize import TokenSequence
from grpo_gsm8k.types import Prompt

MAX_PAIRS = 200  # of a kind in a record; the counts are of all

log = logging.getLogger("grpo_gsm8k")


def sequence_prompts(sequences: Sequence[TokenSequence], tokenizer: Any) -> list[Prompt]:
    """Returns what each sequence does not train, as text (few-shot examples, every user's turn), and its first prompt's ids."""
    return [
        Prompt(sequence.id, sequence.token_ids[: sequence.trained.index(True)], text)
        for sequence, text in zip(sequences, _texts(sequences, tokenizer, is_trained=False), strict=True)
    ]


def trained_texts(sequences: Sequence[TokenSequence], tokenizer: Any) -> list[tuple[str, str]]:
    """Returns (id, text) of what each sequence trains: its response, or every turn of the assistant."""
    texts = _texts(sequences, tokenizer, is_trained=True)
    return [(sequence.id, text) for sequence, text in zip(sequences, texts, strict=True)]


def _texts(sequences: Sequence[TokenSequence], tokenizer: Any, *, is_trained: bool) -> list[str]:
    pieces: list[list[int]] = []
    owners: list[int] = []
    for index, sequence in enumerate(sequences):
        for trained, run in groupby(zip(sequence.trained, sequence.token_ids, strict=True), key=lambda pair: pair[0]):
            if trained == is_trained:
                pieces.append([token for _, token in run])
                owners.append(index)
    texts: list[list[str]] = [[] for _ in sequences]
    for owner, text in zip(owners, tokenizer.batch_decode(pieces), strict=True):
        texts[owner].append(text)
    return ["\n".join(text) for text in texts]


def find_overlaps(
    index: EvalQuestions, asked: Sequence[tuple[str, str]], trained: Sequence[tuple[str, str]]
) -> tuple[list[Overlap], list[Overlap]]:
    """Returns the overlaps of texts (id, text) that are asked, and what their trained texts quote beyond them."""
    found = index.overlaps(asked)
    known = {(pair.training_id, pair.eval_id) for pair in found if pair.kind in SAME_PROBLEM}
    return found, [pair for pair in index.quotes(trained) if (pair.training_id, pair.eval_id) not in known]


def check_leaks(
    training: Sequence[Prompt],
    questions: Sequence[tuple[str, str]],
    eval_prompts: Sequence[Prompt] = (),
    trained: Sequence[tuple[str, str]] = (),
    *,
    is_allowed: bool,
) -> dict[str, Any]:
    """Returns the record of training prompts against an eval set's questions (id, text) and, where rendered, its prompts.

    `trained` are (id, text) of what is trained with the prompts (responses, traces): a question quoted there is a leak too.
    An eval prompt must not hold another question of the set (a few-shot example drawn from it, with its answer).
    Raises: ProofError when a training example is a problem of the eval set, or an eval prompt holds another's question,
    unless `is_allowed`.
    """
    index = EvalQuestions(questions)
    found, quotes = find_overlaps(index, [(prompt.problem_id, prompt.text) for prompt in training], trained)
    same_words = [(pair.training_id, pair.eval_id) for pair in found if pair.kind in SAME_PROBLEM]
    order = {prompt.problem_id: place for place, prompt in enumerate(training)}
    same = sorted({*same_words, *_same_tokens(training, eval_prompts)}, key=lambda pair: (order[pair[0]], pair[1]))
    quoted = [(pair.training_id, pair.eval_id) for pair in quotes]
    shots = list(_leaked_shots(index, questions, eval_prompts))
    for pairs, what, verb in (
        (same, f"{len({ours for ours, _ in same})} training examples are problems of the eval set", " is "),
        (quoted, f"{len({ours for ours, _ in quoted})} trained responses hold questions of the eval set", " quotes "),
        (shots, f"{len({ours for ours, _ in shots})} prompts of the eval set hold another of its problems", " holds "),
    ):
        if pairs:
            said = f"{what} ({', '.join(verb.join(pair) for pair in pairs[:3])}{' …' if len(pairs) > 3 else ''})"
            if not is_allowed:
                raise ProofError(f"{said}; take them out, or use --allow-overlap true to go on with them, on record")
            log.warning("%s, as allowed", said)
    found = in_order([*found, *quotes])
    near = [pair for pair in found if pair.kind not in SAME_PROBLEM]
    if near:
        log.info("overlap: %s (overlap.json has the pairs)", summary(found, len(questions)))
    return {
        "num_overlapping": len({ours for ours, _ in [*same, *quoted]}),
        "same_problem": same,
        "quoted_in_trained_text": quoted,
        "leaked_shots": shots,
        **overlap_record(found, len(training), len(questions), NGRAM, max_pairs=MAX_PAIRS),
    }


def overlap_record(
    found: Sequence[Overlap], num_training: int, num_eval: int, ngram: int, *, max_pairs: int | None
) -> dict[str, Any]:
    """Returns overlaps as JSON values: the rule, counts of each kind, and the first `max_pairs` of each."""
    by_kind = {kind: [pair for pair in found if pair.kind == kind] for kind in KINDS}
    rule = {"ngram": ngram, "near_share": NEAR_SHARE, "rare_words": SEED_WORDS, "rare_texts": MAX_TEXTS}
    shown = [pair for pairs in by_kind.values() for pair in pairs[:max_pairs]]
    return {
        "rule": rule,
        "num_training": num_training,
        "num_eval": num_eval,
        "counts": {kind: _counts(pairs) for kind, pairs in by_kind.items()},
        "pairs": [asdict(pair) for pair in shown],
        "num_pairs_left_out": len(found) - len(shown),
    }


def summary(found: Sequence[Overlap], num_eval: int) -> str:
    """Returns how many eval questions overlap in each way, in words."""
    ids = {kind: {pair.eval_id for pair in found if pair.kind == kind} for kind in KINDS}
    same = ids["exact"] | ids["normalised"]
    near = ids["near"] - same
    return (
        f"{len(same)} of {num_eval} eval questions are in the training data, {len(near)} more are near a training text, "
        f"{len(ids['ngram'] - near - same)} more share a long run of words"
    )


def _counts(pairs: Sequence[Overlap]) -> dict[str, int]:
    return {
        "pairs": len(pairs),
        "training_texts": len({pair.training_id for pair in pairs}),
        "eval_questions": len({pair.eval_id for pair in pairs}),
        "same_numbers": sum(pair.same_numbers for pair in pairs),
    }


def _same_tokens(training: Sequence[Prompt], eval_prompts: Sequence[Prompt]) -> list[tuple[str, str]]:
    evaluated = {prompt.token_ids: prompt.problem_id for prompt in eval_prompts}
    return [(prompt.problem_id, evaluated[prompt.token_ids]) for prompt in training if prompt.token_ids in evaluated]


def _leaked_shots(
    index: EvalQuestions, questions: Sequence[tuple[str, str]], eval_prompts: Sequence[Prompt]
) -> Iterable[tuple[str, str]]:
    asked = dict(questions)
    for prompt in eval_prompts:
        before, _, after = prompt.text.rpartition(asked[prompt.problem_id])
        held = index.held_by(f"{before}\n{after}")
        yield from ((prompt.problem_id, other) for other, _ in held if other != prompt.problem_id)
