"""The named data sets: where each is published, at which commit, in which files, and how its rows are read.

Raises nothing on import and fetches nothing: `prep.py` does. Hashes are listed
where they are known: of `openai/gsm8k`'s files at one commit, and of GSM8K's rows as its authors first published them (JSONL).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from grpo_gsm8k.data.hub import RawFile
from grpo_gsm8k.data.rows import Row, RowShape, last_boxed
from grpo_gsm8k.errors import DataError, unknown_name
from grpo_gsm8k.rewards.numbers import gold_number
from grpo_gsm8k.runs.storage import file_sha256

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
GSM8K_COMMIT = "740312add88f781978c0658806c59bc2815b9866"
_GSM8K_SHA256 = {
    "main/train-00000-of-00001.parquet": "ea82612ea9582142387730c793eb67d3b12849002bc0b7fa6f8efafa7351419d",
    "main/test-00000-of-00001.parquet": "ee7b8da9e381df27b9e3f7758a159ab2bdaa4dbaa910546cbbc47e0cb44e4f59",
}


@dataclass(frozen=True)
class Published:
    """A data set on the hub. `files` are its paths by split, `commit` the pin that ships, `sha256` by commit and path.

    `rows_sha256`, by split, is the hash of the rows' JSONL as first published, where that is known.
    """

    name: str
    repo: str
    commit: str
    files: Mapping[str, tuple[str, ...]]
    shape: RowShape
    sha256: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    rows_sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Generated:
    """A data set made here from a seed; `num_train` and `num_test` are its sizes unless others are asked for."""

    name: str
    num_train: int
    num_test: int


def _gsm8k_gold(row: Row) -> str:
    return gold_number(row["answer"])


def _math_gold(row: Row) -> str:
    return last_boxed(row["solution"])


def _math500_gold(row: Row) -> str:
    if not isinstance(row.get("answer"), str) or not row["answer"].strip():
        raise ValueError("no 'answer'; a MATH-500 row gives its final answer there")
    return str(row["answer"])


_REGISTRY: tuple[Published | Generated, ...] = (
    Published(
        name="gsm8k",
        repo="openai/gsm8k",
        commit=GSM8K_COMMIT,
        files={split: (f"main/{split}-00000-of-00001.parquet",) for split in ("train", "test")},
        shape=RowShape("question", "answer", _gsm8k_gold),
        sha256={"e53f048856ff4f594e959d75785d2c2d37b678ee": _GSM8K_SHA256},
        rows_sha256={
            "train": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
            "test": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
        },
    ),
    Published(
        name="math",
        repo="EleutherAI/hendrycks_math",
        commit="21a5633873b6a120296cce3e2df9d5550074f4a3",
        files={s: tuple(f"{subject}/{s}-00000-of-00001.parquet" for subject in SUBJECTS) for s in ("train", "test")},
        shape=RowShape("problem", "solution", _math_gold, group="type", meta=("type", "level")),
    ),
    Published(
        name="math500",
        repo="HuggingFaceH4/MATH-500",
        commit="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        files={"test": ("test.jsonl",)},
        shape=RowShape("problem", "solution", _math500_gold, meta=("subject", "level", "unique_id")),
    ),
    Generated("tiny", num_train=20_000, num_test=1_000),
    Generated("gym", num_train=10_000, num_test=500),
)
DATASETS: Mapping[str, Published | Generated] = MappingProxyType({dataset.name: dataset for dataset in _REGISTRY})


def find_dataset(name: str) -> Published | Generated:
    """Returns the data set of that name. Raises: DataError naming the nearest and all."""
    if name not in DATASETS:
        raise DataError(unknown_name("data set", name, DATASETS))
    return DATASETS[name]


def local_files(source: Path, dataset: Published) -> dict[str, list[RawFile]]:
    """Returns the data files of a local file or folder by split, hashed.

    A file is the training split, unless "test" is a word of its name and "train" is not (`test.jsonl`, `gsm8k_test.jsonl`,
    `test-00000-of-00001.parquet`) or the data set has no training split: then it is the test split, and nothing of it is held
    out. In a folder, a split is in the files of the hub's own layout (as a raw snapshot has them), or in `<split>.jsonl`,
    `<split>.parquet` or `<split>-*.parquet`.
    Raises: DataError when nothing is found, a split is there twice, or a path cannot be read.
    """
    try:
        return _local_files(source, dataset)
    except (OSError, RuntimeError) as error:  # RuntimeError: pathlib's word for a loop of links
        raise DataError(f"{source}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _local_files(source: Path, dataset: Published) -> dict[str, list[RawFile]]:
    if source.is_file():
        return {_split_of_file(source, dataset): [_local(source.name, source)]}
    if not source.is_dir():
        with contextlib.suppress(FileNotFoundError):
            source.stat()  # a loop of links is neither file nor folder, and says so here
        raise DataError(
            f"{source}: no such file or folder; --source is a .jsonl or .parquet file, or a folder with train and test"
        )
    found = {}
    for split, published in dataset.files.items():
        layouts = [
            _present(source, published),
            _present(source, (f"{split}.jsonl",)),
            _present(source, (f"{split}.parquet",)) + sorted(source.glob(f"{split}-*.parquet")),
        ]
        layouts = [layout for i, layout in enumerate(layouts) if layout and layout not in layouts[:i]]
        if len(layouts) > 1:
            names = " and ".join(str(layout[0].relative_to(source)) for layout in layouts)
            raise DataError(f"{source}: the {split} split is there twice ({names}); keep one, or give the file itself")
        if layouts:
            found[split] = [_local(path.relative_to(source).as_posix(), path) for path in layouts[0]]
        if layouts and layouts[0][0] == source / published[0] and len(layouts[0]) < len(published):
            missing = next(path for path in published if not os.path.lexists(source / path))
            raise DataError(f"{source}: {missing} is missing; {dataset.name} needs all of {', '.join(published)}")
    if not found:
        raise DataError(f"{source}: no {' or '.join(f'{s}.jsonl, {s}.parquet' for s in dataset.files)} in this folder")
    return found


def _present(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """A link that leads nowhere is present: to pass over it would drop its split without a word."""
    return [folder / name for name in names if os.path.lexists(folder / name)]


def _split_of_file(source: Path, dataset: Published) -> str:
    words = set(re.split(r"[^a-z0-9]+", source.stem.lower()))
    is_test = "train" not in dataset.files or ("test" in words and "train" not in words)
    return "test" if is_test else "train"


def _local(name: str, path: Path) -> RawFile:
    try:
        return RawFile(name, path, file_sha256(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
