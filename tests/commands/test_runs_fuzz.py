"""Run directories with arbitrary damage: whatever a file of a run holds, no command shows a traceback."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_runs import ask_all, make_training_run, reseal
from test_runs_faults import FILES, check_all

QUICK = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
LONG = settings(QUICK, max_examples=400, derandomize=False)
JSON_FILES = [name for name in FILES if name.endswith((".json", ".jsonl", "COMPLETE"))]
STRANGE: st.SearchStrategy[Any] = st.sampled_from(
    [
        *(
            None,
            True,
            -1,
            2**63,
            10**400,
            float("nan"),
            float("inf"),
            1e308,
            [],
            {},
            [[]],
            [None],
            {"": None},
            {"a": {"b": []}},
        ),
        *("", "\ud800", "\0", "a\nb\u2028\x1b[31m", "/", "x" * 5000, "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00Z"),
    ]
)
VALUES = STRANGE | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
CHANGES = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from(["replace", "remove", "rename"]), VALUES), min_size=1, max_size=3
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_training_run(tmp_path_factory.mktemp("whole") / "artifacts")


def list_places(value: object, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a value that holds another one."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in pairs for place in [(*way, key), *list_places(inner, (*way, key))]]


def changed(record: Any, changes: list[tuple[int, str, Any]]) -> Any:
    """Returns a JSON value in which some inner values were replaced, removed, or put under other keys."""
    for which, how, value in copy.deepcopy(changes):  # a value put in twice, or into itself, would be one object
        places = sorted(list_places(record), key=str)
        if not places:
            return value
        *way, last = places[which % len(places)]
        inner = record
        for key in way:
            inner = inner[key]
        if how == "replace":
            inner[last] = value
        elif how == "remove":
            del inner[last]
        elif isinstance(inner, dict):
            inner[str(value)[:20]] = inner.pop(last)
    return record


def ask_a_damaged_copy(whole: Path, name: str, damage: Callable[[Path], None], *, sealed: bool = False) -> None:
    """Asks every command about a copy of a run with one damaged file; `sealed`: the manifest is made to fit the damage."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(shutil.copytree(whole, Path(folder) / "artifacts" / "runs" / whole.name))
        before = (run / name).read_bytes()
        damage(run / name)
        changed_bytes = (run / name).read_bytes() != before
        if sealed and name not in ("manifest.json", "status.json"):
            reseal(run)
        said = check_all(run)
        if changed_bytes and not sealed and name != "status.json":
            assert name in said["verify"]


def change(which: int, changes: list[tuple[int, str, Any]]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        lines = path.read_text().split("\n") if path.suffix == ".jsonl" else [path.read_text()]
        line = which % max(1, len(lines) - 1)
        lines[line] = json.dumps(changed(json.loads(lines[line]), changes))
        path.write_text("\n".join(lines))

    return damage


def overwrite(start: float, junk: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = path.read_bytes()
        place = int(start * len(content))
        path.write_bytes(content[:place] + junk + content[place + len(junk) :])

    return damage


def check_random_bytes(whole: Path, name: str, start: float, junk: bytes) -> None:
    ask_a_damaged_copy(whole, name, overwrite(start, junk))


def check_random_values(whole: Path, name: str, which: int, changes: list[tuple[int, str, Any]], sealed: bool) -> None:
    ask_a_damaged_copy(whole, name, change(which, changes), sealed=sealed)


BYTES = {"name": st.sampled_from(FILES), "start": st.floats(0, 1), "junk": st.binary(min_size=1, max_size=40)}
VALUE = {"name": st.sampled_from(JSON_FILES), "which": st.integers(0, 10**6), "changes": CHANGES, "sealed": st.booleans()}


@QUICK
@given(**BYTES)
def test_random_bytes_in_any_file_never_give_a_traceback(whole: Path, name: str, start: float, junk: bytes) -> None:
    check_random_bytes(whole, name, start, junk)


@pytest.mark.slow
@LONG
@given(**BYTES)
def test_many_random_bytes_in_any_file_never_give_a_traceback(whole: Path, name: str, start: float, junk: bytes) -> None:
    check_random_bytes(whole, name, start, junk)


@QUICK
@given(**VALUE)
def test_values_changed_in_any_file_never_give_a_traceback(
    whole: Path, name: str, which: int, changes: list[tuple[int, str, Any]], sealed: bool
) -> None:
    check_random_values(whole, name, which, changes, sealed)


@pytest.mark.slow
@LONG
@given(**VALUE)
def test_many_values_changed_in_any_file_never_give_a_traceback(
    whole: Path, name: str, which: int, changes: list[tuple[int, str, Any]], sealed: bool
) -> None:
    check_random_values(whole, name, which, changes, sealed)


def test_the_whole_run_is_read_by_every_command(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "artifacts" / "runs" / whole.name))
    codes = {name: asked.returncode for name, asked in ask_all(run).items()}
    assert {name for name, code in codes.items() if code} == {"rerun", "rerun --steps", "certify-resume"}, codes
