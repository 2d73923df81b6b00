"""The commit that the running code comes from: of its checkout, of the image it was built into, or "nogit"."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from grpo_gsm8k.errors import InputError

PACKAGE = Path(__file__).resolve().parents[1]
SOURCE_SUFFIXES = frozenset(".py .pyi .toml .yaml .yml .json .sh .txt .md .cfg .ini .j2 .html .css .js .bats .lock".split())
SOURCE_NAMES = frozenset({"Makefile", "Dockerfile", "run"})
MAX_UNTRACKED_BYTES = 1_000_000
# Whatever the user's git is set to, the diff must be one that applies.
DIFF = ("diff", "--binary", "--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/")


@dataclass(frozen=True)
class GitState:
    """`sha` is 40 hex digits, or what GIT_SHA said, or "nogit"; `source` says which of the three.

    `diff` makes the commit into the code that ran.
    """

    sha: str
    source: str
    branch: str | None = None
    dirty: bool = False
    diff: str = ""
    left_out: list[str] = field(default_factory=list)

    @property
    def short(self) -> str:
        """The sha as it stands in a run directory's name."""
        return self.sha[:7] if self.source == "checkout" or len(self.sha) == 40 else self.sha[:12]


def _git(root: Path, *arguments: str, index: str | None = None) -> str:
    command = ["git", "-c", "safe.directory=*", "-C", str(root), *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C", **({"GIT_INDEX_FILE": index} if index else {})}
    done = subprocess.run(command, capture_output=True, timeout=60, env=environment, check=True)
    return done.stdout.decode("utf-8", errors="surrogateescape")


@cache
def read_git() -> GitState:
    """Returns the state of the checkout that this package is tracked in, else of GIT_SHA, else "nogit"; never raises."""
    try:
        root = Path(_git(PACKAGE, "rev-parse", "--show-toplevel").strip())
        _git(PACKAGE, "ls-files", "--error-unmatch", "__init__.py")
        sha = _git(root, "rev-parse", "HEAD").strip()
        branch = _git(root, "rev-parse", "--abbrev-ref", "HEAD").strip()
        diff, left_out = _dirty_diff(root)
    except (OSError, subprocess.SubprocessError):
        baked = "".join(char for char in os.environ.get("GIT_SHA", "") if char.isalnum() or char in "._-")
        sha = baked.removesuffix("-dirty")  # what scripts/build_image.sh adds for code that was not committed
        return GitState(sha, "GIT_SHA", dirty=sha != baked) if sha else GitState("nogit", "none")
    return GitState(sha, "checkout", None if branch == "HEAD" else branch, bool(diff or left_out), diff, left_out)


@cache
def package_digest(package: Path = PACKAGE) -> str:
    """Returns the sha256 of a package's files (names and bytes): by default of the code that runs, with or without git."""
    total = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            total.update(f"{path.relative_to(package)}\0{path.stat().st_size}\0".encode())
            total.update(path.read_bytes())
    return total.hexdigest()


@contextmanager
def checked_out(sha: str, diff: Path | None) -> Iterator[Path]:
    """Gives the body the code of a commit, with `diff` applied, in a temporary worktree of this package's repository.

    Raises: InputError where there is no such repository or commit, or the diff does not apply to it.
    """
    with tempfile.TemporaryDirectory(prefix="grpo_gsm8k_") as folder:
        tree = Path(folder).resolve() / "tree"
        try:
            root = Path(_git(PACKAGE, "rev-parse", "--show-toplevel").strip())
            _git(root, "worktree", "add", "--detach", "--quiet", str(tree), sha)
        except (OSError, subprocess.SubprocessError) as error:
            raise InputError(f"commit {sha} cannot be checked out of the repository of {PACKAGE}: {_why(error)}") from None
        try:
            if diff is not None:
                _apply(tree, diff, sha)
            yield tree
        finally:
            _git(root, "worktree", "remove", "--force", str(tree))


def _apply(tree: Path, diff: Path, sha: str) -> None:
    try:
        _git(tree, "apply", "--index", "--whitespace=nowarn", str(diff.resolve()))
    except subprocess.CalledProcessError as error:
        raise InputError(f"{diff} does not apply to commit {sha}: {_why(error)}") from None


def _why(error: Exception) -> str:
    said = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else str(error)
    return " ".join(said.split()) or "no reason given"


def _dirty_diff(root: Path) -> tuple[str, list[str]]:
    """Returns (the diff from HEAD to the working tree with untracked source files in it, what was left out and why)."""
    untracked, left_out = [], []
    for name in _git(root, "ls-files", "--others", "--exclude-standard", "-z").split("\0"):
        path = root / name
        if not name or not path.is_file():
            continue
        if path.suffix not in SOURCE_SUFFIXES and path.name not in SOURCE_NAMES:
            left_out.append(f"{name} (not a source file)")
        elif path.stat().st_size > MAX_UNTRACKED_BYTES:
            left_out.append(f"{name} (over {MAX_UNTRACKED_BYTES} bytes)")
        else:
            untracked.append(name)
    if not untracked:
        return _git(root, *DIFF, "HEAD"), left_out
    with tempfile.TemporaryDirectory() as folder:
        index = str(Path(folder) / "index")
        shutil.copyfile(_git(root, "rev-parse", "--path-format=absolute", "--git-path", "index").strip(), index)
        _git(root, "add", "--intent-to-add", "--", *untracked, index=index)
        return _git(root, *DIFF, "HEAD", index=index), left_out
