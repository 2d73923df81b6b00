"""The workflows are pinned, ask for little, and call what there is (`make lint-workflows` has their schema and security)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PINNED = re.compile(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+(\.\d+)*$")


def load(path: Path) -> dict[Any, Any]:
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.name for path in WORKFLOWS])
def test_every_action_is_pinned_by_commit_with_its_version_beside(path: Path) -> None:
    used = [line.strip().removeprefix("- ") for line in path.read_text(encoding="utf-8").splitlines() if "uses:" in line]
    assert used
    assert [line for line in used if not PINNED.match(line)] == []


def test_an_action_has_one_version_everywhere() -> None:
    found = re.findall(r"uses: ([\w./-]+)@(\S+)", "".join(path.read_text(encoding="utf-8") for path in WORKFLOWS))
    assert len(set(found)) == len({name for name, _ in found})


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.name for path in WORKFLOWS])
def test_only_the_job_that_pushes_the_image_may_write(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] in ({}, {"contents": "read"})
    asked = {name: job.get("permissions", {}) for name, job in workflow["jobs"].items()}
    writers = {name for name, permissions in asked.items() if "write" in permissions.values()}
    assert writers == ({"push"} if path.name == "image.yml" else set())
    if writers:
        assert "contents" not in {key for key, value in asked["push"].items() if value == "write"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.name for path in WORKFLOWS])
def test_what_the_workflows_make_is_a_target_of_the_makefile(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    steps = [step for job in load(path)["jobs"].values() for step in job["steps"]]
    made = {word for step in steps for line in re.findall(r"^make (.+)$", step.get("run", ""), re.M) for word in line.split()}
    assert made
    assert made <= targets


def test_an_image_gets_a_name_only_after_it_was_tested_and_run() -> None:
    push = load(ROOT / ".github" / "workflows" / "image.yml")["jobs"]["push"]
    assert push["needs"] == "test"
    names = [step.get("name") or step["uses"] for step in push["steps"]]
    build = next(step for step in push["steps"] if step.get("id") == "build")
    assert "push-by-digest=true" in build["with"]["outputs"]
    assert "tags" not in build["with"]
    assert (build["with"]["sbom"], build["with"]["provenance"]) == (True, "mode=max")
    run = names.index("Run what was pushed, by its digest and without a network")
    assert names.index("Build, and push without a name") < run < names.index("Name it")


def test_the_base_that_the_workflow_reads_is_one_pinned_line_of_the_build_script() -> None:
    step = next(
        step
        for step in load(ROOT / ".github" / "workflows" / "image.yml")["jobs"]["push"]["steps"]
        if step.get("id") == "commit"
    )
    script = re.search(r"sed -n '(s/.*/p)' (scripts/\S+)\)", step["run"])
    assert script
    read = subprocess.run(["sed", "-n", *script.groups()], capture_output=True, text=True, cwd=ROOT, check=True)
    assert re.fullmatch(r"python:3\.11\S*@sha256:[0-9a-f]{64}\n", read.stdout)
