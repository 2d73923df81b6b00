"""Options, written once each: a dataclass field is the flag, the file key, the override, the record and the docs row.

    @dataclass(frozen=True)
    class EvalConfig:
        limit: int | None = option(None, "Evaluate the first N problems only.", min=1)

Precedence: default < preset or file (`--config`) < `key=value` or flag. A key may be written with dashes or underscores.
Every refusal is a ConfigError of one line that names the key, what was wrong and what is allowed.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Generic, TypeVar

from grpo_gsm8k.errors import ConfigError, unknown_name

C = TypeVar("C")

RESERVED_KEYS = ("command", "description")


def option(default: Any, help: str, *, choices: Sequence[str] = (), min: float | None = None, max: float | None = None) -> Any:
    """Returns a dataclass field that is an option; `choices`, `min` and `max` (inclusive) are checked on every value."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": tuple(choices), "min": min, "max": max})


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a config class, as read off its dataclass field."""

    key: str
    kind: type  # bool, int, float, str, or tuple (of strings)
    nullable: bool
    default: Any
    help: str
    choices: tuple[str, ...]
    min: float | None
    max: float | None
    section: str

    @property
    def flag(self) -> str:
        """The canonical flag; underscores are accepted as well."""
        return "--" + self.key.replace("_", "-")

    @property
    def allowed(self) -> str:
        """What the option takes, in words."""
        if self.choices:
            words = ("any of " if self.kind is tuple else "one of ") + ", ".join(self.choices)
        elif self.kind is tuple:
            words = "names separated by commas"
        elif self.kind in (int, float):
            words = "a whole number" if self.kind is int else "a number"
            if self.min is not None and self.max is not None:
                words += f" from {self.min} to {self.max}"
            elif self.min is not None:
                words += f" of at least {self.min}"
            elif self.max is not None:
                words += f" of at most {self.max}"
        else:
            words = {bool: "true or false", str: "text"}[self.kind]
        return words + (", or none" if self.nullable else "")


def options(cls: type) -> tuple[Option, ...]:
    """Returns the options of a config class: its own in the order in which they are written, then its bases'.

    An option's section, its heading in `--help`, is how the docstring of the class that writes it begins, up to a colon.
    """
    hints = typing.get_type_hints(cls)
    found = []
    specs = {spec.name: spec for spec in dataclasses.fields(cls)}
    written_in: dict[str, type] = {}
    for base in cls.__mro__:
        for name in inspect.get_annotations(base):
            if name in specs:
                written_in.setdefault(name, base)
    for name, base in written_in.items():
        spec, section = specs[name], re.split(r"[.:](?:\s|$)|\n", base.__doc__ or "")[0].replace("`", "")
        hint, nullable = hints[spec.name], False
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            members = [member for member in typing.get_args(hint) if member is not type(None)]
            hint, nullable = members[0], True
        kind = typing.get_origin(hint) or hint
        meta = spec.metadata
        told = (meta["help"], meta["choices"], meta["min"], meta["max"])
        found.append(Option(spec.name, kind, nullable, spec.default, *told, section))
    return tuple(found)


def _refuse(opt: Option, value: Any, origin: str) -> ConfigError:
    shown = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return ConfigError(f"{opt.key} = {shown} ({origin}): allowed is {opt.allowed}")


def _from_text(opt: Option, text: str, origin: str) -> Any:
    """Reads a value that came as text (a flag or a `key=value`)."""
    if opt.nullable and text.strip().lower() in ("none", "null"):
        return None
    try:
        if opt.kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.strip().lower()]
        if opt.kind is int:
            return int(text)
        if opt.kind is float:
            return float(text)
    except (ValueError, KeyError):
        raise _refuse(opt, text, origin) from None
    if opt.kind is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return text


def _check(opt: Option, value: Any, origin: str) -> Any:
    """Returns the value in its canonical type, or refuses it."""
    if value is None:
        if opt.nullable:
            return None
        raise _refuse(opt, value, origin)
    if opt.kind is tuple and isinstance(value, list):
        value = tuple(value)
    if opt.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, opt.kind) or (opt.kind is int and isinstance(value, bool)):
        raise _refuse(opt, value, origin)
    if isinstance(value, float) and not math.isfinite(value):
        raise _refuse(opt, value, origin)
    if isinstance(value, tuple) and not all(isinstance(part, str) for part in value):
        raise _refuse(opt, list(value), origin)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low = opt.min is not None and value < opt.min
        if low or (opt.max is not None and value > opt.max):
            raise _refuse(opt, value, origin)
    if opt.choices:
        for part in value if isinstance(value, tuple) else (value,):
            if part not in opt.choices:
                raise ConfigError(f"{opt.key} ({origin}): " + unknown_name(opt.key, part, opt.choices))
    return value


@dataclass(frozen=True)
class Resolved(Generic[C]):
    """A frozen config and where each of its values came from ("default", "preset tiny", "file x.toml", "flag", …)."""

    config: C
    sources: Mapping[str, str]

    def filled(self, key: str, value: Any, why: str) -> Resolved[C]:
        """Returns a copy in which an `auto` value is replaced by what was chosen; `why` becomes its source."""
        config = dataclasses.replace(self.config, **{key: value})  # type: ignore[type-var]
        return Resolved(config, {**self.sources, key: f"auto: {why}"})

    def validate(self) -> None:
        """Checks what no single option can, where the config class knows of such a thing. Raises: ConfigError."""
        check = getattr(self.config, "validate", None)
        if check is not None:
            check()

    def record(self) -> dict[str, Any]:
        """Returns what `config.json` holds: every value, nulls kept, and its source."""
        values = dataclasses.asdict(self.config)  # type: ignore[call-overload]
        return {"values": values, "sources": dict(self.sources)}


def resolve(
    cls: type[C],
    command: str,
    *,
    config: str | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Sequence[str]] | None = None,
    validate: bool = True,
) -> Resolved[C]:
    """Returns the config of `command` from defaults, a preset or file, and flags and `key=value` overrides.

    `validate` False leaves the checks across options (`Resolved.validate`) to the caller.
    Raises: ConfigError for an unknown key, a key given twice with two values, a wrong type or a value out of range.
    """
    by_key = {opt.key: opt for opt in options(cls)}
    values = {opt.key: opt.default for opt in by_key.values()}
    sources = dict.fromkeys(values, "default")
    if config is not None:
        origin, table = read_config(config, command)
        for key, value in table.items():
            opt = _known(by_key, key, origin)
            checked = _check(opt, value, origin)
            if sources[opt.key] == origin and values[opt.key] != checked:
                raise ConfigError(f"{origin}: {opt.key} is given twice with two values; give it once")
            values[opt.key], sources[opt.key] = checked, origin
    given: dict[str, tuple[Any, str, str]] = {}
    for key, text, origin in _spoken(flags or {}, overrides):
        opt = _known(by_key, key, origin)
        value = _check(opt, _from_text(opt, text, origin), origin)
        if opt.key in given and given[opt.key][0] != value:
            raise ConfigError(f"{opt.key} is given twice with two values: {given[opt.key][1]!r} and {text!r}; give it once")
        given[opt.key] = (value, text, origin)
    for key, (value, _, origin) in given.items():
        values[key], sources[key] = value, origin
    resolved = Resolved(cls(**values), sources)
    if validate:
        resolved.validate()
    return resolved


def _spoken(flags: Mapping[str, Sequence[str]], overrides: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    for key, texts in flags.items():
        for text in texts:
            yield key, text, "flag"
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"{override!r} is neither a flag nor an override; an override is written key=value")
        yield key, text, "override"


def _known(by_key: Mapping[str, Option], key: str, origin: str) -> Option:
    name = key.lstrip("-").replace("-", "_")
    if name not in by_key:
        raise ConfigError(f"{origin}: {unknown_name('option', key, by_key)}")
    return by_key[name]


def presets() -> dict[str, dict[str, Any]]:
    """Returns the shipped presets by name, each as parsed."""
    folder = resources.files("grpo_gsm8k") / "presets"
    found = {}
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".toml"):
            found[entry.name.removesuffix(".toml")] = tomllib.loads(entry.read_text(encoding="utf-8"))
    return found


def read_config(name: str, command: str) -> tuple[str, dict[str, Any]]:
    """Returns (origin in words, the options) of a preset's name or the path of a .toml, .yaml or .json file.

    A file may say which `command` it is for, and a `description`; both are left out of the options.
    Raises: ConfigError when there is no such preset or file, or it cannot be parsed, or it is for another command.
    """
    path = Path(name)
    if path.suffix.lower() in (".toml", ".yaml", ".yml", ".json"):
        origin, table = f"file {name}", _parse(path)
    else:
        shipped = presets()
        if name not in shipped:
            raise ConfigError(f"--config: {unknown_name('preset', name, shipped)}; a file ends in .toml, .yaml or .json")
        origin, table = f"preset {name}", shipped[name]
    meant = table.get("command", command)
    if meant != command:
        raise ConfigError(f"{origin} is for the command {meant!r}, not for {command!r}")
    return origin, {key: value for key, value in table.items() if key not in RESERVED_KEYS}


def _parse(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():
        raise ConfigError(f"cannot read the config file {path}: it is no plain file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config file {path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        if path.suffix.lower() == ".toml":
            table: Any = tomllib.loads(text)
        elif path.suffix.lower() == ".json":
            table = json.loads(text, object_pairs_hook=_no_twins)
        else:
            table = _parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except Exception as error:  # each parser has its own exception tree; all of them mean the same here
        raise ConfigError(f"{path} is not valid {path.suffix[1:].upper()}: {' '.join(str(error).split())}") from None
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
        raise ConfigError(f"{path}: the top level must be a table of options")
    return table


def _parse_yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key given twice, which the plain loader settles silently."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            _no_twins([(key.value, value.value) for key, value in node.value])
            return super().construct_mapping(node, deep)

    return yaml.load(text, Loader)


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table and table[key] != value:
            raise ConfigError(f"{key} is given twice with two values")
        table[key] = value
    return table


def options_table(cls: type) -> str:
    """Returns the Markdown table of a config class's options (the docs are made of it)."""
    rows = ["| option | default | allowed | what it does |", "|---|---|---|---|"]
    for opt in options(cls):
        default = ",".join(opt.default) if isinstance(opt.default, tuple) else str(opt.default)
        rows.append(f"| `{opt.flag}` | `{default}` | {opt.allowed} | {opt.help} |")
    return "\n".join(rows)
