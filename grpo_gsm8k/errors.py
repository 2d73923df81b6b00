"""The exceptions of the harness, drawn as a tree.

HarnessError                        anything the harness says in one line; never shows a traceback
├── InputError (ValueError)         what the user gave is wrong                      exit code 2
│   ├── ConfigError                 an option, a preset, a key, a value
│   ├── DataError                   a data file or data set: missing, corrupt, of another shape
│   ├── PromptError                 a template, a chat template, a prompt longer than the window
│   └── ModelError                  a model folder or id that cannot be used
├── EnvironmentFailure (RuntimeError)   the world around the run is at fault         exit code 1
│   ├── EngineError                 a server down, an engine that cannot start or died
│   ├── HubError                    the hub cannot be reached or answered wrongly
│   └── StorageError                a disk full, a folder that cannot be written
└── ProofError (RuntimeError)       a contract of the run is broken: the run stops   exit code 1

Every message is one line: what was wrong, then what is allowed or what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HarnessError(Exception):
    """Root of the tree; `exit_code` is what the command line ends with."""

    exit_code = 1


class InputError(HarnessError, ValueError):
    """What the user gave is wrong."""

    exit_code = 2


class ConfigError(InputError):
    """An option, a preset, a key or a value is wrong."""


class DataError(InputError):
    """A data file or data set is missing, corrupt or of another shape."""


class PromptError(InputError):
    """A prompt cannot be rendered as asked."""


class ModelError(InputError):
    """A model folder or id cannot be used."""


class EnvironmentFailure(HarnessError, RuntimeError):
    """The world around the run is at fault, not the input."""


class EngineError(EnvironmentFailure):
    """An engine cannot start, died, or its server does not answer."""


class HubError(EnvironmentFailure):
    """The hub cannot be reached or answered wrongly."""


class StorageError(EnvironmentFailure):
    """A disk is full or a folder cannot be written."""


class ProofError(HarnessError, RuntimeError):
    """A contract of the run is broken; going on would give numbers that cannot be proved."""


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> str:
    """Returns one line for a name that is not known: the nearest valid one, then all of them.

    `kind` is the singular word for the thing ("template"), `valid` the names that are allowed.
    """
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}{hint} (known: {', '.join(names)})"
