"""Is a number of an answer only a piece of something larger? Then it is not the answer.

Anywhere: `18x`, `18 + x`, `18/x`, `18(2)`, `18\\pi`, `18^n`, `x_{18}`, `\\log 18`, "not 18". A word after it is a unit:
`18 apples`, `18m`, `18 km/h`, `18-year-old`; of single letters only those of units (m, g, s, h, l, d).
In an explicit mark also: `18!` (elsewhere an exclamation), `18+`, `x > 18`, `f(18)`, `twice 18`, `more than 18`, `18 plus 2`,
`18 squared`, `B 18`.
"""

from __future__ import annotations

import re

_HARMLESS = (
    r"(?:text[a-z]*|math[a-z]+|mbox|operatorname|rm|bf|it|(?:thin)?space|q?quad|hspace|hfill|newline|displaystyle|textstyle"
    r"|large|Large|LARGE|huge|Huge|color|textcolor|underline|left|right|[bB]igg?|mathdollar|rupee|yen|cents?|euro|pounds"
    r"|degree|circ|percent|ell|mu|Omega|SI|si|unit|meter|checkmark|(?:black)?square|Box|star|bullet|qed|l?dots|tag|end|begin"
    r"|[dt]?frac(?=\s+(?:[A-Za-z]{2,}|[mgshlLd](?![A-Za-z])))|because|item|boxed|fbox|approx|par)(?![A-Za-z])"
)
_COMMAND = rf"\\(?!{_HARMLESS})[A-Za-z]+"
_FUNCTIONS = r"(?:sin|cos|tan|cot|log|ln|lg|exp|sqrt|mod|gcd|lcm)"
_LETTER = r"(?![aAI] [a-z])[A-Za-z](?![A-Za-z'’>]|\.[A-Za-z])"
_OPERAND = rf"(?:{_LETTER}|\\[A-Za-z]|\()"
_AFTER = (
    r"\s?\^|_\s?[0-9A-Za-z]"
    r"|(?![mgshlLd])[A-Za-z](?![A-Za-z'’])(?! [a-z]{2})"
    r"|\s+(?![mgshlLda])[a-z](?![A-Za-z'’\-0-9]|\.[A-Za-z])(?! [a-z]{2})"
    rf"|(?:\s?(?:xy|yz|xz|ab|bc|ac|pi)|{_FUNCTIONS})(?![A-Za-z])|\s{_FUNCTIONS}\s?[(0-9]|\s?[π√θ∞αβλ²³]"
    rf"|\s*{_COMMAND}"
    rf"|\s*\+\s*(?:{_OPERAND}|[0-9$])|\s*-\s*{_OPERAND}|\s*\*(?!\*)\s*(?:{_LETTER}|\\[A-Za-z]|[0-9$])|\*\(|//"
    rf"|\s*/\s*(?:(?![hsdmkgLl](?![A-Za-z])){_LETTER}|\(|[0-9])"
    rf"|\s*(?:[<≤≥≠>]=?)\s*{_LETTER}"
    r"|!(?=\s?[$\\]|[A-Za-z0-9+*/-])"
    r"|\((?=\s*-?[0-9]|[a-z]\s*[)+*/^-])"
)
_AFTER_IN_MARK = (
    r"|!|\s*\+|\s*[-/]\s*$|\s*-\s*\$?[0-9]|\s*(?:[<≤≥≠]|>)(?![/A-Za-z])|['′]\s?[0-9]|\s+(?:squared|cubed|factorial)\b"
    r"|\s+(?:plus|minus|times|divided by|multiplied by|choose|mod|modulo)\s+"
    r"(?:[$0-9\\(]|[b-z]\b|(?:one|two|three|four|five|ten)\b)"
)
_BEFORE = (
    rf"(?:[A-Za-z0-9)\]]_|\^)[\s({{\[]*|(?:{_COMMAND}(?:\[[^\]]*\])?|√|\b{_FUNCTIONS})[\s({{\[|]*"
    r"|[±√≠]\s*|(?<![^\W_])[^\W_]\s*[-+]\s*\$?|[)\]}]\s*\+\s*\$?|(?<![^\W_*])[^\W_]\s*\*\s*\$?|\)\s*[-*/]\s*|[a-z]\s*/\s*"
    r"|(?<![^\W_<])[A-Za-z]\s*[<≤≥>]=?\s*|[0-9)]\s?\(\s*"
    r"|\b(?:not|never|isn['’]t|aren['’]t|wasn['’]t)\s(?:equal to |just |only |exactly )?\W{0,3}"
)
_BEFORE_IN_MARK = (
    r"|--|[^\W_]\s*\+\s*\$?|[A-Za-z0-9)]\(\s*|[<≤≥]=?\s*|\s>=?\s*|^>=?\s*|!=\s*"
    r"|\b(?:twice|double|triple|half of|third of|(?:more|less|fewer|greater|larger|smaller) than)\s\W{0,3}"
    r"|(?<![^\W_'’])(?![aI])[A-Za-z]\s+"
)
_TOUCHED_AFTER = re.compile(_AFTER)
_TOUCHED_AFTER_IN_MARK = re.compile(_AFTER + _AFTER_IN_MARK)
_TOUCHED_BEFORE = re.compile(f"(?:{_BEFORE})$")
_TOUCHED_BEFORE_IN_MARK = re.compile(f"(?:{_BEFORE}{_BEFORE_IN_MARK})$")
_WINDOW = 32
_HARMLESS_BEFORE = frozenset("=:,;.?#")
_HARMLESS_AFTER = frozenset('.,;:%?"')


def is_touched(text: str, start: int, end: int, *, in_mark: bool) -> bool:
    """Returns whether the number at `text[start:end]` is a piece of something larger; `text` is cleaned (`numbers.clean`)."""
    if end < len(text) and text[end] not in _HARMLESS_AFTER:
        after = _TOUCHED_AFTER_IN_MARK if in_mark else _TOUCHED_AFTER
        is_word = (
            text[end] == " "
            and text[end + 2 : end + 3].isalpha()
            and text[end + 1].isalpha()
            and not text.startswith(_WORDS_AFTER, end + 1)
        )
        if (in_mark or not is_word) and after.match(text, end):
            return True
    if not start:
        return False
    head = text[max(0, start - _WINDOW) : start]
    bare = head.rstrip()
    if not bare or bare[-1] in _HARMLESS_BEFORE:
        return False
    if not in_mark and "\\" not in bare and bare[-1].isalpha() and not bare.endswith(_WORDS_BEFORE) and bare[-2:-1].isalpha():
        return False
    before = _TOUCHED_BEFORE_IN_MARK if in_mark else _TOUCHED_BEFORE
    return before.search(head) is not None


_WORDS_AFTER = tuple("xy yz xz ab bc ac pi sin cos tan cot log ln lg exp sqrt mod gcd lcm π√ θ α β λ ∞".split())
_WORDS_BEFORE = (
    *("not", "never", "n't", "n’t", "equal to", "just", "only", "exactly"),
    *("sin", "cos", "tan", "cot", "log", "ln", "lg", "exp", "sqrt", "mod", "gcd", "lcm"),
)
