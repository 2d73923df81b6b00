"""The image's requirements are the project's own pins, with hashes, and name no server or folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements"
DIRECT = "torch transformers peft trl accelerate datasets huggingface-hub safetensors pyarrow click wandb math-verify".split()


def pins(name: str) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)==([^\s;\\]+)", (REQUIREMENTS / name).read_text(), re.M)
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in found}


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_every_package_of_the_image_has_hashes_and_no_server_is_named(variant: str) -> None:
    text = (REQUIREMENTS / f"image-{variant}.txt").read_text()
    entries = [entry for entry in re.split(r"\n(?=\w)", re.sub(r"^#.*\n", "", text, flags=re.M)) if entry]
    assert len(entries) > 90
    assert [
        entry
        for entry in entries
        if not re.fullmatch(r"[\w.-]+==\S+( ;[^\\]*)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n?", entry)
    ] == []
    assert "://" not in text and "--index" not in text and "--find-links" not in text


def test_the_cpu_image_has_the_versions_that_the_tests_run_with() -> None:
    tested, image = pins("constraints.txt"), pins("image-cpu.txt")
    assert image.pop("torch") == tested["torch"] + "+cpu"
    assert {name: version for name, version in image.items() if tested.get(name, version) != version} == {}
    assert image.keys() - tested.keys() == {"setuptools"}
    assert "vllm" not in image


def test_the_cuda_image_differs_only_where_vllm_asks_for_it() -> None:
    tested, image = pins("constraints.txt"), pins("image-cuda.txt")
    assert {name: image[name] for name in DIRECT} == {name: tested[name] for name in DIRECT}
    assert "vllm" in image
