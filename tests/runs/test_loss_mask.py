"""Which tokens are trained on, the cause where none is, and what each token reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_runs import TOKENIZER, encode, make_reward_run, make_rollout

from grpo_gsm8k.errors import DataError
from grpo_gsm8k.runs.loss_mask import count_kinds, mask_rollout
from grpo_gsm8k.runs.report_rollouts import view_rollout, write_loss_mask
from grpo_gsm8k.runs.rollout_files import StoredRollout
from grpo_gsm8k.runs.token_texts import run_decoder, token_texts
from grpo_gsm8k.types import Rollout, Score


def decode(token_ids: Sequence[int]) -> str:
    return str(TOKENIZER.decode(list(token_ids), skip_special_tokens=False))


def unsampled(**changes: object) -> Rollout:
    """A rollout in which the model sampled nothing."""
    return replace(make_rollout(3), token_ids=(), sampled=(), logprobs=(), turns=(), **changes)  # type: ignore[arg-type]


def test_every_token_has_one_kind_and_only_the_models_own_are_trained() -> None:
    rollout = make_rollout(7)
    masked = mask_rollout(StoredRollout(rollout), mask_truncated=False)
    assert len(masked.kinds) == len(rollout.prompt_token_ids) + len(rollout.token_ids)
    assert [(span.kind, span.end - span.start) for span in masked.spans] == [
        ("prompt", len(rollout.prompt_token_ids)),
        ("trained", rollout.turns[0].end),
        ("environment", rollout.turns[1].start - rollout.turns[0].end),
        ("trained", rollout.turns[1].end - rollout.turns[1].start),
    ]
    assert masked.counts["trained"] == rollout.num_sampled
    assert (masked.cause, masked.is_fault) == (None, False)
    assert masked.logprobs[: len(rollout.prompt_token_ids)] == [None] * len(rollout.prompt_token_ids)
    assert [value for value in masked.logprobs if value is not None] == [value for value in rollout.logprobs if value]


FAILED = Score(0.0, None, "error", "the worker died")
NO_IDS = replace(make_rollout(3), token_ids=(), sampled=(), logprobs=())


@pytest.mark.parametrize(
    ("stored", "cause", "is_fault"),
    [
        (StoredRollout(unsampled(stop_reason="length")), "truncated before the first answer: ended by length", True),
        (
            StoredRollout(unsampled(prompt_token_ids=(1,) * 64)),
            "prompt longer than the window: 64 tokens in a window of 64",
            True,
        ),
        (StoredRollout(NO_IDS), "missing token ids: there is text", True),
        (StoredRollout(unsampled(stop_reason="error", score=FAILED)), "the environment failed before the first answer", True),
        (
            StoredRollout(make_rollout(3, stop="max_turns")),
            "masked as asked for by mask_truncated: ended by max_turns after 21 sampled",
            False,
        ),
        (
            StoredRollout(make_rollout(3, stop="length"), 0.5, False),
            "masked as asked for by mask_truncated: ended by length",
            False,
        ),
        (StoredRollout(make_rollout(3), 0.0, False), "left out of the update by choice", False),
        (StoredRollout(replace(make_rollout(3), score=FAILED), 0.0, False), "its grader or environment failed", False),
    ],
)
def test_a_rollout_without_a_trained_token_names_its_cause(stored: StoredRollout, cause: str, is_fault: bool) -> None:
    masked = mask_rollout(stored, mask_truncated=True, window=64)
    assert masked.is_fault == is_fault
    assert (masked.cause or "").startswith(cause)


def test_a_truncated_rollout_is_trained_on_unless_the_run_masks_it() -> None:
    stored = StoredRollout(make_rollout(3, stop="length"))
    assert mask_rollout(stored, mask_truncated=False).cause is None
    masked = mask_rollout(stored, mask_truncated=True)
    assert masked.counts["truncated"] == stored.rollout.num_sampled
    assert mask_rollout(replace(stored, trained=True), mask_truncated=True).cause is None
    assert mask_rollout(replace(stored, trained=False), mask_truncated=False).is_fault is False
    assert sum(count_kinds([masked, masked]).values()) == 2 * len(masked.kinds)


@given(st.text(max_size=60))
def test_the_texts_of_tokens_put_together_are_the_text(text: str) -> None:
    ids = encode(text)
    texts = token_texts(ids, decode)
    assert len(texts) == len(ids)
    assert "".join(texts) == decode(ids)


def test_a_character_of_several_tokens_stands_with_the_last_of_them() -> None:
    ids = encode("a€b")
    assert len(ids) == 5
    assert token_texts(ids, decode) == ["a", "", "", "€", "b"]


def test_bytes_that_are_no_character_do_not_hold_up_what_follows() -> None:
    half = encode("€")[:1]
    texts = token_texts((*half * 6, *encode("then this")), decode)
    assert "".join(texts).endswith("then this")
    assert len([text for text in texts if text]) > 5


def test_a_runs_own_tokenizer_decodes_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    run = make_reward_run(tmp_path, num_steps=2)
    own = run_decoder(run.path)
    assert own is not None
    assert own(encode("<|im_start|>user\nhi")) == "<|im_start|>user\nhi"
    (run.path / "checkpoints/step-2/tokenizer.json").write_text("{}", "utf-8")
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer"):
        run_decoder(run.path)
    assert run_decoder(tmp_path) is None


def test_the_loss_mask_page_holds_every_token_and_asks_the_network_for_nothing(tmp_path: Path) -> None:
    stored = [StoredRollout(make_rollout(3)), StoredRollout(make_rollout(4, stop="length", right=False))]
    masked = [mask_rollout(one, mask_truncated=True) for one in stored]
    write_loss_mask(tmp_path / "page.html", "a <run>", masked, [view_rollout(one, decode, max_tokens=None) for one in masked])
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "a &lt;run&gt;" in page
    assert page.count('<i class="t" title="') == stored[0].rollout.num_sampled
    assert page.count('<i class="x" title="') == stored[1].rollout.num_sampled
    assert "<li>1: masked as asked for by mask_truncated</li>" in page
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    assert "<script" not in page


def test_likely_and_unlikely_tokens_are_told_apart() -> None:
    rollout = make_rollout(3)
    unlikely = tuple(-5.0 if sampled else 0.0 for sampled in rollout.sampled)
    for logprobs, css in ((rollout.logprobs, "t"), (unlikely, "t u")):
        view = view_rollout(mask_rollout(StoredRollout(replace(rollout, logprobs=logprobs)), mask_truncated=False), decode)
        assert {piece.css for piece in view.pieces} == {"p", "e", css}
