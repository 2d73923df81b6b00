"""The RunPod template, the SkyPilot task and the Kubernetes Job: one image, known variables, commands that our CLI takes.

RUNPOD_FIELDS is written by hand after the fields of `POST /v1/templates` in RunPod's published REST reference. What SkyPilot's
and Kubernetes' own validators say is asked with the commands in docs/containers.md.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_gsm8k.cli import main
from grpo_gsm8k.runs.redact import is_secret_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "containers.md").read_text(encoding="utf-8")
RUNPOD = json.loads((ROOT / "docker" / "runpod-template.json").read_text(encoding="utf-8"))
SKY = yaml.safe_load((ROOT / "docker" / "skypilot.yaml").read_text(encoding="utf-8"))
CLAIM, JOB = yaml.safe_load_all((ROOT / "docker" / "kubernetes-job.yaml").read_text(encoding="utf-8"))
POD = JOB["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
RUNPOD_FIELDS: dict[str, type] = {
    "name": str,
    "imageName": str,
    "category": str,
    "containerDiskInGb": int,
    "containerRegistryAuthId": str,
    "dockerEntrypoint": list,
    "dockerStartCmd": list,
    "env": dict,
    "isPublic": bool,
    "isServerless": bool,
    "ports": list,
    "readme": str,
    "volumeInGb": int,
    "volumeMountPath": str,
}
ASKED_FOR = (
    "VSCODE_TUNNEL_NAME XDG_CONFIG_HOME VSCODE_AGENT_FOLDER UV_PROJECT_ENVIRONMENT XDG_CACHE_HOME HF_HOME PIP_CACHE_DIR "
    "GIT_CONFIG_GLOBAL"
).split()


def sky_command() -> list[str]:
    """The words of the `docker run` in the SkyPilot task; the last is the script."""
    words = shlex.split(SKY["run"].replace("\\\n", " "), comments=False)
    assert words[:2] == ["docker", "run"]
    return words


SCRIPTS = {"skypilot": sky_command()[-1], "kubernetes": CONTAINER["args"][-1]}


def test_the_runpod_template_has_the_fields_of_runpods_api_and_no_others() -> None:
    assert {key: type(value) for key, value in RUNPOD.items()}.items() <= RUNPOD_FIELDS.items()
    assert {"name", "imageName"} <= RUNPOD.keys()
    assert RUNPOD["category"] in ("NVIDIA", "AMD", "CPU")
    assert RUNPOD["volumeMountPath"] == "/workspace"
    assert RUNPOD["dockerEntrypoint"] == [], "the image's own entrypoint runs"
    assert all(isinstance(value, str) for value in RUNPOD["env"].values())
    assert len(RUNPOD["env"]) <= 50, "RunPod's limit"


def test_the_three_take_one_image() -> None:
    images = {RUNPOD["imageName"], SKY["envs"]["IMAGE"], CONTAINER["image"]}
    assert images == {"ghcr.io/OWNER/grpo_gsm8k:latest"}
    assert images.pop() in PAGE


def test_every_variable_of_a_template_is_explained_on_the_page() -> None:
    named = {*RUNPOD["env"], *SKY["envs"], *SKY["secrets"], *(item["name"] for item in CONTAINER["env"])}
    assert set(ASKED_FOR) <= RUNPOD["env"].keys()
    assert {name for name in named if f"`{name}`" not in PAGE} == set()


def test_every_variable_that_the_entrypoint_reads_is_explained_on_the_page() -> None:
    header = (ROOT / "docker" / "entrypoint.sh").read_text(encoding="utf-8").partition("set -euo pipefail")[0]
    read = set(re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b", header)) | {"PYTHONHASHSEED", "TMPDIR"}
    assert len(read) > 15
    assert {name for name in read if f"`{name}`" not in PAGE} == set()


def test_what_a_pod_keeps_lies_on_its_volume() -> None:
    places = {name: RUNPOD["env"][name] for name in ASKED_FOR if name != "VSCODE_TUNNEL_NAME"}
    assert {name for name, place in places.items() if not place.startswith("/workspace/")} == set()


def test_no_template_holds_a_secret() -> None:
    for name, value in RUNPOD["env"].items():
        if is_secret_name(name):
            assert value == f"{{{{ RUNPOD_SECRET_{name} }}}}"
    assert set(SKY["secrets"].values()) == {""}
    for item in CONTAINER["env"]:
        assert is_secret_name(item["name"]) == ("valueFrom" in item)


def test_the_kubernetes_pod_can_write_where_it_must_and_nowhere_else() -> None:
    mounts = {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert mounts.keys() == {"/workspace", "/tmp", "/dev/shm"}
    assert set(mounts.values()) == volumes.keys()
    assert volumes[mounts["/workspace"]]["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"] is True
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert "command" not in CONTAINER, "the image's own entrypoint runs"


def test_skypilot_and_kubernetes_run_the_same_script() -> None:
    lines = {name: [line.strip() for line in script.strip().splitlines()] for name, script in SCRIPTS.items()}
    assert lines["skypilot"] == lines["kubernetes"]
    assert sky_command()[-4:-1] == ["$IMAGE", "bash", "-c"]
    assert CONTAINER["args"][:2] == ["bash", "-c"]


def test_every_command_of_the_script_is_one_that_the_cli_takes(capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"grpo-gsm8k ([^>|\n]+)", SCRIPTS["kubernetes"])
    assert [command.split()[0] for command in commands] == ["doctor", "runs", "eval", "eval"]
    presets = {SKY["envs"]["PRESET"], next(item["value"] for item in CONTAINER["env"] if item["name"] == "PRESET")}
    assert len(presets) == 1
    start = shlex.split(commands[-1].replace("$PRESET", presets.pop()))
    assert main([*start, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["values"]["model_id"] == "Qwen/Qwen2.5-Math-1.5B"
    assert main([*shlex.split(commands[2]), "--help"]) == 0


def run_script(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    kept: dict[str, Any] = {**os.environ, "PATH": tools, **environment}
    return subprocess.run(
        ["bash", "-c", SCRIPTS["kubernetes"]], capture_output=True, text=True, timeout=240, env=kept, cwd=folder
    )


@pytest.mark.slow
def test_the_script_starts_a_run_and_takes_up_one_that_was_stopped(tmp_path: Path) -> None:
    (tmp_path / "few.toml").write_text('command = "eval"\nmodel_id = "tiny"\ndataset = "tiny"\nlimit = 2\nmax_new_tokens = 8\n')
    first = run_script(tmp_path, PRESET="few.toml")
    assert first.returncode == 0, first.stdout + first.stderr
    (status,) = (tmp_path / "artifacts" / "runs").glob("*/status.json")
    said = json.loads(status.read_text())
    status.write_text(json.dumps({**said, "state": "interrupted", "reason": "SIGTERM", "exit_code": 143}))
    resumed = run_script(tmp_path, PRESET="few.toml")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    said = json.loads(status.read_text())
    assert (said["state"], len(said["starts"])) == ("completed", 2)


def test_bad_input_has_the_exit_code_that_ends_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    (rule, _) = JOB["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [main(["eval", "--config", "no-such-preset"])]
    assert "no-such-preset" in capsys.readouterr().err
