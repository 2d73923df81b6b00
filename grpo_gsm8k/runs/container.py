"""The container that this process runs in: what kind, from which image, and what its entrypoint saw when it started."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from grpo_gsm8k.runs.storage import file_sha256, write_json

SNAPSHOT = "GRPO_GSM8K_CONTAINER_SNAPSHOT"  # the entrypoint's: the folder of its snapshot
TOGGLES = "GRPO_GSM8K_IMAGE_TOGGLES"  # the entrypoint's: NAME=VALUE of each determinism toggle that it chose
LINK = "container.json"
PODMAN = Path("/run/.containerenv")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def container_kind() -> str | None:
    """Returns docker, podman or kubernetes, or None outside a container."""
    if Path("/.dockerenv").exists():
        return "docker"
    if PODMAN.exists():
        return "podman"
    return "kubernetes" if "KUBERNETES_SERVICE_HOST" in os.environ else None


def read_image() -> dict[str, Any] | None:
    """Returns the image's name, variant, commit, build date and digest as its environment has them, or None outside one.

    No image knows its own digest: `digest` is what IMAGE_DIGEST says, else the one in IMAGE_NAME (name@sha256:…), else what
    podman tells the container, else None; `digest_from` says which.
    """
    digest, source = image_digest()
    if digest is None and "IMAGE_NAME" not in os.environ:
        return None
    keys = {"name": "IMAGE_NAME", "variant": "IMAGE_VARIANT", "commit": "GIT_SHA", "built_at": "BUILD_DATE"}
    return {**{key: os.environ.get(name) or None for key, name in keys.items()}, "digest": digest, "digest_from": source}


def image_digest() -> tuple[str | None, str | None]:
    """Returns (the image's digest, where it was found), or (None, None)."""
    if passed := os.environ.get("IMAGE_DIGEST"):
        return passed, "IMAGE_DIGEST"
    if found := _DIGEST.search(os.environ.get("IMAGE_NAME", "")):
        return found.group(), "IMAGE_NAME"
    try:
        text = PODMAN.read_text(errors="replace")
    except OSError:
        return None, None
    # `image` is the name that it was started by, `imageid` the id of its config.
    found = re.search(rf'^image="[^"]*({_DIGEST.pattern})"', text, re.M)
    return (found.group(1), PODMAN.name) if found else (None, None)


def chosen_by_image() -> set[str]:
    """Returns the determinism toggles that stand as the image's entrypoint chose them."""
    pairs = (word.partition("=") for word in os.environ.get(TOGGLES, "").split())
    return {name for name, _, value in pairs if os.environ.get(name) == value}


def link_snapshot(run: Path, folder: Path) -> None:
    """Writes `container.json` into `folder` (of the run): where this container's start was described, and its files' hashes.

    Nothing is written outside a container of ours. Raises: StorageError.
    """
    place = os.environ.get(SNAPSHOT)
    if not place:
        return
    snapshot = Path(place)
    files = {path.name: file_sha256(path) for path in sorted(snapshot.iterdir())} if snapshot.is_dir() else None
    write_json(folder / LINK, {"snapshot_from_run": os.path.relpath(snapshot, run), "sha256": files})
