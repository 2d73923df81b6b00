"""What a run knows of its container: its image's digest, the toggles that the image chose, the snapshot of its start."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_gsm8k.runs import container
from grpo_gsm8k.runs.container import image_digest, link_snapshot, read_image
from grpo_gsm8k.runs.determinism import ensure_environment, environment

DOCKER = Path(__file__).resolve().parents[2] / "docker"
DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def _no_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "PODMAN", tmp_path / ".containerenv")
    for name in ("IMAGE_DIGEST", "IMAGE_NAME", container.SNAPSHOT, container.TOGGLES, *environment("strict", 1)):
        monkeypatch.delenv(name, raising=False)


def test_the_digest_is_what_was_passed_else_that_of_the_images_name_else_podmans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert image_digest() == (None, None) and read_image() is None
    (tmp_path / ".containerenv").write_text(f'engine="podman"\nimage="registry/x@{DIGEST}"\nimageid="sha256:{"f" * 64}"\n')
    assert image_digest() == (DIGEST, ".containerenv")
    monkeypatch.setenv("IMAGE_NAME", f"registry/x@sha256:{'a' * 64}")
    assert image_digest() == (f"sha256:{'a' * 64}", "IMAGE_NAME")
    monkeypatch.setenv("IMAGE_DIGEST", "sha256:passed")
    assert image_digest() == ("sha256:passed", "IMAGE_DIGEST")


def test_the_id_of_an_images_config_is_not_taken_for_its_digest(tmp_path: Path) -> None:
    (tmp_path / ".containerenv").write_text(f'image="localhost/x:latest"\nimageid="{DIGEST}"\n')
    assert image_digest() == (None, None)


def test_a_run_outside_a_container_links_no_snapshot_and_one_inside_has_its_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, snapshot = tmp_path / "runs/one", tmp_path / "containers/start"
    (run / "sys").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (snapshot / "system.json").write_text("{}")
    link_snapshot(run, run / "sys")
    assert list((run / "sys").iterdir()) == []
    monkeypatch.setenv(container.SNAPSHOT, str(snapshot))
    link_snapshot(run, run / "sys")
    link = json.loads((run / "sys/container.json").read_bytes())
    assert link == {"snapshot_from_run": "../../containers/start", "sha256": {"system.json": hashlib.sha256(b"{}").hexdigest()}}


def test_a_toggle_is_the_images_as_long_as_it_stands_as_the_image_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(container.TOGGLES, "NVIDIA_TF32_OVERRIDE=0 CUBLAS_WORKSPACE_CONFIG=:4096:8")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for name in ("PYTHONHASHSEED", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, environment("strict", 1)[name])  # so that what is set below is put back
    by = {
        mode: {toggle.name: toggle for toggle in ensure_environment(mode, 1, may_restart=False)} for mode in ("strict", "fast")
    }
    assert by["strict"]["NVIDIA_TF32_OVERRIDE"].decided_by == "environment" and not by["strict"]["NVIDIA_TF32_OVERRIDE"].held
    assert by["strict"]["CUBLAS_WORKSPACE_CONFIG"].decided_by == "image" and by["strict"]["CUBLAS_WORKSPACE_CONFIG"].held
    # Fast mode does not ask for these, but they work where they stand: so they are on record.
    tf32 = by["fast"]["NVIDIA_TF32_OVERRIDE"]
    assert (tf32.asked, tf32.got, tf32.decided_by) == ("as is", "1", "environment")


def test_the_entrypoints_toggles_are_those_of_strict_mode_and_keep_what_is_given() -> None:
    show = '. "$0/env.det.sh"; echo "$GRPO_GSM8K_IMAGE_TOGGLES"; env'
    done = subprocess.run(
        ["bash", "-euc", show, str(DOCKER)],
        env={"PATH": "/usr/bin:/bin", "TOKENIZERS_PARALLELISM": ""},
        capture_output=True,
        text=True,
    )
    words, *lines = done.stdout.splitlines()
    chosen = dict(word.split("=", 1) for word in words.split())
    by_option = {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM"}  # --num_threads sets two, the last was given
    assert chosen == {name: value for name, value in environment("strict", 1).items() if name not in by_option}
    assert "TOKENIZERS_PARALLELISM=" in lines and {f"{name}={value}" for name, value in chosen.items()} <= set(lines)


def test_the_snapshot_can_be_taken_into_any_folder_and_one_that_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpo_gsm8k.runs.snapshot"]
    assert subprocess.run([*command, str(tmp_path / "a/b")]).returncode == 0
    assert {"system.json", "env.json", "packages.txt"} <= {path.name for path in (tmp_path / "a/b").iterdir()}
    (tmp_path / "file").touch()
    refused = subprocess.run([*command, str(tmp_path / "file/b")], capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr.startswith("error: cannot write") and refused.stderr.count("\n") == 1
    assert subprocess.run(command, capture_output=True).returncode == 2
