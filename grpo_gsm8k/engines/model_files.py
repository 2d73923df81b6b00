"""Which model this is: the sha256 of its files, or the hub commit that names them. Imports neither torch nor vendors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grpo_gsm8k.engines.loading import resolve_model_id
from grpo_gsm8k.runs.storage import digest, file_sha256

PATTERNS = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt", "*.py")


def model_record(model_id: str, revision: str | None, adapter: str | None = None) -> list[dict[str, Any]]:
    """Returns, for a run's data.json, what identifies a model, and its adapter where there is one.

    A folder's files are hashed. A hub model is named by the commit that its tokenizer was loaded at (so load that first).
    """
    source = resolve_model_id(model_id)
    if Path(source).is_dir():
        rows = [_folder_record("model", model_id, Path(source))]
    else:
        commit = _cached_commit(source, revision)
        rows = [{"role": "model", "source": source, "revision": revision, "commit": commit, "sha256": None, "rows": None}]
    return rows if adapter is None else [*rows, _folder_record("adapter", adapter, Path(adapter))]


def _folder_record(role: str, name: str, folder: Path) -> dict[str, Any]:
    found = sorted({path for pattern in PATTERNS for path in folder.glob(pattern) if path.is_file()})
    files = {path.name: file_sha256(path) for path in found}
    return {"role": role, "source": name, "commit": None, "rows": None, "sha256": digest(files), "files": files}


def _cached_commit(repo: str, revision: str | None) -> str | None:
    """The commit of the snapshot folder in which the hub's cache keeps what was loaded."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        found = try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(found, str):
            return Path(found).parent.name
    return None
