"""The words of a text as the leak gate compares them: without markup, invisible characters, accents and typography.

Words are numbers (`1,200` is `1200`), words in lower case, and the signs that carry meaning (`+`, `%`, `$`, brackets …);
punctuation, quotes and hyphens inside words do not count. Nor do characters that are not seen (Unicode's Cf: zero-width spaces,
soft hyphens, byte-order marks), accents, pairs of Markdown's emphasis, TeX's `$…$` and `\\$`, and HTML's tags of layout.
"""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass

_VARIATION = "\u034f\ufe00-\ufe0f\U000e0100-\U000e01ef"  # marks that are not seen either
_UNSEEN_MARK = re.compile(f"[{_VARIATION}]")
_ACCENTS = re.compile(r"(?<=[^\W_])[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+")
_LAYOUT = "br|p|b|i|u|em|strong|span|div|li|ul|ol|code|tt|font|center|h[1-6]"
_ATTRIBUTE = r"""\s+[\w:-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>]+)"""
_TAG = re.compile(rf"</?(?:{_LAYOUT})(?:{_ATTRIBUTE})*\s*/?>", re.IGNORECASE)
_TEX = re.compile(r"(?<![\w\\$])(\${1,2})(?=[^\s$])((?:\\.|[^$\\\n])*(?:\\.|[^$\\\s]))\1(?![\w$])")
_TEX_BRACKET = re.compile(r"\\[()\[\]]")
_TEX_SIGN = re.compile(r"\\([$%#&_])")
_EMPHASIS = [
    re.compile(rf"(?<![\w){sign}])({sign}{{1,3}})(?=[^\s{sign}])([^{sign}]*[^\s{sign}])\1(?![\w({sign}])")
    for sign in (r"\*", "_")
]
_SIGNS = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-") | {"\u00d7": "*", "\u00f7": "/"})

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TOKEN = re.compile(r"\d+(?:\.\d+)*|(?<!\d)\.\d+|[^\W\d_]+|_+|[^\w\s]")
_IGNORED = frozenset(".,;:?'\"`´“”‘’„‚«»‹›…-")

_OPERATOR = re.escape("-+*/^=%")
_BLANKS = r"[^\S\n]*"
_AFTER_OPERAND = re.compile(rf"[\d)]{_BLANKS}[{_OPERATOR}]{_BLANKS}\Z")
_CALCULATION = re.compile(rf"[(\[{{+\-]|(?:\d[\d.]*|[^\W\d_]){_BLANKS}(?:[-+*/^=<>)]|%{_BLANKS}[\d(]|\W*\Z)")
_OPERAND = re.compile(r"(?:\d|[^\w\s]|\b[^\W\d_])\Z")
_GOES_ON = re.compile(rf"{_BLANKS}\w")
_CALCULATES_ON = re.compile(rf"{_BLANKS}[{_OPERATOR}]")
_WORD_CALCULATES_ON = re.compile(rf"-\w|{_BLANKS}[+/^%]")  # after a word, ` - ` is a dash and `**` a mark of type
_LABEL = re.compile(
    rf"{_BLANKS}(?:(?:the|my|your|final|correct|full|short|model){_BLANKS}){{0,2}}"
    rf"(?:a|ans|answer|solution|response|reasoning|rationale|explanation|output|assistant|hint){_BLANKS}[:>)\]]",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"\s+(?=[A-Z])[^\W\d_]{2,}")
_INSTRUCTION = re.compile(r"\s+(?:Let|Please|Think|Solve|Show|Give|Explain)\b")


@dataclass(frozen=True, slots=True)
class Words:
    """A text as it was given, as it is split (in plain characters), its words, and where in the latter each begins and ends."""

    raw: str
    text: str
    words: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]

    def is_whole(self, at: int, end: int) -> bool:
        """Returns whether words `at` to `end` are a text of their own: no calculation begins before, nothing goes on after.

        `Exercise 3 - Tom has …` and `… are left Answer: 6` hold a question; `9 * 4 + 3` and `Who is Ann's aunt` hold none.
        """
        start, stop = self.spans[at][0], self.spans[end - 1][1]
        if _CALCULATION.match(self.text[start : start + 16]) and _AFTER_OPERAND.search(self.text[max(0, start - 16) : start]):
            return False
        after = self.text[stop : stop + 80]
        if _GOES_ON.match(after):
            is_name = self.text[self.spans[end - 1][0]].isupper()  # another name may follow: `Ann` of `Ann Smith`
            return bool(_LABEL.match(after) or (_INSTRUCTION if is_name else _SENTENCE).match(after))
        is_operand = bool(_OPERAND.search(self.text[max(0, stop - 2) : stop]))
        return not (_CALCULATES_ON if is_operand else _WORD_CALCULATES_ON).match(after)


def split_words(text: str) -> Words:
    """Returns the words of a text, with their places."""
    plain = plain_text(text)
    found = [match for match in _TOKEN.finditer(plain) if match[0] not in _IGNORED or _is_minus(plain, match)]
    return Words(text, plain, tuple(match[0].casefold() for match in found), tuple(match.span() for match in found))


def plain_text(text: str) -> str:
    """Returns a text in plain characters: no markup, no invisible characters, no accents, one sign for each operator."""
    if "&" in text:
        text = html.unescape(text)
    if not text.isascii():
        text = _UNSEEN_MARK.sub("", unicodedata.normalize("NFKD", text))
        text = unicodedata.normalize(
            "NFC", _ACCENTS.sub("", "".join(char for char in text if unicodedata.category(char) != "Cf"))
        )
        text = text.translate(_SIGNS)
    if "<" in text:
        text = _TAG.sub(" ", text)
    if "$" in text:
        text = _TEX.sub(r"\2", text)
    if "\\" in text:
        text = _TEX_SIGN.sub(r"\1", _TEX_BRACKET.sub(" ", text))
    for pattern in _EMPHASIS:
        text = pattern.sub(r"\2", text)
    return _THOUSANDS.sub("", text)


def _is_minus(text: str, match: re.Match[str]) -> bool:
    """Returns whether a hyphen is a minus: a digit or a bracket follows, and no letter stands right before it."""
    if match[0] != "-":
        return False
    after = text[match.end() : match.end() + 8].lstrip(" ")[:1]
    before = text[max(0, match.start() - 1) : match.start()]
    return (after.isdigit() or after == "(") and not before.isalpha()
