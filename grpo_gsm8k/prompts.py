"""Templates as text files, and the one renderer that turns problems into prompts.

A template is a UTF-8 text file: a TOML front matter between two `+++` lines, then the body. Its keys:

- `kind`: "chat" (the body is the user's message, the tokenizer's chat template does the rest) or "text" (the body is all);
- `description`: one line for `list_templates`;
- `system`: the system message (chat only; without it there is none, and the chat template may put its own);
- `stop`: strings that end a completion (`Sampling.stop`);
- `shot`: how one solved training problem is written, with `{question}`, `{reasoning}` (the published solution without its
  `<<…>>` annotations and its `####` line) and `{gold}`.

The body holds `{question}`, and `{examples}` where drawn shots go; a chat template without `{examples}` gets them as earlier
turns, `shot` being the assistant's. No other brace means anything, and what is put in is never expanded again. The file's
last newline is not part of the body.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from grpo_gsm8k.errors import PromptError, unknown_name
from grpo_gsm8k.runs.storage import read_plain
from grpo_gsm8k.types import Problem, Prompt

TEMPLATES_DIR = Path(__file__).with_name("templates")
DEFAULT_TEMPLATE = "qwen_math_cot"

_FILE = re.compile(r"\+\+\+\n(?P<front>.*?\n)\+\+\+\n(?P<body>.*)", re.DOTALL)
_BODY_SLOT = re.compile(r"\{(question|examples)\}")
_SHOT_SLOT = re.compile(r"\{(question|reasoning|gold)\}")
_ANNOTATION = re.compile(r"<<[^<>\n]*>>")
_KEYS = {"kind": str, "description": str, "system": str, "stop": list, "shot": str}


class Tokenizer(Protocol):
    """What the renderer needs of a tokenizer; every Hugging Face one has it."""

    @property
    def chat_template(self) -> Any:
        """The Jinja chat template, or None."""
        ...

    @property
    def bos_token(self) -> Any:
        """The beginning-of-sequence token's text, or None."""
        ...

    def __call__(self, text: Any, *, add_special_tokens: bool) -> Any:
        """Returns a mapping whose "input_ids" holds one list of ids a text."""
        ...

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> Any:
        """Returns the chat as text, with the assistant's turn opened."""
        ...


@dataclass(frozen=True, slots=True)
class Template:
    """One template as read from its file; `sha256` is of the file's bytes, `source` its text."""

    name: str
    kind: Literal["chat", "text"]
    description: str
    system: str | None
    stop: tuple[str, ...]
    shot: str | None
    body: str
    sha256: str
    source: str = ""

    @property
    def inlines_examples(self) -> bool:
        """Whether the body says where the shots go."""
        return "{examples}" in self.body


def list_templates() -> dict[str, str]:
    """Returns the shipped templates' names and descriptions, sorted by name."""
    return {path.stem: load_template(path.stem).description for path in sorted(TEMPLATES_DIR.glob("*.txt"))}


def template_hash(name_or_path: str | Path) -> str:
    """Returns the sha256 (hex) of the template file's bytes. Raises: PromptError as `load_template`."""
    return load_template(name_or_path).sha256


def load_template(name_or_path: str | Path) -> Template:
    """Returns a shipped template by its name, or the user's own by its path (it has a folder or a suffix in it).

    A path is named by its file name. Windows line ends are read as "\\n".
    Raises: PromptError for an unknown name, a file that cannot be read, or one that is not a template.
    """
    text = str(name_or_path)
    shipped = {path.stem: path for path in TEMPLATES_DIR.glob("*.txt")}
    if text in shipped:
        path, name = shipped[text], text
    elif Path(text).suffix or len(Path(text).parts) > 1:
        path, name = Path(text), Path(text).name
    else:
        raise PromptError(unknown_name("template", text, shipped) + "; a template of your own is given by its path")
    try:
        raw = read_plain(path)
        return _parse(name, raw.decode("utf-8").replace("\r\n", "\n"), hashlib.sha256(raw).hexdigest())
    except OSError as error:
        raise PromptError(f"template {text}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"template {text}: is not UTF-8 (byte {error.start})") from error


def render_batch(
    tokenizer: Tokenizer | None,
    problems: Sequence[Problem | str],
    *,
    template: str | Path | Template = DEFAULT_TEMPLATE,
    k_shot: int = 0,
    shots: Sequence[Problem] | None = None,
    seed: int = 0,
    window: int | None = None,
    max_tokens: int = 0,
) -> list[Prompt]:
    """Returns one prompt a problem, in order: its token ids, the text they were tokenised from, and a chat's messages.

    `problems` may be plain questions, whose ids are then "question-0", "question-1" … `k_shot` solved examples are drawn
    from `shots` (training problems, never the eval set) by `seed` alone: the same ones in the same order for every problem,
    k of them being the first k of any larger draw. A problem whose own question (letter case and white space aside) is
    among its shots gets the next one drawn instead. `window` is the model's context in tokens, of which `max_tokens` are
    kept for the completion. Chat text is tokenised as it is, since the chat template wrote its special tokens; plain text
    gets the tokenizer's own special tokens, unless the template starts with the BOS token already. `tokenizer` None is for
    servers that apply their own chat template: prompts then hold messages, no token ids, and a text for reading only; their
    length cannot be checked here.
    Raises: PromptError for an empty question, a tokenizer without a chat template under a chat template, too few shots, or
    a prompt that does not fit.
    """
    if isinstance(problems, str):
        raise PromptError("render_batch takes a list of questions, got one string; put it in a list")
    chosen = template if isinstance(template, Template) else load_template(template)
    _check_kind(tokenizer, chosen)
    known = [_as_problem(problem, index) for index, problem in enumerate(problems)]
    drawn = _draw_shots(chosen, k_shot, shots, seed)
    if not known:
        return []
    chats: list[tuple[Mapping[str, str], ...]] = []
    texts: list[str] = []
    for problem in known:
        own = _question_key(problem.question)
        use = [shot for shot in drawn if _question_key(shot.question) != own][:k_shot]
        if len(use) < k_shot:
            raise PromptError(f"problem {problem.id}: is a training problem itself, and no other is left to be shot {k_shot}")
        messages, text = _render_one(tokenizer, chosen, problem, use)
        chats.append(messages)
        texts.append(text)
    if tokenizer is None:
        return [Prompt(p.id, (), text, messages) for p, text, messages in zip(known, texts, chats, strict=True)]
    ids = _tokenise(tokenizer, chosen, texts)
    _check_window(known, ids, window, max_tokens)
    rows = zip(known, ids, texts, chats, strict=True)
    return [Prompt(problem_id=p.id, token_ids=i, text=t, messages=m) for p, i, t, m in rows]


def _parse(name: str, text: str, sha256: str) -> Template:
    match = _FILE.fullmatch(text)
    if match is None:
        raise PromptError(f"template {name}: must start with a TOML front matter between two '+++' lines, then the body")
    try:
        front = tomllib.loads(match["front"])
    except tomllib.TOMLDecodeError as error:
        raise PromptError(f"template {name}: front matter is not TOML: {error}") from error
    for key, value in front.items():
        if key not in _KEYS:
            raise PromptError(f"template {name}: {unknown_name('key', key, _KEYS)}")
        if not isinstance(value, _KEYS[key]):
            raise PromptError(f"template {name}: {key} must be a {_KEYS[key].__name__}, got {value!r}")
    kind, stop, system = front.get("kind"), front.get("stop", []), front.get("system")
    if kind not in ("chat", "text"):
        raise PromptError(f"template {name}: kind must be 'chat' or 'text', got {kind!r}")
    if not all(isinstance(item, str) and item for item in stop):
        raise PromptError(f"template {name}: stop must be a list of non-empty strings, got {stop!r}")
    if kind == "text" and system is not None:
        raise PromptError(f"template {name}: a text template has no system message; write it into the body")
    body = match["body"].removesuffix("\n")
    if "{question}" not in body:
        raise PromptError(f"template {name}: the body must hold {{question}}")
    template = Template(name, kind, front.get("description", ""), system, tuple(stop), front.get("shot"), body, sha256, text)
    if template.inlines_examples and template.shot is None:
        raise PromptError(f"template {name}: the body holds {{examples}}, so the front matter must say how a shot is written")
    return template


def _check_kind(tokenizer: Tokenizer | None, template: Template) -> None:
    name = repr(template.name)
    if tokenizer is None and template.kind == "text":
        raise PromptError(f"template {name} is plain text, which needs a tokenizer; use a chat template such as 'question'")
    if tokenizer is not None and template.kind == "chat" and not tokenizer.chat_template:
        raise PromptError(f"template {name} is a chat, but the tokenizer has no chat template; use a text one such as 'none'")


def _as_problem(problem: Problem | str, index: int) -> Problem:
    known = Problem(id=f"question-{index}", question=problem, answer="", gold="") if isinstance(problem, str) else problem
    if not known.question.strip():
        raise PromptError(f"problem {known.id}: the question is empty")
    return known


def _question_key(question: str) -> str:
    return " ".join(question.casefold().split())


def _draw_shots(template: Template, k_shot: int, shots: Sequence[Problem] | None, seed: int) -> list[Problem]:
    """Returns the k_shot + 1 problems (or all there are) that rank first by a hash of seed and question; the last stands in."""
    if k_shot < 0:
        raise PromptError(f"k_shot must be 0 or more, got {k_shot}")
    if k_shot == 0:
        return []
    if template.shot is None or (template.kind == "text" and not template.inlines_examples):
        raise PromptError(f"template {template.name!r} has no place for examples; use k_shot 0 or a template with {{examples}}")
    if not shots:
        raise PromptError(f"k_shot {k_shot} needs training problems to draw from, and there are none; use k_shot 0")
    distinct = {_question_key(shot.question): shot for shot in reversed(shots)}
    if len(distinct) < k_shot:
        raise PromptError(f"k_shot {k_shot} is more than the {len(distinct)} different training problems there are")
    ranked = sorted(distinct, key=lambda key: hashlib.sha256(f"{seed}\0{key}".encode()).digest())
    return [distinct[key] for key in ranked[: k_shot + 1]]


def _fill(slots: re.Pattern[str], text: str, values: Mapping[str, str]) -> str:
    return slots.sub(lambda match: values[match[1]], text)


def _write_shot(template: Template, shot: Problem) -> str:
    reasoning = _ANNOTATION.sub("", shot.answer.rpartition("####")[0] or shot.answer).strip()
    values = {"question": shot.question.strip(), "reasoning": reasoning, "gold": shot.gold}
    return _fill(_SHOT_SLOT, template.shot or "", values)


def _render_one(
    tokenizer: Tokenizer | None, template: Template, problem: Problem, shots: Sequence[Problem]
) -> tuple[tuple[Mapping[str, str], ...], str]:
    written = [_write_shot(template, shot) for shot in shots]
    body = _fill(_BODY_SLOT, template.body, {"question": problem.question, "examples": "".join(written)})
    if template.kind == "text":
        return (), body
    messages = [{"role": "system", "content": template.system}] if template.system is not None else []
    if not template.inlines_examples:
        for shot, answer in zip(shots, written, strict=True):
            user = _fill(_BODY_SLOT, template.body, {"question": shot.question, "examples": ""})
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": body})
    if tokenizer is None:
        return tuple(messages), "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template([*messages], tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        why = f"the tokenizer's chat template refuses template {template.name!r}: {error}"
        raise PromptError(f"problem {problem.id}: {why}") from error
    return tuple(messages), str(text)


def _tokenise(tokenizer: Tokenizer, template: Template, texts: list[str]) -> list[tuple[int, ...]]:
    bos = tokenizer.bos_token
    has_bos = bool(bos) and template.body.startswith(str(bos))
    encoded = tokenizer(texts, add_special_tokens=template.kind == "text" and not has_bos)
    return [tuple(int(token) for token in row) for row in encoded["input_ids"]]


def _check_window(problems: Sequence[Problem], ids: Sequence[Sequence[int]], window: int | None, max_tokens: int) -> None:
    for problem, row in zip(problems, ids, strict=True):
        if not row:
            raise PromptError(f"problem {problem.id}: the tokenizer makes no tokens of the prompt")
        if window is not None and len(row) + max_tokens > window:
            raise PromptError(
                f"problem {problem.id}: the prompt's {len(row)} tokens and max_tokens {max_tokens} are more than the model's"
                f" window of {window}; ask for fewer new tokens or shots"
            )
