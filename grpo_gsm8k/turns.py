"""What stands between two turns of the model, as tokens: how an environment's observation is written into a rollout.

A rollout's tokens are kept as they were sampled, so an observation can only be appended. Two ways:

- `TurnRenderer`: the observation is a user's message of the chat. What the chat template writes after the assistant's turn is
  found by rendering a conversation with a marker in that turn's place. That is right only for a template that renders what
  came before the same, whatever follows; one that takes thinking out of earlier turns, or writes them differently, is refused.
  A template that trims white space at a turn's ends is taken: what the model sampled stays as it was sampled.
- `InlineRenderer`: the observation is text that goes on where the model stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from grpo_gsm8k.envs.protocol import Environment
from grpo_gsm8k.errors import ConfigError, ProofError
from grpo_gsm8k.prompts import Template, Tokenizer

_QUESTION, _TURN, _OBSERVATION = "the first question", "the model's turn", "the observation"
_TURNS = (_TURN, "12 + 5 =", "two lines,\n\n#### 9", "<calc>12 + 5</calc>")
_THINKING_TURNS = tuple(
    f"{opened}some thoughts{closed}an answer"
    for opened, closed in (
        ("<think>\n", "\n</think>\n\n"),
        ("[THINK]", "[/THINK]"),
        ("<|channel>thought\n", "<channel|>"),
    )
)
_NUM_TURNS = 3


class ChatTokenizer(Tokenizer, Protocol):
    """What a renderer needs of a tokenizer besides what prompts need; every Hugging Face one has it."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """The tokens that were added to the vocabulary, by id; text never makes one of them unless it is its name."""
        ...


class ObservationRenderer(Protocol):
    """Writes observations as tokens."""

    def extend(self, observation: str, *, eos_token_id: int | None) -> tuple[int, ...]:
        """Returns the tokens between a turn of the model and its next; `eos_token_id` is what the model ended the turn with."""
        ...


def observation_renderer(env: Environment, tokenizer: ChatTokenizer, template: Template) -> ObservationRenderer | None:
    """Returns what writes an environment's observations into a rollout; None for one of a single turn, which has none.

    Raises: ConfigError as `TurnRenderer` and `InlineRenderer`.
    """
    if env.max_turns == 1:
        return None
    return InlineRenderer(tokenizer) if env.inline else TurnRenderer(tokenizer, template)


class TurnRenderer:
    """Writes an observation as a user's message, and opens the model's next turn.

    `end_token_id` is the token that the chat template writes at the end of an assistant's turn.
    Raises: ConfigError where the template cannot be extended by another turn without rewriting what came before.
    """

    def __init__(self, tokenizer: ChatTokenizer, template: Template) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._known: dict[str, tuple[int, ...]] = {}
        if template.kind == "text":
            raise self._refusal(
                f"template {template.name!r} is plain text, which has no user's message to put an observation into"
            )
        if not tokenizer.chat_template:
            raise self._refusal("the tokenizer has no chat template")
        for turn in _TURNS:
            self._check_history(turn, "alters the text of earlier turns")
        for turn in _THINKING_TURNS:
            self._check_history(turn, "takes the thinking out of earlier turns")
        self.end_token_id = self._check_tokens()

    def extend(self, observation: str, *, eos_token_id: int | None) -> tuple[int, ...]:
        """Returns the tokens between a turn and the next: its end, the user's message, the next one's opening.

        Where the model ended the turn with `end_token_id` itself, that is not written again. `eos_token_id` is what it ended
        the turn with (a model may have others, after which the template's own still has to follow), None for nothing.
        """
        token_ids = self._known.get(observation)
        if token_ids is None:
            token_ids = self._known[observation] = self._tokenise(self._between(observation))
        return token_ids[1:] if eos_token_id == self.end_token_id else token_ids

    def _refusal(self, reason: str) -> ConfigError:
        return ConfigError(
            f"several turns need a conversation that is only ever added to, and {reason}; use another template or model, or an "
            "environment of one turn"
        )

    def _render(self, *texts: str) -> str:
        """Returns the chat of the user's and the assistant's texts in turn, the assistant's next turn opened."""
        from jinja2 import TemplateError

        system = [] if self._template.system is None else [{"role": "system", "content": self._template.system}]
        roles = ("user", "assistant")
        messages = [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]
        try:
            text = self._tokenizer.apply_chat_template([*system, *messages], tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise self._refusal(f"the tokenizer's chat template refuses template {self._template.name!r}: {error}") from error
        return str(text)

    def _between(self, observation: str) -> str:
        return self._render(_QUESTION, _TURN, observation).partition(_TURN)[2]

    def _tokenise(self, text: str) -> tuple[int, ...]:
        return tuple(int(token) for token in self._tokenizer([text], add_special_tokens=False)["input_ids"][0])

    def _check_history(self, turn: str, how: str) -> None:
        """Raises ConfigError unless each conversation begins with the one before it, `turn` written as it is."""
        chat = [_QUESTION]
        rendered = self._render(*chat)
        for _ in range(_NUM_TURNS):
            chat += [turn, _OBSERVATION]
            longer = self._render(*chat)
            if not longer.startswith(rendered):
                raise self._refusal(
                    "the tokenizer's chat template writes the conversation differently when another turn follows it"
                )
            if not longer.startswith(rendered + turn):
                raise self._refusal(f"the tokenizer's chat template {how}")
            if longer != rendered + turn + self._between(_OBSERVATION):
                raise self._refusal("the tokenizer's chat template writes a later turn differently from the first")
            rendered = longer

    def _check_tokens(self) -> int:
        """Returns the id of the token that ends a turn. Raises: ConfigError where there is none, or text merges across it."""
        between = self._tokenise(self._between(_OBSERVATION))
        if not between or between[0] not in self._tokenizer.added_tokens_decoder:
            raise self._refusal("the tokenizer's chat template does not end an assistant's turn with a token of its own")
        whole = self._tokenise(self._render(_QUESTION, _TURN, _OBSERVATION))
        if whole[len(whole) - len(between) :] != between:
            raise self._refusal("its text is tokenised differently when it is cut at the end of a turn")
        return between[0]


class InlineRenderer:
    """Writes an observation as text that goes on where the model stopped, at a stop string.

    The text is tokenised as it would be after `=`: no token for the beginning of a text, nor a space that was not there.
    """

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, tuple[int, ...]] = {}
        self._before = self._tokenise("=")

    def extend(self, observation: str, *, eos_token_id: int | None) -> tuple[int, ...]:
        """Returns the observation's tokens.

        Raises: ProofError after a turn that the model ended itself, or for text that would merge with what comes before it.
        """
        if eos_token_id is not None:
            raise ProofError(
                "an inline observation cannot follow a turn that the model ended itself; the environment must score it"
            )
        token_ids = self._known.get(observation)
        if token_ids is None:
            whole, num_before = self._tokenise(f"={observation}"), len(self._before)
            if whole[:num_before] != self._before:
                raise ProofError(f"this tokenizer joins the inline observation {observation!r} to the text before it")
            token_ids = self._known[observation] = whole[num_before:]
        return token_ids

    def _tokenise(self, text: str) -> tuple[int, ...]:
        return tuple(int(token) for token in self._tokenizer([text], add_special_tokens=False)["input_ids"][0])
