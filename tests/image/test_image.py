"""The image, by running it. `make test-image` builds it first; nothing here is run without that."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

pytestmark = pytest.mark.image

DIGEST = "sha256:" + "5" * 64
SECRETS = {"HF_TOKEN": "hf_thisIsNoRealTokenAtAll", "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567"}
TRAINING = "grpo --config grpo-tiny --wandb disabled --max_steps 24 --save_every 6 --eval_every 24 --eval_examples 8".split()


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def with_variables(**variables: str) -> tuple[str, ...]:
    return tuple(part for name, value in variables.items() for part in ("--env", f"{name}={value}"))


@pytest.fixture(scope="module")
def evaluated(new_workspace: Callable[[], Any]) -> Any:
    """A workspace in which the tiny model was evaluated by a container without a network, with secrets in its environment."""
    workspace = new_workspace()
    options = with_variables(**SECRETS, IMAGE_DIGEST=DIGEST, NVIDIA_TF32_OVERRIDE="1")
    done = workspace.run("python", "-m", "grpo_gsm8k.cli", "eval", "--limit", "8", "--wandb", "offline", options=options)
    assert done.returncode == 0, done.stderr
    return workspace


def test_the_default_command_is_help(workspace: Any) -> None:
    done = workspace.run()
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: grpo-gsm8k") and "expert-iteration" in done.stdout
    assert workspace.run("grpo-gsm8k", "eval", "--help").stdout.startswith("Usage: grpo-gsm8k eval")


def test_an_evaluation_leaves_its_run_on_the_mount_and_every_file_is_the_callers(evaluated: Any) -> None:
    [run] = evaluated.runs()
    assert read_json(run / "status.json")["state"] == "completed"
    assert read_json(run / "result.json")
    owner = evaluated.path.stat().st_uid
    assert {path.lstat().st_uid for path in evaluated.path.rglob("*")} == {owner}


def test_the_run_has_the_images_digest_and_commit(evaluated: Any) -> None:
    [run] = evaluated.runs()
    assert read_json(run / "command.json")["image_digest"] == DIGEST
    seen = read_json(run / "sys/system.json")["image"]
    assert seen["digest_from"] == "IMAGE_DIGEST" and seen["variant"] == "cpu"
    assert seen["commit"].startswith(read_json(run / "sys/git.json")["sha"]) and seen["built_at"].endswith("Z")


def test_the_run_links_the_snapshot_of_its_containers_start(evaluated: Any) -> None:
    [run] = evaluated.runs()
    [snapshot] = (evaluated.path / "artifacts/containers").iterdir()
    link = read_json(run / "sys/container.json")
    assert (run / link["snapshot_from_run"]).resolve() == snapshot
    for name in ("system.json", "nvidia.json", "versions.json", "packages.txt", "env.json"):
        assert link["sha256"][name] == hashlib.sha256((snapshot / name).read_bytes()).hexdigest()
    assert (snapshot / "packages.txt").read_bytes() == (run / "sys/packages.txt").read_bytes()


def test_toggles_are_strict_by_default_and_one_that_is_given_is_kept_and_recorded(evaluated: Any) -> None:
    [run] = evaluated.runs()
    toggles = {row["name"]: row for row in read_json(run / "sys/determinism.json")}
    assert (toggles["PYTHONHASHSEED"]["got"], toggles["PYTHONHASHSEED"]["decided_by"]) == ("0", "image")
    assert (toggles["CUBLAS_WORKSPACE_CONFIG"]["got"], toggles["CUBLAS_WORKSPACE_CONFIG"]["decided_by"]) == (":4096:8", "image")
    tf32 = toggles["NVIDIA_TF32_OVERRIDE"]
    assert (tf32["got"], tf32["decided_by"], tf32["held"]) == ("1", "environment", False)


def test_secrets_of_the_environment_are_in_no_file(evaluated: Any) -> None:
    files = [path for path in evaluated.path.rglob("*") if path.is_file() and not path.is_symlink()]
    [snapshot] = (evaluated.path / "artifacts/containers").iterdir()
    assert set(SECRETS) <= read_json(snapshot / "env.json").keys()
    for secret in SECRETS.values():
        assert [path for path in files if secret.encode() in path.read_bytes()] == []


def test_what_is_given_for_a_place_is_kept_and_the_rest_lies_under_the_workspace(workspace: Any) -> None:
    options = with_variables(HF_HOME="/workspace/models", UV_PROJECT_ENVIRONMENT="/workspace/env")
    done = workspace.run("env", options=options)
    places = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    assert places["HF_HOME"] == "/workspace/models" and places["UV_PROJECT_ENVIRONMENT"] == "/workspace/env"
    assert places["PIP_CACHE_DIR"] == "/workspace/.cache/pip" and places["XDG_CACHE_HOME"] == "/workspace/.cache"
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert places[name].startswith("/workspace")


def test_without_a_gpu_one_line_says_what_to_do(workspace: Any) -> None:
    options = with_variables(NVIDIA_VISIBLE_DEVICES="all")
    done = workspace.run("grpo-gsm8k", "eval", "--limit", "2", "--device", "cuda", options=options)
    first, *_, last = done.stderr.splitlines()
    assert first.startswith("entrypoint: no GPU in this container: start it with --gpus all")
    assert done.returncode in (1, 2) and last.startswith("error: ") and "cuda" in last.lower()
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("tmpfs", [("--tmpfs", "/tmp"), ()], ids=["with /tmp", "without /tmp"])
def test_a_read_only_container_evaluates(workspace: Any, tmpfs: tuple[str, ...]) -> None:
    done = workspace.run("grpo-gsm8k", "eval", "--limit", "2", "--wandb", "disabled", options=("--read-only", *tmpfs))
    assert done.returncode == 0, done.stderr
    assert read_json(workspace.runs()[0] / "status.json")["state"] == "completed"


def test_a_workspace_that_cannot_be_written_is_refused_in_one_line(workspace: Any) -> None:
    done = workspace.run("grpo-gsm8k", "--help", mount=":ro")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("entrypoint: /workspace cannot be written by uid") and done.stderr.count("\n") == 1
    os.chown(workspace.path, 0, 0)
    workspace.path.chmod(0o755)
    assert workspace.run("true").returncode == 1


@pytest.mark.parametrize(
    ("command", "code"),
    [(["python", "-c", "raise SystemExit(7)"], 7), (["no-such-command"], 127), (["grpo-gsm8k", "eval", "--limit", "many"], 2)],
)
def test_the_commands_exit_code_comes_through(workspace: Any, command: list[str], code: int) -> None:
    assert workspace.run(*command).returncode == code


def wait_for(what: Callable[[], object], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def test_docker_stop_interrupts_a_run_and_a_new_container_resumes_it_to_the_same_bits(
    new_workspace: Callable[[], Any], docker: Callable[..., Any], container: str
) -> None:
    whole, stopped = new_workspace(), new_workspace()
    first = stopped.options("--detach", "--name", container)
    assert docker("run", *first, stopped.image, "grpo-gsm8k", *TRAINING).returncode == 0
    wait_for(lambda: list(stopped.path.glob("artifacts/runs/*/checkpoints/step-6/COMPLETE")), 120)
    docker("stop", "--time", "60", container)
    [run] = stopped.runs()
    assert read_json(run / "status.json")["state"] == "interrupted", docker("logs", container).stderr
    assert docker("wait", container).stdout.strip() == "143"
    num_steps = len((run / "ledger.jsonl").read_bytes().splitlines())
    assert 6 <= num_steps < 24
    resumed = stopped.run("grpo-gsm8k", "grpo", "--resume", "latest")
    assert resumed.returncode == 0, resumed.stderr
    done = whole.run("grpo-gsm8k", *TRAINING)
    assert done.returncode == 0, done.stderr
    [other] = whole.runs()
    assert (run / "ledger.jsonl").read_bytes() == (other / "ledger.jsonl").read_bytes()
    weights = "checkpoints/step-24/model.safetensors"
    assert (run / weights).read_bytes() == (other / weights).read_bytes()
    assert len(list((stopped.path / "artifacts/containers").iterdir())) == 2


def test_a_run_inside_a_shell_command_is_told_to_stop_too(workspace: Any, docker: Callable[..., Any], container: str) -> None:
    told = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(open('told', 'w').close())); "
        "open('up', 'w'); time.sleep(60)"
    )
    docker(
        "run", *workspace.options("--detach", "--name", container), workspace.image, "bash", "-c", f'python -c "{told}"; true'
    )
    wait_for((workspace.path / "up").exists, 60)
    begin = time.monotonic()
    docker("stop", "--time", "30", container)
    assert time.monotonic() - begin < 20
    assert (workspace.path / "told").exists()


def test_orphans_are_reaped(workspace: Any) -> None:
    script = "(sleep 0.2 &); sleep 1; cat /proc/1/comm; grep -h State /proc/[0-9]*/status"
    lines = workspace.run("bash", "-c", script).stdout.splitlines()
    assert lines[0] == "tini"
    assert not [line for line in lines if "Z (zombie)" in line]


def test_prefetched_data_are_pinned_to_the_commit_that_the_revision_was(workspace: Any, hub_server: ModuleType) -> None:
    rows = [{"question": f"What is {n} + {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"} for n in range(600)]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    names = [f"main/{split}-00000-of-00001.parquet" for split in ("train", "test")]
    with hub_server.HubServer() as hub:
        commit = hub.commit("openai/gsm8k", dict.fromkeys(names, buffer.getvalue()))
        options = with_variables(PREFETCH_DATASETS="gsm8k@main,tiny", HF_ENDPOINT=hub.endpoint)
        done = workspace.run("true", options=options, network="host")
    assert done.returncode == 0, done.stderr
    assert commit in (workspace.path / "artifacts/gsm8k/manifest.json").read_text()
    assert (workspace.path / "artifacts/tiny/manifest.json").exists()
    again = workspace.run("cat", "artifacts/gsm8k/manifest.json", options=with_variables(PREFETCH_DATASETS="gsm8k"))
    assert again.returncode == 0 and commit in again.stdout


def test_a_data_set_that_cannot_be_had_ends_the_start_before_the_command(workspace: Any) -> None:
    done = workspace.run("touch", "started", options=with_variables(PREFETCH_DATASETS="gsm9k"))
    assert done.returncode == 2 and "gsm9k" in done.stderr
    assert not (workspace.path / "started").exists()


def test_a_tunnel_is_started_only_where_it_is_named_and_code_is_there(workspace: Any) -> None:
    named = with_variables(VSCODE_TUNNEL_NAME="my-pod")
    assert "no `code` on the PATH: no tunnel" in workspace.run("true", options=named).stderr
    code = workspace.path / ".local/bin/code"
    code.parent.mkdir(parents=True)
    code.write_text('#!/bin/sh\necho "$@" >/workspace/asked\n')
    code.chmod(0o755)
    workspace.run("sleep", "1", options=named)
    assert (workspace.path / "asked").read_text() == "tunnel --accept-server-license-terms --name my-pod\n"
    (workspace.path / "asked").unlink()
    workspace.run("sleep", "1")
    assert not (workspace.path / "asked").exists()


def test_the_start_costs_less_than_a_second_beyond_the_snapshot(workspace: Any) -> None:
    script = """
here=/opt/grpo-gsm8k/docker; TIMEFORMAT=%R
for _ in 1 2 3; do time $here/entrypoint.sh true; time $here/collect_system_info.sh "$(mktemp -d)"; done
"""
    times = [float(line) for line in workspace.run("bash", "-c", script).stderr.split()]
    assert len(times) == 6
    assert min(times[::2]) - min(times[1::2]) < 1


def test_the_image_says_what_it_is_and_has_no_compiler(image: str, docker: Callable[..., Any], workspace: Any) -> None:
    [config] = json.loads(docker("image", "inspect", image).stdout)
    labels, environment = config["Config"]["Labels"], dict(entry.split("=", 1) for entry in config["Config"]["Env"])
    prefix = "org.opencontainers.image."
    assert labels[prefix + "revision"] == environment["GIT_SHA"] and environment["GIT_SHA"].partition("-")[0].isalnum()
    assert labels[prefix + "created"] == environment["BUILD_DATE"] == config["Created"].replace(".000000000", "")
    assert labels[prefix + "ref.name"] == environment["IMAGE_NAME"] == image
    assert workspace.run("bash", "-c", "command -v cc gcc g++ clang").returncode == 1
    packages = workspace.run("pip", "list", "--format", "freeze").stdout
    assert "torch==2.13.0+cpu" in packages and "grpo-gsm8k==" in packages and "vllm" not in packages


def test_a_user_who_is_not_root_can_write_nowhere_but_under_the_workspace_and_tmp(workspace: Any) -> None:
    script = "find / -xdev -type d -writable -not -path '/proc/*' -not -path '/sys/*' -not -path '/dev/*' 2>/dev/null; true"
    found = workspace.run("bash", "-c", script).stdout.split()
    allowed = ("/tmp", "/var/tmp", "/run/lock", "/workspace", "/dev")
    assert [folder for folder in found if not folder.startswith(allowed)] == []
