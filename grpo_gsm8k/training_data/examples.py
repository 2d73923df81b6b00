"""One line of JSONL to one `TokenSequence`: a prompt and its response, or a chat.

A line holds `prompt` and `response` (text), or `messages` (role and content, the assistant's turn last), and may hold `id`.

**Pairs.** The prompt is text as a template rendered it; its ids are those of `prompt_token_ids`, from which an engine samples.
The response is tokenised apart and the end token put after it, as an engine would have sampled it; it is not put twice where
the text ends with it. The response's tokens, end token included, are trained.

**Chats.** The tokenizer's chat template renders the messages before each assistant turn, with the turn opened (the prompt that
an engine would sample from), and again with that turn in it. The first text must be a prefix of the second, and the second of
what the next turn's prompt is; a template that rewrites earlier turns (one that drops earlier reasoning, say) is refused. What
the second adds is the turn; the last special token in it is its end token. The turn's text up to the end token is tokenised
apart, as it would be sampled, and trained with the end token; all else is not. What the template writes after the last end
token (a line feed) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_gsm8k.data.prompt_tokens import prompt_token_ids, special_token_texts, text_hash
from grpo_gsm8k.errors import DataError
from grpo_gsm8k.tokenize import TokenSequence


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of an example: text that is tokenised on its own; what is trained has an end token after it."""

    text: str
    end_token_id: int | None = None

    @property
    def trained(self) -> bool:
        """Whether the tokens of this piece are trained."""
        return self.end_token_id is not None


@dataclass(frozen=True, slots=True)
class Example:
    """One line, checked and rendered: pieces of prompt and of response take turns, the prompt first."""

    id: str
    line: int
    place: str
    segments: tuple[Segment, ...]
    is_chat: bool


class ExampleReader:
    """Reads lines with one tokenizer; `special_tokens` is about the prompts of pairs (see `prompt_token_ids`)."""

    def __init__(self, tokenizer: Any, special_tokens: str = "auto") -> None:
        self.tokenizer = tokenizer
        self.special_tokens = special_tokens
        self._special = special_token_texts(tokenizer)

    def parse(self, row: Mapping[str, Any], line: int, path: str, stem: str) -> Example:
        """Returns the example of a line. Raises: DataError naming path and line, and what is wrong with it."""
        place = f"{path}:{line}"
        pair, chat = {"prompt", "response"} & row.keys(), "messages" in row
        if chat and pair:
            raise DataError(f"{place}: has 'messages' and {sorted(pair)[0]!r}; a line holds a pair or a chat, not both")
        if chat:
            segments, texts = self._chat(row["messages"], place), [str(row["messages"])]
        else:
            texts = [_text(row, name, place) for name in ("prompt", "response")]
            segments = (Segment(texts[0]), self._response(texts[1], place))
        identity = row.get("id", f"{stem}/{line - 1:05d}-{text_hash(*texts)}")
        if not isinstance(identity, (str, int)) or isinstance(identity, bool) or identity == "":
            raise DataError(f"{place}: 'id' is {identity!r:.60}; text is needed")
        return Example(str(identity), line, place, segments, chat)

    def encode(self, examples: Sequence[Example]) -> list[TokenSequence]:
        """Returns the token sequences of examples, in order. Raises: DataError for a prompt without tokens, naming its line."""
        prompts = [example.segments[0].text for example in examples if not example.is_chat]
        pairs = iter(prompt_token_ids(self.tokenizer, prompts, self.special_tokens) if prompts else ())
        plain = [
            segment.text for example in examples for segment in (example.segments if example.is_chat else example.segments[1:])
        ]
        encoded = iter(self.tokenizer(plain, add_special_tokens=False, verbose=False)["input_ids"] if plain else ())
        sequences = []
        for example in examples:
            ids: list[int] = []
            trained: list[bool] = []
            for index, segment in enumerate(example.segments):
                piece = [*next(pairs if index == 0 and not example.is_chat else encoded)]
                piece += [segment.end_token_id] if segment.end_token_id is not None else []
                ids += piece
                trained += [segment.trained] * len(piece)
                if not ids:
                    raise DataError(f"{example.place}: the tokenizer makes no tokens of the prompt")
            sequences.append(TokenSequence(example.id, tuple(ids), tuple(trained)))
        return sequences

    def _response(self, text: str, place: str) -> Segment:
        end = self.tokenizer.eos_token
        if end is None:
            raise DataError(f"{place}: the tokenizer has no end token, so that no response can end; set its eos_token")
        return self._trained(text.removesuffix(end), int(self.tokenizer.eos_token_id), end, place)

    def _trained(self, text: str, end_id: int, end: str, place: str) -> Segment:
        if end in text:
            raise DataError(f"{place}: the response holds the end token {end!r} before its end; sampling would stop there")
        return Segment(text, end_id)

    def _chat(self, messages: Any, place: str) -> tuple[Segment, ...]:
        _check_messages(messages, place)
        segments: list[Segment] = []
        done = ""
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:index], True, place)
            through = self._render(messages[: index + 1], False, place)
            if not prompt.startswith(done) or not through.startswith(prompt) or len(prompt) == len(done):
                why = "rewrites what came before it, so that no prefix of the chat is what an engine samples from"
                raise DataError(f"{place}: the chat template {why} (message {index + 1}); give prompt and response instead")
            turn = through[len(prompt) :]
            end_at, end = max(((turn.rfind(text), text) for text in self._special), default=(-1, ""))
            if end_at < 0:
                why = "ends an assistant's turn with no special token, so that a model cannot learn to stop"
                raise DataError(f"{place}: the chat template {why}; give prompt and response instead")
            if message["content"].strip() not in turn[:end_at]:
                why = "does not write the assistant's content as it is given"
                raise DataError(f"{place}: the chat template {why} (message {index + 1}); give prompt and response instead")
            segments += [Segment(prompt[len(done) :]), self._trained(turn[:end_at], self._special[end], end, place)]
            done = prompt + turn[: end_at + len(end)]
        return tuple(segments)

    def _render(self, messages: Sequence[Mapping[str, str]], opened: bool, place: str) -> str:
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise DataError(
                f"{place}: has 'messages', but the tokenizer has no chat template; give prompt and response instead"
            )
        try:
            return str(self.tokenizer.apply_chat_template([*messages], tokenize=False, add_generation_prompt=opened))
        except TemplateError as error:
            raise DataError(
                f"{place}: the tokenizer's chat template refuses the messages: {' '.join(str(error).split())}"
            ) from None


def _check_messages(messages: Any, place: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{place}: 'messages' is {messages!r:.60}; a list of objects with role and content is needed")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise DataError(f"{place}: message {number} is {type(message).__name__}; an object with role and content is needed")
        _text(message, "role", f"{place}: message {number}")
        _text(message, "content", f"{place}: message {number}")
    if messages[0]["role"] == "assistant":
        raise DataError(f"{place}: the first message is the assistant's; a prompt must come before it")
    if messages[-1]["role"] != "assistant":
        raise DataError(
            f"{place}: the last message is of {messages[-1]['role']!r}, so its tokens train nothing; end with assistant"
        )


def _text(row: Mapping[str, Any], name: str, place: str) -> str:
    if name not in row:
        needed = "role and content" if name in ("role", "content") else "prompt and response, or messages"
        raise DataError(
            f"{place}: no {name!r} (there is: {', '.join(sorted(map(str, row))) or 'nothing'}); {needed} are needed"
        )
    value = row[name]
    if not isinstance(value, str):
        raise DataError(f"{place}: {name!r} is {value!r:.60}; text is needed")
    if not value.strip():
        none = "; nothing of it could be trained" if name == "response" else ""
        raise DataError(f"{place}: {name!r} is empty{none}")
    return value
