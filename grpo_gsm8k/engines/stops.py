"""Stop strings, looked for in the decoded text of what was sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class StopStrings:
    """Tells whether the newest token of a completion completed a stop string.

    Only the last few tokens are decoded: a stop string of n UTF-8 bytes is spread over n text tokens at most. Special tokens
    are no text and are left out. Most tokens are dismissed without decoding, because they do not hold a stop string's last
    character.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        # The slack covers a character cut at the window's start and the space that some decoders drop there.
        self._window = max(len(stop.encode()) for stop in stops) + 4
        # all_special_ids holds only those that have a role (eos, pad …); decoding leaves out every one marked special.
        marked = [token for token, added in tokenizer.added_tokens_decoder.items() if added.special]
        self._special = frozenset(tokenizer.all_special_ids) | frozenset(marked)
        self._may_complete: dict[int, bool] = {}

    def completed_by(self, token_ids: Sequence[int]) -> bool:
        """Returns whether a stop string ends in the last token of `token_ids` (the completion so far)."""
        if not self._can_end_in(token_ids[-1]):
            return False
        tail: list[int] = []
        for token in reversed(token_ids):
            if token not in self._special:
                tail.append(token)
                if len(tail) == self._window:
                    break
        text = self._decode(tail[::-1])
        return any(stop in text for stop in self._stops)

    def _can_end_in(self, token: int) -> bool:
        known = self._may_complete.get(token)
        if known is None:
            known = self._may_complete[token] = token not in self._special and self._may_hold_a_last_character(token)
        return known

    def _may_hold_a_last_character(self, token: int) -> bool:
        text = self._decode([token])
        if not text or "\ufffd" in text:
            return True
        # A lone token may be decoded without the space it stands for, so spaces are never ruled out.
        return any(stop[-1] in text or stop[-1].isspace() for stop in self._stops)

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
