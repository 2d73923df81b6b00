"""`prepare`: pinned once, prepared once, never overwritten, never half done."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grpo_gsm8k.data.jsonl import load_jsonl
from grpo_gsm8k.data.prep import PrepRequest, prepare
from grpo_gsm8k.data.prepared import data_record, file_record, load_split, verify
from grpo_gsm8k.data.sources import SUBJECTS
from grpo_gsm8k.errors import ConfigError, DataError, HubError, StorageError

REPO = "openai/gsm8k"
TRAIN, TEST = "main/train-00000-of-00001.parquet", "main/test-00000-of-00001.parquet"


def _tree(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Returns what is in a folder: inode, mtime and bytes by path."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p.relative_to(folder)): (p.stat().st_ino, p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def _from_hub(tmp_path: Path, **changes: Any) -> PrepRequest:
    request = PrepRequest(tmp_path / "out", eval_n=8, revision="main", cache_dir=tmp_path / "c", snapshot_dir=tmp_path / "raw")
    return replace(request, **changes)


def _local(tmp_path: Path, folder: Path, **changes: Any) -> PrepRequest:
    return replace(PrepRequest(tmp_path / "out", eval_n=8, source=folder, snapshot_dir=tmp_path / "raw"), **changes)


def _splits(out_dir: Path) -> dict[str, Any]:
    return {split: load_split(out_dir, split) for split in ("train", "val", "test")}


def test_the_published_gsm8k_is_prepared_whole(gsm8k_dir: Path, tmp_path: Path) -> None:
    prepared = prepare(PrepRequest(tmp_path / "out", source=gsm8k_dir, snapshot_dir=tmp_path / "raw"))
    assert prepared.rows == {"train": 7473 - 512, "val": 512, "test": 1319}
    assert prepared.manifest["published_rows"] == {"train": True, "test": True}
    assert {file["path"]: (file["sha256"], file["rows"]) for file in prepared.manifest["raw"]} == {
        "train.jsonl": ("17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465", 7473),
        "test.jsonl": ("3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14", 1319),
    }
    for name in ("train.jsonl", "test.jsonl"):
        assert (tmp_path / "raw" / name).read_bytes() == (gsm8k_dir / name).read_bytes()
    splits = _splits(tmp_path / "out")
    published = load_jsonl(gsm8k_dir / "train.jsonl")
    by_index = {int(p.id.split("/")[2][:5]): p for p in splits["train"] + splits["val"]}
    assert [{"question": by_index[i].question, "answer": by_index[i].answer} for i in range(7473)] == published
    assert "\u2028" in by_index[2381].question
    assert all(p.gold.lstrip("-").replace(".", "").isdigit() for p in by_index.values())


def test_hub_parquet_and_local_jsonl_give_identical_files(
    hub: Any, gsm_files: dict[str, bytes], local_gsm: Path, tmp_path: Path
) -> None:
    hub.commit(REPO, gsm_files)
    prepare(_from_hub(tmp_path, out_dir=tmp_path / "a"))
    prepare(_local(tmp_path, local_gsm, out_dir=tmp_path / "b", snapshot_dir=None))
    for name in ("train.jsonl", "val.jsonl", "test.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert _splits(tmp_path / "a") == _splits(tmp_path / "b")


def test_the_snapshot_holds_the_very_bytes_of_the_hub(hub: Any, gsm_files: dict[str, bytes], tmp_path: Path) -> None:
    commit = hub.commit(REPO, gsm_files)
    prepared = prepare(_from_hub(tmp_path))
    assert {path: (tmp_path / "raw" / path).read_bytes() for path in gsm_files} == gsm_files
    source = {"kind": "hub", "repo": REPO, "revision": "main", "commit": commit}
    assert prepared.manifest["source"] == json.loads((tmp_path / "raw" / "snapshot.json").read_bytes())["source"] == source


def test_preparing_again_changes_nothing(hub: Any, gsm_files: dict[str, bytes], tmp_path: Path) -> None:
    hub.commit(REPO, gsm_files)
    assert prepare(_from_hub(tmp_path)).changed
    before, asked = (_tree(tmp_path / "out"), _tree(tmp_path / "raw")), len(hub.requests)
    again = prepare(_from_hub(tmp_path))
    assert not again.changed and again.rows == {"train": 32, "val": 8, "test": 10}
    assert (_tree(tmp_path / "out"), _tree(tmp_path / "raw")) == before
    assert len(hub.requests) == asked


def test_two_folders_prepared_alike_are_alike_but_for_the_time(hub: Any, gsm_files: dict[str, bytes], tmp_path: Path) -> None:
    hub.commit(REPO, gsm_files)
    prepare(_from_hub(tmp_path))
    prepare(_from_hub(tmp_path, out_dir=tmp_path / "other", snapshot_dir=None, cache_dir=tmp_path / "c2"))
    one, two = ({n: c for n, (_, _, c) in _tree(tmp_path / f).items() if n != "created.json"} for f in ("out", "other"))
    assert one == two and {"manifest.json", "train.jsonl", "val.jsonl", "test.jsonl"} <= one.keys()


def test_a_branch_that_moves_stays_pinned(
    hub: Any, gsm_files: dict[str, bytes], tmp_path: Path, parquet_bytes: Callable[[Any], bytes], rows_of: Callable[..., Any]
) -> None:
    first = hub.commit(REPO, gsm_files)
    prepare(_from_hub(tmp_path))
    second = hub.commit(REPO, {**gsm_files, TRAIN: parquet_bytes(rows_of(30))})
    assert prepare(_from_hub(tmp_path)).manifest["source"]["commit"] == first
    # another split of the same snapshot is of the same commit
    other = prepare(_from_hub(tmp_path, out_dir=tmp_path / "more", eval_n=12))
    assert other.manifest["source"]["commit"] == first and other.rows["train"] == 28
    with pytest.raises(DataError, match=f"source.commit: asked {second}, there {first}"):
        prepare(_from_hub(tmp_path, revision=second))


def test_a_prepared_folder_and_a_snapshot_serve_offline(
    hub: Any, gsm_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.commit(REPO, gsm_files)
    prepare(_from_hub(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert not prepare(_from_hub(tmp_path)).changed
    assert prepare(_from_hub(tmp_path, out_dir=tmp_path / "other", cache_dir=tmp_path / "empty", seed=7)).changed
    assert len(hub.requests) == asked
    with pytest.raises(HubError, match="'main' cannot be had offline"):
        prepare(_from_hub(tmp_path, out_dir=tmp_path / "third", snapshot_dir=None))
    assert not (tmp_path / "third").exists()


def test_a_tag_for_the_commit_that_is_there_is_the_same_data(hub: Any, gsm_files: dict[str, bytes], tmp_path: Path) -> None:
    commit = hub.commit(REPO, gsm_files)
    hub.repositories[REPO].refs["v1"] = commit
    prepare(_from_hub(tmp_path))
    assert not prepare(_from_hub(tmp_path, revision="v1")).changed
    assert not prepare(_from_hub(tmp_path, revision=commit)).changed


def test_asking_for_no_source_takes_what_the_folder_holds(local_gsm: Path, tmp_path: Path) -> None:
    prepare(_local(tmp_path, local_gsm))
    assert not prepare(_local(tmp_path, local_gsm, source=None)).changed
    with pytest.raises(DataError, match=r"split\.eval_n: asked 9, there 8"):
        prepare(_local(tmp_path, local_gsm, source=None, eval_n=9))


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"eval_n": 20}, "split.eval_n: asked 20, there 8"),
        ({"seed": 1}, "split.seed: asked 1, there 31415"),
        ({"eval_n": 20, "seed": 1}, "split.eval_n: asked 20, there 8; split.seed: asked 1, there 31415"),
        ({"source": None, "revision": "ab" * 20}, "source: asked openai/gsm8k at abababababab, there local files"),
        (
            {"dataset": "tiny", "source": None},
            "dataset: asked tiny, there gsm8k; source: asked word_problems, there local files",
        ),
    ],
)
def test_something_else_in_the_same_folder_is_refused_with_what_differs(
    local_gsm: Path, tmp_path: Path, changes: dict[str, Any], difference: str
) -> None:
    prepare(_local(tmp_path, local_gsm, snapshot_dir=None))
    before = _tree(tmp_path / "out")
    with pytest.raises(DataError) as raised:
        prepare(_local(tmp_path, local_gsm, snapshot_dir=None, **changes))
    assert f"({difference})" in str(raised.value) and str(tmp_path / "out") in str(raised.value)
    assert _tree(tmp_path / "out") == before


def test_a_source_whose_rows_changed_is_refused(local_gsm: Path, tmp_path: Path) -> None:
    prepare(_local(tmp_path, local_gsm))
    with (local_gsm / "train.jsonl").open("ab") as file:
        file.write(b'{"question": "new?", "answer": "#### 1"}\n')
    with pytest.raises(DataError, match=r"raw\.train\.jsonl: asked [0-9a-f]{45}…, there"):
        prepare(_local(tmp_path, local_gsm))


def test_a_snapshot_of_something_else_is_refused_and_kept(local_gsm: Path, gsm8k_dir: Path, tmp_path: Path) -> None:
    prepare(_local(tmp_path, local_gsm))
    before = _tree(tmp_path / "raw")
    with pytest.raises(DataError, match="raw: prepared for something else"):
        prepare(PrepRequest(tmp_path / "other", source=gsm8k_dir, snapshot_dir=tmp_path / "raw"))
    assert _tree(tmp_path / "raw") == before and not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["train.jsonl", "val.jsonl", "test.jsonl"])
def test_tampering_is_found_by_everyone_who_looks(local_gsm: Path, tmp_path: Path, name: str) -> None:
    prepare(_local(tmp_path, local_gsm))
    assert verify(tmp_path / "out", tmp_path / "raw") == []
    path = tmp_path / "out" / name
    path.write_bytes(path.read_bytes().replace(b"#### 1", b"#### 2", 1).replace(b"pens", b"pans", 1))
    assert [line.split(":")[0] for line in verify(tmp_path / "out")] == [str(path)]
    with pytest.raises(DataError, match=f"{name}: changed since it was prepared"):
        load_split(tmp_path / "out", name.removesuffix(".jsonl"))
    with pytest.raises(DataError, match=f"{name}: changed since it was prepared"):
        prepare(_local(tmp_path, local_gsm))
    path.unlink()
    assert "No such file" in verify(tmp_path / "out")[0]


def test_a_changed_snapshot_is_found(local_gsm: Path, tmp_path: Path) -> None:
    prepare(_local(tmp_path, local_gsm))
    (tmp_path / "raw" / "test.jsonl").write_bytes(b"{}\n")
    assert len(verify(tmp_path / "out", tmp_path / "raw")) == 1
    with pytest.raises(DataError, match="changed since it was prepared"):
        prepare(_local(tmp_path, local_gsm))


def test_a_deleted_snapshot_is_made_again(hub: Any, gsm_files: dict[str, bytes], tmp_path: Path) -> None:
    hub.commit(REPO, gsm_files)
    prepare(_from_hub(tmp_path))
    before = _tree(tmp_path / "out")
    for path in (*(tmp_path / "raw").glob("main/*"), tmp_path / "raw" / "snapshot.json"):
        path.unlink()
    assert not prepare(_from_hub(tmp_path)).changed
    assert verify(tmp_path / "out", tmp_path / "raw") == [] and _tree(tmp_path / "out") == before


_KILLED = """
import sys
from pathlib import Path
import grpo_gsm8k.data.folders as folders
from grpo_gsm8k.data.prep import PrepRequest, prepare
replace, left = Path.replace, [int(sys.argv[3])]
def stop_here(self, target):
    if left[0] == 0:
        print("ready", flush=True)
        sys.stdin.read()
    left[0] -= 1
    return replace(self, target)
folders.Path.replace = stop_here
prepare(PrepRequest(Path(sys.argv[2]), eval_n=8, source=Path(sys.argv[1])))
"""


@pytest.mark.parametrize("renamed", [0, 2, 4])
def test_a_killed_prep_is_done_again_and_was_never_taken_for_whole(local_gsm: Path, tmp_path: Path, renamed: int) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", _KILLED, str(local_gsm), str(out), str(renamed)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(out.glob("*.json*"))) == renamed and not (out / "manifest.json").exists()
    with pytest.raises(DataError, match="not prepared"):
        load_split(out, "train")
    assert prepare(PrepRequest(out, eval_n=8, source=local_gsm)).changed
    assert verify(out) == []
    assert sorted(p.name for p in out.iterdir()) == [
        ".prep.lock", "created.json", "manifest.json", "test.jsonl", "train.jsonl", "val.jsonl"
    ]  # fmt: skip


def test_preps_at_the_same_time_make_one_folder(local_gsm: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda _: prepare(_local(tmp_path, local_gsm)), range(6)))
    assert Counter(prepared.changed for prepared in done) == {True: 1, False: 5}
    assert verify(tmp_path / "out", tmp_path / "raw") == []
    with ThreadPoolExecutor(6) as pool:
        seeds = list(pool.map(lambda seed: _changed(_local(tmp_path, local_gsm, out_dir=tmp_path / "b", seed=seed)), range(6)))
    assert Counter(seeds) == {True: 1, None: 5}
    assert verify(tmp_path / "b") == []


def _changed(request: PrepRequest) -> bool | None:
    try:
        return prepare(request).changed
    except DataError as error:
        assert "split.seed: asked" in str(error)
        return None


@pytest.mark.parametrize("trouble", [500, 429, "truncated", "corrupt"])
def test_a_failing_hub_leaves_no_folder(hub: Any, gsm_files: dict[str, bytes], tmp_path: Path, trouble: int | str) -> None:
    commit = hub.commit(REPO, gsm_files)
    hub.trouble = trouble
    with pytest.raises(HubError):
        prepare(_from_hub(tmp_path, revision=commit))
    assert not (tmp_path / "out").exists() and not (tmp_path / "raw").exists()
    hub.trouble = None
    assert prepare(_from_hub(tmp_path, revision=commit, cache_dir=tmp_path / "fresh")).changed


def test_a_bad_row_leaves_no_folder(local_gsm: Path, tmp_path: Path) -> None:
    with (local_gsm / "test.jsonl").open("ab") as file:
        file.write(b'{"question": "new?", "answer": "none"}\n')
    with pytest.raises(DataError, match=r"test\.jsonl:11: no '####'"):
        prepare(_local(tmp_path, local_gsm, snapshot_dir=None))
    assert not (tmp_path / "out").exists()


def test_other_bytes_under_a_known_commit_are_refused(hub: Any, gsm_files: dict[str, bytes], tmp_path: Path) -> None:
    hub.commit_as(REPO, gsm_files, "e53f048856ff4f594e959d75785d2c2d37b678ee")
    with pytest.raises(HubError, match=r"main/train.* at e53f048856ff is not the file known by that commit"):
        prepare(_from_hub(tmp_path, revision="e53f048856ff4f594e959d75785d2c2d37b678ee"))
    assert not (tmp_path / "out").exists()


def test_files_of_somebody_else_are_never_overwritten(local_gsm: Path, tmp_path: Path) -> None:
    before = _tree(local_gsm)
    with pytest.raises(DataError, match=r"holds train\.jsonl but no manifest\.json"):
        prepare(_local(tmp_path, local_gsm, out_dir=local_gsm))
    with pytest.raises(DataError, match=r"holds train\.jsonl but no snapshot\.json"):
        prepare(_local(tmp_path, local_gsm, snapshot_dir=local_gsm))
    assert _tree(local_gsm) == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="this is a file"):
        prepare(_local(tmp_path, local_gsm, out_dir=tmp_path / "file", snapshot_dir=None))


def test_a_folder_that_cannot_be_written_is_the_environments_failure(local_gsm: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write"):
        prepare(_local(tmp_path, local_gsm, out_dir=tmp_path / "file" / "under", snapshot_dir=None))


_FULL = """
import resource, signal, sys
from pathlib import Path
from grpo_gsm8k.data.prep import PrepRequest, prepare
from grpo_gsm8k.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    prepare(PrepRequest(Path(sys.argv[2]), eval_n=8, source=Path(sys.argv[1])))
except StorageError as error:
    sys.exit(str(error))
"""


def test_a_write_that_fails_half_way_leaves_no_folder(local_gsm: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _FULL, str(local_gsm), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == f"cannot write {tmp_path / 'out'}: File too large; give a folder that can be written\n"
    assert not (tmp_path / "out").exists()


def test_a_whole_folder_that_cannot_be_written_serves(local_gsm: Path, tmp_path: Path) -> None:
    prepare(_local(tmp_path, local_gsm, snapshot_dir=None))
    (tmp_path / "out" / ".prep.lock").unlink()  # as in an image that was built from the files alone
    (tmp_path / "out").chmod(0o555)
    try:
        assert not prepare(_local(tmp_path, local_gsm, snapshot_dir=None)).changed
        assert not (tmp_path / "out" / ".prep.lock").exists()
    finally:
        (tmp_path / "out").chmod(0o755)


@pytest.mark.parametrize("eval_n", [-1, 40, 41])
def test_an_impossible_validation_size_says_what_is_allowed(local_gsm: Path, tmp_path: Path, eval_n: int) -> None:
    with pytest.raises(ConfigError, match=f"eval_n is {eval_n}; .*0"):
        prepare(_local(tmp_path, local_gsm, eval_n=eval_n, snapshot_dir=None))
    assert not (tmp_path / "out").exists()


def test_a_single_file_is_the_training_split(local_gsm: Path, tmp_path: Path) -> None:
    prepared = prepare(_local(tmp_path, local_gsm / "train.jsonl"))
    assert prepared.rows == {"train": 32, "val": 8}
    with pytest.raises(DataError, match=r"unknown split 'test'.*\(known: train, val\)"):
        load_split(tmp_path / "out", "test")


def test_a_split_that_is_there_twice_or_not_at_all_is_said(local_gsm: Path, tmp_path: Path) -> None:
    (local_gsm / "train.parquet").write_bytes(b"x")
    with pytest.raises(DataError, match=r"train split is there twice \(train\.jsonl and train\.parquet\)"):
        prepare(_local(tmp_path, local_gsm))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no train\.jsonl, train\.parquet"):
        prepare(_local(tmp_path, tmp_path / "empty"))
    with pytest.raises(DataError, match="no such file or folder"):
        prepare(_local(tmp_path, tmp_path / "nowhere"))


def test_unknown_data_sets_and_options_without_meaning_are_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown data set 'gms8k'; did you mean 'gsm8k'"):
        prepare(PrepRequest(tmp_path / "out", dataset="gms8k"))
    with pytest.raises(ConfigError, match="revision has no meaning for tiny"):
        prepare(PrepRequest(tmp_path / "out", dataset="tiny", revision="main"))
    with pytest.raises(ConfigError, match="mixture has no meaning for gsm8k"):
        prepare(PrepRequest(tmp_path / "out", mixture={}))
    with pytest.raises(ConfigError, match="needs mixture"):
        prepare(PrepRequest(tmp_path / "out", dataset="gym"))


def test_the_tiny_data_set_is_prepared_like_any_other(tmp_path: Path) -> None:
    request = PrepRequest(tmp_path / "out", dataset="tiny", eval_n=20, num_train=100, num_test=30)
    assert prepare(request).rows == {"train": 100, "val": 20, "test": 30}
    assert not prepare(request).changed
    splits = _splits(tmp_path / "out")
    assert len({problem.question for split in splits.values() for problem in split}) == 150
    with pytest.raises(DataError, match=r"source\.num_train: asked 99, there 100"):
        prepare(replace(request, num_train=99))


def test_math_and_math500_come_from_the_hub(hub: Any, tmp_path: Path, parquet_bytes: Callable[[Any], bytes]) -> None:
    names = {subject: subject.replace("_", " ").title().replace("And", "&") for subject in SUBJECTS}
    files = {
        f"{subject}/{split}-00000-of-00001.parquet": parquet_bytes(
            [
                {
                    "problem": f"{split} {name} {n}?",
                    "level": "Level 2",
                    "type": name,
                    "solution": rf"It is $\boxed{{\frac{{{n}}}{{7}}}}$.",
                }
                for n in range(4)
            ]
        )
        for subject, name in names.items()
        for split in ("train", "test")
    }
    commit = hub.commit("EleutherAI/hendrycks_math", files)
    prepared = prepare(_from_hub(tmp_path, dataset="math", revision=commit, eval_n=5))
    assert prepared.rows == {"train": 23, "val": 5, "test": 28}
    test = load_split(tmp_path / "out", "test")
    assert test[5].id.startswith("math/test/counting_and_probability/00001-")
    assert (test[5].gold, test[5].meta) == (r"\frac{1}{7}", {"type": "Counting & Probability", "level": "Level 2"})

    row = {
        "problem": "p?",
        "solution": r"\boxed{3}",
        "answer": "3",
        "subject": "Algebra",
        "level": 2,
        "unique_id": "test/a/1.json",
    }
    commit = hub.commit("HuggingFaceH4/MATH-500", {"test.jsonl": json.dumps(row).encode() + b"\n"})
    request = PrepRequest(tmp_path / "500", dataset="math500", revision=commit, cache_dir=tmp_path / "c")
    assert prepare(request).rows == {"test": 1}
    assert load_split(tmp_path / "500", "test")[0].gold == "3"
    assert not prepare(request).changed


_PREPARE = """
import sys
from pathlib import Path
from grpo_gsm8k.data.prep import PrepRequest, prepare
prepare(PrepRequest(Path(sys.argv[2]), eval_n=50, source=Path(sys.argv[1])))
heavy = {"torch", "transformers", "datasets", "vllm", "huggingface_hub", "pyarrow", "reasoning_gym"} & set(sys.modules)
assert not heavy, heavy
"""


def test_what_is_held_out_does_not_depend_on_order_or_hash_seed(gsm8k_dir: Path, tmp_path: Path) -> None:
    lines = (gsm8k_dir / "train.jsonl").read_bytes().split(b"\n")[:300]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (tmp_path / "b.jsonl").write_bytes(b"\n".join(reversed(lines)) + b"\n")
    for name, hash_seed in (("a", "0"), ("b", "1")):
        command = [sys.executable, "-c", _PREPARE, str(tmp_path / f"{name}.jsonl"), str(tmp_path / name)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": hash_seed})
    a, b = ({problem.question for problem in load_split(tmp_path / name, "val")} for name in ("a", "b"))
    assert a == b and len(a) == 50


def test_a_larger_validation_set_holds_out_the_same_problems_and_more(gsm8k_dir: Path, tmp_path: Path) -> None:
    for eval_n in (512, 800):
        prepare(PrepRequest(tmp_path / str(eval_n), source=gsm8k_dir, eval_n=eval_n))
    small, large = ({problem.id for problem in load_split(tmp_path / n, "val")} for n in ("512", "800"))
    assert len(small) == 512 and len(large) == 800 and small < large
    other = prepare(PrepRequest(tmp_path / "seed", source=gsm8k_dir, seed=1))
    assert len(small & {p.id for p in load_split(other.out_dir, "val")}) < 100


def test_a_question_asked_twice_never_is_on_both_sides(tmp_path: Path, rows_of: Callable[..., Any]) -> None:
    rows = [
        {**row, "question": row["question"].upper() if twice else row["question"]} for twice in (0, 1) for row in rows_of(30)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(PrepRequest(tmp_path / "out", source=tmp_path / "rows.jsonl", eval_n=20))
    train, val = ({p.question.casefold() for p in load_split(tmp_path / "out", split)} for split in ("train", "val"))
    assert not train & val and len(val) == 10
    with pytest.raises(ConfigError, match="cannot make up that number; use 20"):
        prepare(PrepRequest(tmp_path / "odd", source=tmp_path / "rows.jsonl", eval_n=21))


def test_a_run_records_each_file_it_read(hub: Any, gsm_files: dict[str, bytes], local_gsm: Path, tmp_path: Path) -> None:
    commit = hub.commit(REPO, gsm_files)
    prepare(_from_hub(tmp_path))
    (record,) = data_record(tmp_path / "out", ("val",))
    assert (record["source"], record["revision"], record["commit"], record["rows"]) == (REPO, "main", commit, 8)
    assert record["sha256"] == hashlib.sha256((tmp_path / "out" / "val.jsonl").read_bytes()).hexdigest()
    assert [file["path"] for file in record["raw"]] == [TRAIN, TEST] and len(data_record(tmp_path / "out")) == 3
    own = file_record(local_gsm / "test.jsonl")
    assert (own["rows"], own["source"]) == (10, "local")
    assert own["sha256"] == hashlib.sha256((local_gsm / "test.jsonl").read_bytes()).hexdigest()


@pytest.mark.parametrize("text", ['{"format": 1', '{"format": 1}', "[]", '{"format": 2, "files": {}}'])
def test_a_broken_manifest_is_said(local_gsm: Path, tmp_path: Path, text: str) -> None:
    prepare(_local(tmp_path, local_gsm))
    (tmp_path / "out" / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json: not a manifest of format 1"):
        verify(tmp_path / "out")


def test_verifying_a_prepared_folder_is_quick(gsm8k_dir: Path, tmp_path: Path) -> None:
    request = PrepRequest(tmp_path / "out", source=gsm8k_dir, snapshot_dir=tmp_path / "raw")
    prepare(request)
    start = time.perf_counter()
    prepare(request)
    assert time.perf_counter() - start < 2.0
