"""Files of a hub data set at one commit: a revision resolved, files fetched, bytes checked against the hub's own hashes.

huggingface_hub does the talking (HF_HOME, HF_HUB_OFFLINE, HF_TOKEN and its retries apply); HF_ENDPOINT is read at each call.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo_gsm8k.errors import EnvironmentFailure, HubError
from grpo_gsm8k.runs.storage import file_sha256, storage_error

COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class RawFile:
    """One published file: its path in the data set, where its bytes lie on this machine, and their sha256."""

    path: str
    local: Path
    sha256: str


def resolve_revision(repo: str, revision: str, *, endpoint: str | None = None) -> str:
    """Returns the commit (40 hex digits) that a branch, a tag or a commit of a data set stands for.

    A full commit is returned as it is, without the network. `endpoint` is the hub's address (default: HF_ENDPOINT).
    Raises: HubError when the hub cannot be asked or does not know the revision.
    """
    if COMMIT.fullmatch(revision.lower()):
        return revision.lower()
    from huggingface_hub import HfApi

    try:
        commit = HfApi(endpoint=_endpoint(endpoint)).dataset_info(repo, revision=revision, timeout=30).sha
    except _failures() as error:
        raise _failure(error, repo, f"revision {revision!r}", pinnable=True) from error
    if commit is None or not COMMIT.fullmatch(commit):
        raise HubError(f"{repo}: the hub answered {commit!r} for revision {revision!r}, which is no commit")
    return commit


def fetch_files(
    repo: str, commit: str, paths: Sequence[str], *, cache_dir: Path | None = None, endpoint: str | None = None
) -> list[RawFile]:
    """Returns the files at `paths` of a data set at a commit, in order; what the cache has is not fetched again.

    Raises: HubError when a file cannot be had, or its bytes are not those that the hub names by hash.
    """
    from huggingface_hub import hf_hub_download

    files = []
    for path in paths:
        try:
            local = hf_hub_download(
                repo, path, repo_type="dataset", revision=commit, cache_dir=cache_dir, endpoint=_endpoint(endpoint)
            )
        except _failures() as error:
            raise _failure(error, repo, f"{path} at {commit[:12]}") from error
        files.append(_checked(repo, path, Path(local)))
    return files


def _endpoint(endpoint: str | None) -> str | None:
    return endpoint or os.environ.get("HF_ENDPOINT") or None


def _failures() -> tuple[type[Exception], ...]:
    """Returns what huggingface_hub raises when the hub, the network or the disk is at fault."""
    import httpx
    from huggingface_hub.errors import XetDownloadError

    return OSError, ValueError, RuntimeError, httpx.HTTPError, XetDownloadError


def _checked(repo: str, path: str, local: Path) -> RawFile:
    """Compares a cached file with the hash by which the cache calls it: sha256 for large files, git's own for small ones."""
    blob = local.readlink() if local.is_symlink() else local  # one step only: a blob may itself point into a store of its own
    sha256, named = file_sha256(local), blob.name
    if _SHA256.fullmatch(named):
        same = named == sha256
    elif COMMIT.fullmatch(named):
        content = local.read_bytes()
        same = named == hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    else:
        same = True  # a cache without links keeps no hash; prepare() still checks the ones it knows
    if not same:
        raise HubError(f"{repo}: {path} is not what the hub names by hash; remove {local.resolve()} and run again")
    return RawFile(path, local, sha256)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _failure(error: Exception, repo: str, what: str, pinnable: bool = False) -> EnvironmentFailure:
    """Returns the one-line failure behind whatever huggingface_hub raised; its own messages run over several lines."""
    import httpx
    from huggingface_hub import errors

    way_out = "give a commit (40 hex digits) or --source" if pinnable else "go online, or give --source"
    for cause in _chain(error):
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return HubError(f"{repo}: {what} cannot be had offline (HF_HUB_OFFLINE); {way_out}")
        if isinstance(cause, errors.GatedRepoError):
            return HubError(f"{repo}: the data set is gated; ask for access on the hub and set HF_TOKEN")
        if isinstance(cause, errors.RevisionNotFoundError):
            return HubError(f"{repo}: the hub does not know {what}; give a branch, a tag or a commit that exists")
        if isinstance(cause, errors.EntryNotFoundError) and isinstance(cause, errors.HfHubHTTPError):
            return HubError(f"{repo}: the hub has no {what}; give a commit that has it, or --source")
        if isinstance(cause, errors.RepositoryNotFoundError):
            return HubError(f"{repo}: the hub has no such data set, or it is private (set HF_TOKEN)")
        if isinstance(cause, errors.HfHubHTTPError):
            status = cause.response.status_code
            reason = "too many requests" if status == 429 else cause.response.reason_phrase
            advice = {401: "set HF_TOKEN", 403: "set HF_TOKEN"}.get(status, "check HF_ENDPOINT")
            if status == 429 or status >= 500:
                advice = "try later, or give --source"
            return HubError(f"{repo}: the hub answered HTTP {status} ({reason}) for {what}; {advice}")
        if isinstance(cause, (httpx.ConnectError, httpx.TimeoutException)):
            return HubError(f"{repo}: {what} cannot be had, the hub cannot be reached ({type(cause).__name__}); {way_out}")
        if isinstance(cause, httpx.HTTPError) and not isinstance(cause, OSError):
            return HubError(f"{repo}: the hub broke off while sending {what} ({type(cause).__name__}); run again")
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            return storage_error(Path(cause.filename or "the hub cache"), cause)
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    return HubError(f"{repo}: {what} cannot be had from the hub ({first_line}); {way_out}")
