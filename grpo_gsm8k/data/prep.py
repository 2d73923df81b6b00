"""`data prep`: a pinned data set becomes {train,val,test}.jsonl, a manifest, and a snapshot of the raw files.

A folder is prepared once. Asking again verifies it and changes nothing; asking for anything else in the same folder is
refused. A branch or tag is resolved once: the commit in the manifest (or in the raw snapshot's) holds from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from grpo_gsm8k import __version__
from grpo_gsm8k.data import gym, word_problems
from grpo_gsm8k.data.folders import fill_folder, manifest_bytes, read_manifest
from grpo_gsm8k.data.hub import RawFile, fetch_files, resolve_revision
from grpo_gsm8k.data.jsonl import encode_jsonl, read_file
from grpo_gsm8k.data.prepared import CREATED, MANIFEST, SNAPSHOT, SPLITS, changed_files
from grpo_gsm8k.data.rows import read_rows, to_problems, to_row
from grpo_gsm8k.data.sources import Generated, Published, find_dataset, local_files
from grpo_gsm8k.data.splits import METHOD, hold_out
from grpo_gsm8k.errors import ConfigError, DataError, HubError
from grpo_gsm8k.runs.storage import digest
from grpo_gsm8k.types import Problem

RawSplits = dict[str, list[RawFile]]
Asked = dict[str, Any]
Splits = tuple[dict[str, list[Problem]], dict[str, Any]]  # the problems by split, and what else the manifest says


@dataclass(frozen=True)
class PrepRequest:
    """What is asked of `prepare`.

    `revision`: commit, branch or tag. `source`: a local file or folder in place of the hub. With neither, it is what the
    folder was prepared from, or else the commit that ships with this package.
    `eval_n`: training problems held out (of a data set without a training split, none are); for generated data sets, the
    size of val. `num_train`, `num_test` and `seed` size and seed generated data sets; `mixture` is the gym's: a TOML file or
    what `gym.parse_mixture` takes. `snapshot_dir` None: no raw snapshot (generated data sets never have one).
    """

    out_dir: Path
    dataset: str = "gsm8k"
    eval_n: int = 512
    seed: int = 31415
    revision: str | None = None
    source: Path | None = None
    cache_dir: Path | None = None
    snapshot_dir: Path | None = None
    mixture: Path | Mapping[str, Any] | None = None
    num_train: int | None = None
    num_test: int | None = None
    endpoint: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A prepared folder: its manifest, and whether this call made it (False: it was there, and was verified)."""

    out_dir: Path
    manifest: Mapping[str, Any]
    changed: bool

    @property
    def rows(self) -> dict[str, int]:
        """Rows by split."""
        return {split: file["rows"] for split, file in self.manifest["files"].items()}


def prepare(request: PrepRequest) -> Prepared:
    """Returns the prepared folder, made now or verified.

    Raises: DataError when the folder holds something else than what is asked, or was changed, or a row is bad; ConfigError
    for an option that does not fit; HubError when the hub fails; StorageError. What fails leaves nothing behind.
    """
    dataset = find_dataset(request.dataset)
    if request.eval_n < 0:
        raise ConfigError(f"eval_n is {request.eval_n}; a whole number of at least 0 is needed")
    if isinstance(dataset, Generated):
        _refuse_options(request, dataset.name, ("revision", "source"))
        _refuse_options(request, dataset.name, () if dataset.name == "gym" else ("mixture",))
        return _prepare_generated(request, dataset)
    _refuse_options(request, dataset.name, ("mixture", "num_train", "num_test"))
    if request.source is not None:
        _refuse_options(request, "a local source", ("revision",))
    return _prepare_published(request, dataset)


def _refuse_options(request: PrepRequest, name: str, options: tuple[str, ...]) -> None:
    for option in options:
        if getattr(request, option) is not None:
            raise ConfigError(f"{option} has no meaning for {name}; leave it out")


# --- published data sets ---


def _prepare_published(request: PrepRequest, dataset: Published) -> Prepared:
    there = read_manifest(request.out_dir / MANIFEST)
    unasked = request.source is None and request.revision is None
    source, local = (there["source"], None) if there and unasked else _source(request, dataset, there)
    eval_n = request.eval_n if "train" in dataset.files else 0
    asked: Asked = {"dataset": dataset.name, "source": source, "split": {"eval_n": eval_n, "seed": request.seed}}
    if local is not None:
        asked["raw"] = _listed(local)
    if there is not None:
        _refuse_difference(request.out_dir, asked, there)
        _refuse_changed(request.out_dir, there)
    snapshot = _snapshot(request)
    if request.snapshot_dir and snapshot is not None:
        listed = {} if local is None else {"files": _listed(local)}
        _refuse_difference(request.snapshot_dir, {"dataset": dataset.name, "source": source} | listed, snapshot)
        _refuse_changed(request.snapshot_dir, snapshot)
    if there is not None and (unasked or snapshot is not None or request.snapshot_dir is None):
        return Prepared(request.out_dir, there, changed=False)
    raw = local or _raw_files(request, dataset, source)
    _keep_snapshot(request, dataset, source, raw)
    if there is not None:
        return Prepared(request.out_dir, there, changed=False)
    return _fill(request, asked, lambda: _published_splits(dataset, raw, eval_n, request.seed), local_path=request.source)


def _source(request: PrepRequest, dataset: Published, there: dict[str, Any] | None) -> tuple[dict[str, Any], RawSplits | None]:
    """Returns the manifest's `source`, its revision pinned to a commit, and the raw files where they are local."""
    if request.source is not None:
        return {"kind": "local"}, local_files(request.source, dataset)
    revision = request.revision or dataset.commit
    commit = None
    for manifest in (there, _snapshot(request)):
        pinned = (manifest or {}).get("source", {})
        if commit is None and (pinned.get("repo"), pinned.get("revision")) == (dataset.repo, revision):
            commit = pinned["commit"]
    commit = commit or resolve_revision(dataset.repo, revision, endpoint=request.endpoint)
    return {"kind": "hub", "repo": dataset.repo, "revision": revision, "commit": commit}, None


def _raw_files(request: PrepRequest, dataset: Published, source: Mapping[str, Any]) -> RawSplits:
    """Returns the raw files of a commit: from the snapshot where it has them, else from the hub; known hashes are checked."""
    paths = [path for files in dataset.files.values() for path in files]
    folder, snapshot = request.snapshot_dir, _snapshot(request)
    if folder and snapshot is not None:
        files = [RawFile(file["path"], folder / file["path"], file["sha256"]) for file in snapshot["files"]]
    else:
        files = fetch_files(dataset.repo, source["commit"], paths, cache_dir=request.cache_dir, endpoint=request.endpoint)
    by_path = {file.path: file for file in files}
    for path, sha256 in dataset.sha256.get(source["commit"], {}).items():
        if by_path[path].sha256 != sha256:
            where = f"{dataset.repo}: {path} at {source['commit'][:12]}"
            raise HubError(f"{where} is not the file known by that commit; remove {by_path[path].local} and run again")
    return {split: [by_path[path] for path in files] for split, files in dataset.files.items()}


def _published_splits(dataset: Published, raw: RawSplits, eval_n: int, seed: int) -> Splits:
    splits: dict[str, list[Problem]] = {}
    as_published: dict[str, bool] = {}
    listed = []
    for split, files in raw.items():
        parts = [read_rows(file.local) for file in files]
        listed += [
            {"path": file.path, "sha256": file.sha256, "split": split, "rows": len(part)}
            for file, part in zip(files, parts, strict=True)
        ]
        rows = [row for part in parts for row in part]
        splits[split] = to_problems(rows, dataset.shape, f"{dataset.name}/{split}")
        if split in dataset.rows_sha256:
            columns = (dataset.shape.question, dataset.shape.answer)
            content = encode_jsonl({column: row[column] for column in columns} for _, row in rows)
            as_published[split] = digest(content) == dataset.rows_sha256[split]
    if "train" in splits and eval_n:
        splits["train"], splits["val"] = hold_out(splits["train"], eval_n, seed)
    return splits, {"raw": listed, "published_rows": as_published}


# --- generated data sets ---


def _prepare_generated(request: PrepRequest, dataset: Generated) -> Prepared:
    mixture = _mixture(request) if dataset.name == "gym" else None
    num_train = request.num_train or (mixture and mixture.num_train) or dataset.num_train
    num_test = request.num_test or (mixture and mixture.num_test) or dataset.num_test
    source: dict[str, Any] = {"kind": "generated", "generator": "word_problems", "num_train": num_train, "num_test": num_test}
    if mixture is not None:
        from importlib.metadata import version

        source |= {"generator": f"reasoning-gym {version('reasoning-gym')}", "mixture": mixture.as_spec()}
    asked = {"dataset": dataset.name, "source": source, "split": {"eval_n": request.eval_n, "seed": request.seed}}
    there = read_manifest(request.out_dir / MANIFEST)
    if there is not None:
        _refuse_difference(request.out_dir, asked, there)
        _refuse_changed(request.out_dir, there)
        return Prepared(request.out_dir, there, changed=False)
    sizes = {"test": num_test, "val": request.eval_n, "train": num_train}
    return _fill(request, asked, lambda: _generated_splits(mixture, sizes, request.seed))


def _mixture(request: PrepRequest) -> gym.Mixture:
    if request.mixture is None:
        raise ConfigError("data set gym needs mixture, a .toml file with reasoning-gym data sets, weights and settings")
    if isinstance(request.mixture, Path):
        return gym.load_mixture(request.mixture)
    return gym.parse_mixture(request.mixture)


def _generated_splits(mixture: gym.Mixture | None, sizes: Mapping[str, int], seed: int) -> Splits:
    splits, taken, dropped = {}, set[str](), {}
    for split, num in sizes.items():
        if mixture is None:
            splits[split] = word_problems.generate(split, num, seed)
        else:
            splits[split], dropped[split] = gym.generate_mixture(mixture, split, num, seed, taken)
    return splits, {"raw": []} | ({"dropped_repeats": dropped} if mixture else {})


# --- the folder ---


def _fill(request: PrepRequest, asked: Asked, make: Callable[[], Splits], local_path: Path | None = None) -> Prepared:
    def files() -> dict[str, bytes]:
        splits, extra = make()
        contents = {f"{name}.jsonl": encode_jsonl(map(to_row, splits[name])) for name in SPLITS if splits.get(name)}
        written = {
            name.removesuffix(".jsonl"): {"path": name, "rows": content.count(b"\n"), "sha256": digest(content)}
            for name, content in contents.items()
        }
        split = asked["split"] | {"method": METHOD if asked["source"]["kind"] != "generated" else "generated apart"}
        manifest = {"format": 1} | asked | extra | {"files": written, "split": split}
        created = {"created_at": datetime.now(UTC).isoformat(timespec="seconds"), "package_version": __version__}
        if local_path is not None:
            created["source_path"] = str(local_path.absolute())
        return contents | {CREATED: manifest_bytes(created), MANIFEST: manifest_bytes(manifest)}

    names = [f"{split}.jsonl" for split in SPLITS]
    made = fill_folder(request.out_dir, MANIFEST, names, files)
    manifest = read_manifest(request.out_dir / MANIFEST)
    assert manifest is not None
    if not made:  # another prep was quicker
        _refuse_difference(request.out_dir, asked, manifest)
        _refuse_changed(request.out_dir, manifest)
    return Prepared(request.out_dir, manifest, changed=made)


def _snapshot(request: PrepRequest) -> dict[str, Any] | None:
    return read_manifest(request.snapshot_dir / SNAPSHOT) if request.snapshot_dir else None


def _listed(raw: RawSplits) -> list[dict[str, str]]:
    return [{"path": file.path, "sha256": file.sha256} for files in raw.values() for file in files]


def _keep_snapshot(request: PrepRequest, dataset: Published, source: dict[str, Any], raw: RawSplits) -> None:
    """Copies the raw files, byte for byte, beside a manifest of their own; one that is there must be of the same source."""
    folder = request.snapshot_dir
    if folder is None:
        return
    files = [file for split in raw.values() for file in split]
    manifest = {"format": 1, "dataset": dataset.name, "source": source, "files": _listed(raw)}

    def contents() -> dict[str, bytes]:
        return {file.path: read_file(file.local) for file in files} | {SNAPSHOT: manifest_bytes(manifest)}

    if not fill_folder(folder, SNAPSHOT, [file.path for file in files], contents):
        there = read_manifest(folder / SNAPSHOT)
        assert there is not None
        _refuse_difference(folder, {"dataset": dataset.name, "source": source, "files": _listed(raw)}, there)
        _refuse_changed(folder, there)


# --- what is asked against what is there ---


def _same_source(there: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Two names for one commit are one source: a branch is only how the commit was asked for."""
    return {**there, "revision": None} == {**asked, "revision": None}


def _refuse_difference(folder: Path, asked: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    found = []
    for key, value in asked.items():
        if key != "source":
            found += _differences(key, value, there.get(key))
        elif value["kind"] != there[key]["kind"]:
            found.append(f"source: asked {_source_words(value)}, there {_source_words(there[key])}")
        elif not _same_source(there[key], value):
            found += _differences(key, value, there[key])
    if found:
        raise DataError(f"{folder}: prepared for something else ({'; '.join(found)}); give another folder, or remove this one")


def _source_words(source: Mapping[str, Any]) -> str:
    if source["kind"] == "hub":
        return f"{source['repo']} at {source['commit'][:12]}"
    return str(source.get("generator", "local files"))


def _differences(name: str, asked: Any, there: Any) -> list[str]:
    if isinstance(asked, dict) and isinstance(there, dict):
        keys = sorted((asked.keys() | there.keys()) - {"method"})
        return [line for key in keys for line in _differences(f"{name}.{key}", asked.get(key), there.get(key))]
    if isinstance(asked, list) and isinstance(there, list):
        pairs = [({file["path"]: file["sha256"] for file in files}) for files in (asked, there)]
        return _differences(name, pairs[0], pairs[1])
    return [] if asked == there else [f"{name}: asked {_short(asked)}, there {_short(there)}"]


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 48 else f"{text[:45]}…"


def _refuse_changed(folder: Path, manifest: Mapping[str, Any]) -> None:
    files = manifest["files"]
    changed = changed_files(folder, files.values() if isinstance(files, dict) else files)
    if changed:
        raise DataError(f"{'; '.join(changed)}; restore the file, or remove {folder} to prepare it again")
