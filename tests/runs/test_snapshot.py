"""What a run records of its world, and what it must never record."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo_gsm8k.runs import git
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.redact import REDACTED, is_secret_name, redact_environment, scrub, scrub_arguments
from grpo_gsm8k.runs.snapshot import read_nvidia, write_snapshot

SECRETS = {
    "OPENAI_API_KEY": "abcdefgh12345678",
    "HF_TOKEN": "hf_abcdefghijklmnopqrstuvwxyz",
    "MY_TOKENS": "one,two,three",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI",
    "DB_PASSWORD": "hunter22",
    "PASSWORD": "p4ss",
    "SSH_PRIVATE_KEY": "-----BEGIN OPENSSH PRIVATE KEY-----xyz",
    "HARMLESS_A": "hf_abc123def",
    "HARMLESS_B": "prefix sk-proj-abcdef suffix",
    "HARMLESS_C": "https://user:topsecret@example.org/x",
    "COPY_OF_IT": "Bearer abcdefgh12345678",
}


def test_secrets_are_redacted_by_name_and_by_shape_and_wherever_their_value_stands_again() -> None:
    clean = json.dumps(redact_environment({**SECRETS, "HOME": "/home/me", "TOKENIZERS_PARALLELISM": "false"}))
    for value in (
        "abcdefgh12345678",
        "hf_abc",
        "wJalr",
        "hunter22",
        "p4ss",
        "PRIVATE KEY-----",
        "sk-proj",
        "topsecret",
        "one,two",
    ):
        assert value not in clean
    assert json.loads(clean)["HOME"] == "/home/me"
    assert json.loads(clean)["TOKENIZERS_PARALLELISM"] == "false"
    assert json.loads(clean)["HARMLESS_C"] == f"https://user:{REDACTED}@example.org/x"


@pytest.mark.parametrize("name", ["PATH", "HOME", "PWD", "LANG", "CUDA_VISIBLE_DEVICES", "KEYBOARD", "MONITOR", "AUTHOR"])
def test_harmless_names_are_not_taken_for_secrets(name: str) -> None:
    assert not is_secret_name(name)


def test_names_in_code_are_left_alone_and_arguments_are_scrubbed() -> None:
    code = "from huggingface_hub import hf_hub_download  # sk-learn"
    assert scrub(code, {}) == code
    assert scrub_arguments(["--base_url", "http://me:pw@host/v1", "--x", "hf_abc123"])[1:] == [
        f"http://me:{REDACTED}@host/v1",
        "--x",
        REDACTED,
    ]


def test_the_snapshot_holds_machine_versions_code_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    checkout = make_checkout(tmp_path / "repo")
    (checkout / "__init__.py").write_text("key = 'abcdefgh12345678'\n")
    assert "abcdefgh12345678" in read_state(checkout, monkeypatch).diff
    run = RunDirectory.create(tmp_path, "eval", ["--key", "abcdefgh12345678"])
    write_snapshot(run, [])
    assert b"dirty" in (run.path / "sys/git.json").read_bytes()
    assert REDACTED in (run.path / "sys/dirty.diff").read_text()
    names = {path.name for path in (run.path / "sys").iterdir()}
    assert names >= {"system.json", "nvidia.json", "versions.json", "packages.txt", "git.json", "env.json", "determinism.json"}
    everything = b"".join(path.read_bytes() for path in run.path.rglob("*") if path.is_file())
    for value in ("abcdefgh12345678", "hunter22", "wJalrXUtnFEMI", "topsecret"):
        assert value.encode() not in everything
    assert json.loads((run.path / "sys/versions.json").read_text())["stack"]["torch"].startswith("2.")
    assert json.loads((run.path / "sys/system.json").read_text())["memory_bytes"]["MemTotal"] > 0
    assert any(line.startswith("click==") for line in (run.path / "sys/packages.txt").read_text().split("\n"))
    write_snapshot(run, [])
    assert (run.path / "sys/start-2/system.json").exists()


def test_what_nvidia_smi_says_is_kept_and_its_absence_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_nvidia() == {"present": False, "why": "no nvidia-smi on the PATH"}
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f'#!{sys.executable}\nimport sys\nprint("GPU 0: Test" if sys.argv[1] == "-L" else sys.argv[1:])\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    said = read_nvidia()
    assert said["present"] is True
    assert {"list", "query", "topology", "nvlink", "mig"} <= set(said)
    tool.write_text(f"#!{sys.executable}\nimport sys\nprint('no devices were found'); sys.exit(6)\n")
    assert read_nvidia()["present"] is False


@pytest.fixture(autouse=True)
def fresh_git() -> Iterator[None]:
    """What one test says about git must not be remembered by the next."""
    yield
    git.read_git.cache_clear()


def run_git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def make_checkout(folder: Path) -> Path:
    package = folder / "grpo_gsm8k"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("x = 1\n")
    (folder / ".gitignore").write_text("ignored/\n")
    run_git(folder, "init", "-q", "-b", "main")
    run_git(folder, "add", ".")
    run_git(folder, "commit", "-qm", "first")
    return package


def read_state(package: Path, monkeypatch: pytest.MonkeyPatch) -> git.GitState:
    monkeypatch.setattr(git, "PACKAGE", package)
    git.read_git.cache_clear()
    return git.read_git()


def test_the_dirty_diff_makes_the_commit_into_the_code_that_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = make_checkout(tmp_path / "repo")
    clean = read_state(package, monkeypatch)
    assert (clean.source, clean.branch, clean.dirty, clean.diff) == ("checkout", "main", False, "")
    (package / "__init__.py").write_text("x = 2\n")
    (package / "new.py").write_text("y = 3\n")
    (tmp_path / "repo" / ".env").write_text("API_KEY=abc\n")
    (tmp_path / "repo" / "ignored").mkdir()
    (tmp_path / "repo" / "ignored" / "z.py").write_text("z")
    state = read_state(package, monkeypatch)
    assert state.dirty
    assert state.left_out == [".env (not a source file)"]
    assert run_git(tmp_path / "repo", "status", "--porcelain").count("??") == 2  # our reading changed nothing
    run_git(tmp_path, "clone", "-q", "repo", "again")
    (tmp_path / "patch").write_text(state.diff)
    run_git(tmp_path / "again", "apply", str(tmp_path / "patch"))
    assert (tmp_path / "again/grpo_gsm8k/__init__.py").read_text() == "x = 2\n"
    assert (tmp_path / "again/grpo_gsm8k/new.py").read_text() == "y = 3\n"
    assert not (tmp_path / "again/ignored").exists()


def test_without_a_checkout_the_sha_is_the_baked_one_or_nogit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIT_SHA", raising=False)
    assert read_state(tmp_path, monkeypatch).sha == "nogit"
    monkeypatch.setenv("GIT_SHA", "0123456789abcdef0123456789abcdef01234567")
    assert read_state(tmp_path, monkeypatch).short == "0123456"
    monkeypatch.setenv("GIT_SHA", "0123456789abcdef0123456789abcdef01234567-dirty")
    assert (read_state(tmp_path, monkeypatch).short, read_state(tmp_path, monkeypatch).dirty) == ("0123456", True)
    monkeypatch.setenv("PATH", os.devnull)
    assert read_state(tmp_path, monkeypatch).source == "GIT_SHA"


def test_a_package_installed_inside_somebody_elses_repository_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkout(tmp_path / "repo")
    site = tmp_path / "repo" / "ignored" / "grpo_gsm8k"
    site.mkdir(parents=True)
    (site / "__init__.py").write_text("")
    monkeypatch.delenv("GIT_SHA", raising=False)
    assert read_state(site, monkeypatch).sha == "nogit"


def test_a_repository_without_a_commit_is_nogit_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "grpo_gsm8k"
    package.mkdir()
    (package / "__init__.py").write_text("")
    run_git(tmp_path, "init", "-q")
    run_git(tmp_path, "add", ".")
    monkeypatch.delenv("GIT_SHA", raising=False)
    assert read_state(package, monkeypatch).sha == "nogit"
