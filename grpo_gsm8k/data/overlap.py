"""Which training texts hold questions of an eval set: word for word, in other typography, nearly, or in a long run of words.

Words are those of `data.overlap_words`: case, spacing, punctuation, accents, markup and what is not seen do not count.
A training text (a question, or a whole prompt with its few-shot examples) and an eval question are a pair of one of these
kinds, the first that fits:

- `exact`: the text holds the question, character for character.
- `normalised`: it holds the question's words in one run, and neither a calculation nor its last sentence goes on beyond it.
- `near`: they share a rare run of words, and at least 80 % of the question's words stand there in order.
- `ngram`: they share a rare run of at least `ngram` words (13 by default).

A run is rare when some 8 words of it are in at most 10 different training texts and 10 eval questions; so what a template, an
instruction or a family of generated problems repeats does not count. `exact` and `normalised` are the same problem. The others
are for a person to judge: problems that differ in their numbers are near, and need not be a leak. What is trained (responses,
traces) is searched for these two only, and for questions of at least 8 words: a trace asks itself *what is 4 + 3?* unprompted.

Source: Brown et al. (2020), arXiv:2005.14165, appendix C (13-grams of words; those in more than 10 documents are ignored).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from grpo_gsm8k.data.overlap_words import Words, split_words

NGRAM = 13
SEED_WORDS = 8
MAX_TEXTS = 10
NEAR_SHARE = 0.8
KINDS = ("exact", "normalised", "near", "ngram")
SAME_PROBLEM = frozenset({"exact", "normalised"})


@dataclass(frozen=True, slots=True)
class Overlap:
    """A training text and an eval question that overlap.

    `share`: how much of the question's words stands there in order, in 0..1. `run_words`: the longest run of words in common.
    `same_numbers`: whether the question has numbers, and they stand there in the same order. `training_text` is the part of the
    training text that was compared, in plain characters.
    """

    kind: str
    training_id: str
    eval_id: str
    share: float
    run_words: int
    same_numbers: bool
    training_text: str
    eval_text: str


class EvalQuestions:
    """The questions of an eval set, indexed by their runs of words."""

    def __init__(self, questions: Sequence[tuple[str, str]], *, ngram: int = NGRAM) -> None:
        """`questions` are (id, text). Raises: ValueError for an `ngram` below 2."""
        if ngram < 2:
            raise ValueError(f"ngram is {ngram}; allowed is 2 or more")
        self._ngram = ngram
        self._seed = min(SEED_WORDS, ngram)
        self._ids = [identity for identity, _ in questions]
        self._questions = [split_words(text) for _, text in questions]
        self._bags = [Counter(question.words) for question in self._questions]
        self._by_start: dict[tuple[str, ...], list[int]] = defaultdict(list)
        self._by_seed: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
        for index, question in enumerate(self._questions):
            if question.words:
                self._by_start[question.words[: self._seed]].append(index)
            for at, seed in _runs(question.words, self._seed):
                self._by_seed[seed].append((index, at))
        self._start_lengths = sorted({len(start) for start in self._by_start})

    def held_by(self, text: str) -> list[tuple[str, str]]:
        """Returns (eval id, `exact` or `normalised`) for each question that a text holds."""
        return [(self._ids[index], kind) for index, kind, _ in self._held_by(split_words(text))]

    def overlaps(self, training: Iterable[tuple[str, str]]) -> list[Overlap]:
        """Returns every pair of a training text (id, text) and a question that overlap: same problems first, then by share.

        Equal texts count as one where it is asked whether a run is rare (a problem may have many traces).
        """
        ids: dict[str, list[str]] = defaultdict(list)
        for identity, whole in training:
            ids[whole].append(identity)
        texts = [split_words(whole) for whole in ids]
        found: dict[tuple[int, int], Overlap] = {}
        for number, text in enumerate(texts):
            for index, kind, at in self._held_by(text):
                found[number, index] = self._same(text, index, kind, at)
        for (number, index), hits in self._rare_hits(texts).items():
            if (number, index) not in found:
                pair = self._near(texts[number], index, hits)
                if pair is not None:
                    found[number, index] = pair
        owners = list(ids.values())
        return in_order(replace(pair, training_id=owner) for (number, _), pair in found.items() for owner in owners[number])

    def quotes(self, trained: Iterable[tuple[str, str]]) -> list[Overlap]:
        """Returns each question of at least `SEED_WORDS` words that a trained text (id, text) holds: a response, a trace."""
        found = []
        for identity, whole in trained:
            text = split_words(whole)
            for index, kind, at in self._held_by(text):
                if len(self._questions[index].words) >= SEED_WORDS:
                    found.append(replace(self._same(text, index, kind, at), training_id=identity))
        return in_order(found)

    def _same(self, text: Words, index: int, kind: str, at: int) -> Overlap:
        """Returns the pair of a text and a question that it holds from its word `at`; whose text it is, is left open."""
        question = self._questions[index]
        length = len(question.words)
        window = text.text[text.spans[at][0] : text.spans[at + length - 1][1]]
        return Overlap(kind, "", self._ids[index], 1.0, length, bool(_numbers(question.words)), window, question.raw)

    def _held_by(self, text: Words) -> Iterator[tuple[int, str, int]]:
        """Yields (question, kind, place of its first word) for each question that a text holds, once each."""
        seen = set()
        for at in range(len(text.words)):
            for length in self._start_lengths:
                for index in self._by_start.get(text.words[at : at + length], ()):
                    question = self._questions[index]
                    end = at + len(question.words)
                    if index in seen or text.words[at:end] != question.words or not text.is_whole(at, end):
                        continue
                    seen.add(index)
                    yield index, ("exact" if question.raw.strip() in text.raw else "normalised"), at

    def _rare_hits(self, texts: Sequence[Words]) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """Returns for each (text, question) the places (in the text, in the question) where a rare run begins in both."""
        places: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
        common = {seed for seed, at in self._by_seed.items() if len({index for index, _ in at}) > MAX_TEXTS}
        for number, text in enumerate(texts):
            for at, seed in _runs(text.words, self._seed):
                if seed in self._by_seed and seed not in common:
                    places[seed].append((number, at))
                    if len(places[seed]) > MAX_TEXTS and len({where for where, _ in places[seed]}) > MAX_TEXTS:
                        common.add(seed)
        hits: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for seed, where in places.items():
            if seed not in common:
                for number, at in where:
                    for index, start in self._by_seed[seed]:
                        hits[number, index].append((at, start))
        return hits

    def _near(self, text: Words, index: int, hits: list[tuple[int, int]]) -> Overlap | None:
        question = self._questions[index]
        (at, start), run = max(((hit, _run_length(text.words, question.words, *hit)) for hit in hits), key=lambda it: it[1])
        slack = len(question.words) // 5
        first, last = max(0, at - start - slack), at - start + len(question.words) + slack
        window, spans = text.words[first:last], text.spans[first:last]
        most = (self._bags[index] & Counter(window)).total() / len(question.words)
        share = 0.0
        if most >= NEAR_SHARE or run >= self._ngram:
            matcher = SequenceMatcher(None, window, question.words, autojunk=False)
            blocks = matcher.get_matching_blocks()[:-1]  # the last is a sentinel
            share = sum(block.size for block in blocks) / len(question.words)
            spans = spans[blocks[0].a : blocks[-1].a + blocks[-1].size]
        if share < NEAR_SHARE and run < self._ngram:
            return None
        kind = "near" if share >= NEAR_SHARE else "ngram"
        same = _holds_in_order(_numbers(window), _numbers(question.words))
        shown = text.text[spans[0][0] : spans[-1][1]]
        return Overlap(kind, "", self._ids[index], round(share, 4), run, same, shown, question.raw)


def in_order(pairs: Iterable[Overlap]) -> list[Overlap]:
    """Returns pairs by kind, then by how much of the question is there."""
    return sorted(pairs, key=lambda pair: (KINDS.index(pair.kind), -pair.share, -pair.run_words))


def _runs(words: tuple[str, ...], length: int) -> Iterator[tuple[int, tuple[str, ...]]]:
    for at in range(len(words) - length + 1):
        yield at, words[at : at + length]


def _run_length(text: tuple[str, ...], question: tuple[str, ...], at: int, start: int) -> int:
    while at and start and text[at - 1] == question[start - 1]:
        at, start = at - 1, start - 1
    length = 0
    while at + length < len(text) and start + length < len(question) and text[at + length] == question[start + length]:
        length += 1
    return length


def _numbers(words: Iterable[str]) -> list[str]:
    return [word for word in words if word[0].isdigit() or (word[0] == "." and len(word) > 1)]


def _holds_in_order(numbers: Sequence[str], asked: Sequence[str]) -> bool:
    left = iter(numbers)
    return bool(asked) and all(number in left for number in asked)
