"""What a resumed run compares of the machine it finds itself on."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_gsm8k.commands.resume import check_same, read_world


def world_with(folder: Path, gpu: str) -> dict[str, str]:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n[ \"$1\" = -L ] && echo '{gpu}'\nexit 0\n")
    (folder / "nvidia-smi").chmod(0o755)
    return read_world("strict", 1)


def test_another_gpu_of_the_same_kind_is_the_same_world_and_one_of_another_kind_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    first = world_with(tmp_path, "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-11111111-2222-3333-4444-555555555555)")
    same = world_with(tmp_path, "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-99999999-2222-3333-4444-555555555555)")
    other = world_with(tmp_path, "GPU 0: NVIDIA L40S (UUID: GPU-11111111-2222-3333-4444-555555555555)")
    assert check_same("world", first, same, allow_changes=False) == []
    assert check_same("world", first, other, allow_changes=True) == [
        "gpu was 'GPU 0: NVIDIA H100 80GB HBM3' and is 'GPU 0: NVIDIA L40S'"
    ]
