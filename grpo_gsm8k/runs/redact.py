"""Secrets, found by the name of their variable or the shape of their value, and taken out of whatever is recorded."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"
SECRET_NAME = re.compile(
    r"(^|_)(API)?KEYS?(_|$)|APIKEY|KEY$|TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|COOKIE|(^|_)(AUTH|PAT|DSN|PWD_HASH)(_|$)|.PWD$|PRIVATE",
    re.I,
)
HARMLESS_NAMES = frozenset({"TOKENIZERS_PARALLELISM", "OLDPWD"})
# Shapes that are secrets wherever they stand. In running text they must be long, so that names in code are left alone.
SECRET_SHAPE = re.compile(
    r"hf_[A-Za-z0-9]{16,}|(?<![A-Za-z0-9])sk-[A-Za-z0-9_\-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w\-]{16,}|AKIA[0-9A-Z]{16}"
    r"|xox[abprs]-[\w\-]{10,}|eyJ[\w\-]{10,}\.[\w\-]{10,}\.[\w\-]*"
    r"|AIza[\w\-]{30,}|hooks\.slack\.com/services/[\w/]+|-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(-----END [A-Z ]*-----)?"
)
SHORT_SHAPE = re.compile(r"\b(hf_|sk-|ghp_|github_pat_|glpat-|xox[abprs]-)[A-Za-z0-9_\-]{3,}")
URL_USER = re.compile(r"(?<=://)(?:([^/\s:@]*):[^\s@]+|[^/\s:@]+)@")


def is_secret_name(name: str) -> bool:
    """Returns whether a variable of this name holds a secret."""
    return name not in HARMLESS_NAMES and SECRET_NAME.search(name) is not None


def redact_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment, sorted, without the values that are secret by name or by shape."""
    secrets = _secret_values(environment)
    clean = {}
    for name, value in sorted(environment.items()):
        if is_secret_name(name):
            clean[name] = REDACTED
        else:
            clean[name] = SHORT_SHAPE.sub(REDACTED, _scrub(value, secrets))
    return clean


def scrub(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Returns text without anything of a secret's shape and without the value of any secret variable."""
    return _scrub(text, _secret_values(os.environ if environment is None else environment))


def scrub_arguments(arguments: list[str]) -> list[str]:
    """Returns command-line arguments without secrets; short tokens count as well, since no code stands there."""
    return [SHORT_SHAPE.sub(REDACTED, scrub(argument)) for argument in arguments]


def _secret_values(environment: Mapping[str, str]) -> list[str]:
    values = {value for name, value in environment.items() if is_secret_name(name) and len(value) >= 8}
    return sorted(values, key=len, reverse=True)


def _scrub(text: str, secrets: list[str]) -> str:
    for value in secrets:
        text = text.replace(value, REDACTED)
    text = SECRET_SHAPE.sub(REDACTED, text)
    return URL_USER.sub(lambda match: f"{match[1]}:{REDACTED}@" if match[1] is not None else f"{REDACTED}@", text)


def scrub_values(value: Any) -> Any:
    """Returns JSON values with every text in them scrubbed."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, Mapping):
        return {key: scrub_values(item) for key, item in value.items()}
    return [scrub_values(item) for item in value] if isinstance(value, (list, tuple)) else value
