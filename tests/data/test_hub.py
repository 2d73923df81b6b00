"""The hub, spoken to over HTTP: revisions, files, and every way in which it can fail."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Any

import pytest

from grpo_gsm8k.data.hub import fetch_files, resolve_revision
from grpo_gsm8k.errors import HubError

REPO = "some/rows"
FILES = {"data/train.parquet": b"PAR1 pretend" * 500, "test.jsonl": b'{"a": 1}\n'}
PATHS = list(FILES)


def test_a_branch_is_resolved_to_its_commit(hub: Any) -> None:
    first = hub.commit(REPO, FILES)
    assert resolve_revision(REPO, "main") == first
    second = hub.commit(REPO, {**FILES, "more": b"1"})
    assert resolve_revision(REPO, "main") == second != first


def test_a_full_commit_needs_no_network(hub: Any) -> None:
    assert resolve_revision(REPO, "AB" * 20) == "ab" * 20
    assert hub.requests == []


def test_an_endpoint_given_goes_before_the_environment(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    commit = hub.commit(REPO, FILES)
    assert resolve_revision(REPO, "main", endpoint=hub.endpoint) == commit


def test_files_come_with_their_bytes_and_sha256_and_only_once(hub: Any, tmp_path: Path) -> None:
    commit = hub.commit(REPO, FILES)
    files = fetch_files(REPO, commit, PATHS, cache_dir=tmp_path / "c")
    assert {file.path: file.local.read_bytes() for file in files} == FILES
    assert [file.sha256 for file in files] == [hashlib.sha256(FILES[path]).hexdigest() for path in PATHS]
    asked = len(hub.requests)
    assert fetch_files(REPO, commit, PATHS, cache_dir=tmp_path / "c") == files
    assert len(hub.requests) == asked


def test_what_the_cache_has_can_be_had_offline(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.commit(REPO, FILES)
    fetch_files(REPO, commit, PATHS[:1], cache_dir=tmp_path / "c")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch_files(REPO, commit, PATHS[:1], cache_dir=tmp_path / "c")[0].local.read_bytes() == FILES[PATHS[0]]
    with pytest.raises(HubError, match=r"test\.jsonl at .* cannot be had offline"):
        fetch_files(REPO, commit, PATHS, cache_dir=tmp_path / "c")


def test_a_branch_offline_names_the_branch_and_the_ways_out(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit(REPO, FILES)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError) as raised:
        resolve_revision(REPO, "release-2")
    message = str(raised.value)
    assert "'release-2'" in message and "offline" in message and "a commit" in message and "--source" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("trouble", "words"),
    [(429, "HTTP 429 (too many requests)"), (500, "HTTP 500 (Internal Server Error)"), (503, "HTTP 503"), (403, "HTTP 403")],
)
def test_an_http_failure_is_one_line(hub: Any, tmp_path: Path, trouble: int, words: str) -> None:
    commit = hub.commit(REPO, FILES)
    hub.trouble = trouble
    for ask in (lambda: resolve_revision(REPO, "main"), lambda: fetch_files(REPO, commit, PATHS, cache_dir=tmp_path / "c")):
        with pytest.raises(HubError) as raised:
            ask()
        assert words in str(raised.value) and REPO in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("trouble", ["truncated", "corrupt"])
@pytest.mark.parametrize("path", PATHS)
def test_bytes_that_are_not_the_file_are_never_given(hub: Any, tmp_path: Path, trouble: str, path: str) -> None:
    commit = hub.commit(REPO, FILES)
    hub.trouble = trouble
    with pytest.raises(HubError, match=r"broke off|is not what the hub names|cannot be had") as raised:
        fetch_files(REPO, commit, [path], cache_dir=tmp_path / "c")
    assert "\n" not in str(raised.value)
    with pytest.raises(HubError):  # a file left in the cache is not trusted the next time either
        fetch_files(REPO, commit, [path], cache_dir=tmp_path / "c")


def test_unknown_names_say_which_of_them_is_unknown(hub: Any, tmp_path: Path) -> None:
    commit = hub.commit(REPO, FILES)
    with pytest.raises(HubError, match="nobody/nothing: the hub has no such data set"):
        resolve_revision("nobody/nothing", "main")
    with pytest.raises(HubError, match="does not know revision 'mian'"):
        resolve_revision(REPO, "mian")
    with pytest.raises(HubError, match=r"does not know test\.jsonl at 000000000000"):
        fetch_files(REPO, "0" * 40, ["test.jsonl"], cache_dir=tmp_path / "c")
    with pytest.raises(HubError, match=r"the hub has no other\.jsonl at"):
        fetch_files(REPO, commit, ["other.jsonl"], cache_dir=tmp_path / "c")


def test_a_hub_that_is_down_is_said(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(HubError, match="'main' cannot be had, the hub cannot be reached"):
            resolve_revision(REPO, "main", endpoint=endpoint)
