"""report.html: one self-contained page about a run, written from its run directory alone.

What a run that did not finish has not written is named on the page, never guessed. Rows are streamed: the page holds a seeded
sample of them, so it stays small however long the eval was.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from grpo_gsm8k.errors import InputError
from grpo_gsm8k.runs.directory import read_status, utc_now
from grpo_gsm8k.runs.report_files import RunFiles, flatten
from grpo_gsm8k.runs.report_page import page_environment
from grpo_gsm8k.runs.report_training import TRAINING_COMMANDS, collect_training
from grpo_gsm8k.runs.report_trajectories import collect_trajectories
from grpo_gsm8k.runs.storage import write_text

NUM_TRAJECTORIES = 20
NUM_DISAGREEMENTS = 50
NUM_OPEN_DISAGREEMENTS = 10
SAMPLE_SEED = 0

_FACTS = (
    "model_id model_revision adapter engine base_url device dtype dataset split eval_path limit template k_shot temperature "
    "top_p top_k max_new_tokens num_samples graders determinism seed"
).split()
_TRAINING_FACTS = (
    "model_id model_revision env env_path algorithm data_path max_total_tokens overlong allow_overlap batch_size num_epochs "
    "max_steps num_rounds prompts_per_step prompts_per_round group_size temperature max_new_tokens max_turns template reward "
    "baseline scale ratio clip_low clip_high denominator kl_beta kl_estimator entropy_coef zero_variance mask_truncated "
    "num_updates_per_rollout num_minibatches correction overlap curriculum max_kept_per_problem start_from engine "
    "lr lr_schedule lr_floor warmup_steps weight_decay max_grad_norm lora_rank lora_alpha lora_dropout lora_target "
    "learner_device learner_dtype eval_set_path eval_every eval_examples eval_engine eval_temperature eval_num_samples "
    "eval_max_new_tokens graders save_every keep_last determinism seed"
).split()


def write_report(run_dir: Path) -> Path:
    """Returns the path of `report.html`, written whole into the run directory. Raises: InputError, StorageError."""
    path = run_dir / "report.html"
    write_text(path, page_environment().get_template("report.html.j2").render(collect_report(run_dir)))
    return path


def render_report(run_dir: Path, num_trajectories: int) -> str:
    """Returns the page of a run with up to `num_trajectories` of its trajectories to page through. Raises: InputError."""
    values = collect_report(run_dir)
    files = RunFiles(run_dir)
    browser = collect_trajectories([("", files)], num_trajectories)
    notes = list(dict.fromkeys([*values["notes"], *files.notes]))
    return page_environment().get_template("report.html.j2").render({**values, "notes": notes, "browser": browser})


def collect_report(run_dir: Path) -> dict[str, Any]:
    """Returns everything the page shows, read from the run directory. Raises: InputError when it is not one."""
    files = RunFiles(run_dir)
    status = read_status(run_dir)
    steps = eval_steps(run_dir, files)
    step, aggregate = max(steps.items()) if steps else (None, {})
    rows = _Rows() if step is None else _read_rows(run_dir / f"eval/step_{step}.jsonl", files)
    training = status.get("command") in TRAINING_COMMANDS
    num_unfinished = _count_unfinished(run_dir, files, training)
    if not steps and not num_unfinished:
        files.notes.append("eval/ is missing: nothing was evaluated")
    result = files.json("result.json")
    trained = collect_training(files, status, steps, result) if training else None
    return {
        "run_name": run_dir.resolve().name,
        "written_at": utc_now(),
        "status": status_words(status),
        "step": step,
        "steps": [{"step": number, **headline(record)} for number, record in sorted(steps.items())],
        "aggregate": aggregate,
        "headline": headline(aggregate),
        "graders": _graders(aggregate),
        "at_k": _at_k(aggregate),
        "bins": aggregate.get("accuracy_by_question_length") or [],
        "rows": rows,
        "num_open": NUM_OPEN_DISAGREEMENTS,
        "sample_seed": SAMPLE_SEED,
        **_provenance(files, training),
        "training": trained,
        "num_unfinished": num_unfinished,
        "tokens_per_s": aggregate.get("tokens_per_s", result.get("times", {}).get("time/tokens_per_s")),
        "result": flatten(result),
        "num_metric_rows": trained["num_rows"] if trained else files.count_lines("metrics.jsonl"),
        "notes": files.notes,
        "browser": None,
    }


@dataclass
class _Rows:
    """What one pass over the rows keeps: counts, the first disagreements, and a seeded sample."""

    num: int = 0
    disagreements: int = 0
    first_disagreements: list[dict[str, Any]] = field(default_factory=list)
    sample: list[dict[str, Any]] = field(default_factory=list)


def _read_rows(path: Path, files: RunFiles) -> _Rows:
    rows = _Rows()
    kept: list[tuple[int, int, dict[str, Any]]] = []
    for row in files.rows(path):
        for heavy in ("token_ids", "logprobs", "prompt_token_ids"):
            row.pop(heavy, None)
        if row.get("disagreement"):
            rows.disagreements += 1
            if len(rows.first_disagreements) < NUM_DISAGREEMENTS:
                rows.first_disagreements.append(row)
        entry = (-_rank(row), rows.num, row)
        if len(kept) < NUM_TRAJECTORIES:
            heapq.heappush(kept, entry)
        else:
            heapq.heappushpop(kept, entry)
        rows.num += 1
    rows.sample = [row for _, _, row in sorted(kept, key=lambda entry: entry[1])]
    return rows


def _rank(row: Mapping[str, Any]) -> int:
    """Returns a seeded rank of a row's address: the sample is the lowest ranks, whatever the order of the rows."""
    address = f"{SAMPLE_SEED}\0{row.get('problem_id')}\0{row.get('sample_index')}"
    return int.from_bytes(hashlib.sha256(address.encode("utf-8", errors="surrogatepass")).digest()[:8], "big")


def eval_steps(run_dir: Path, files: RunFiles) -> dict[int, dict[str, Any]]:
    """Returns the aggregates of the evaluations that finished, by step."""
    found = [path.name for path in run_dir.glob("eval/step_*.json")]
    steps = {int(match[1]): files.json(f"eval/{name}") for name in found if (match := re.fullmatch(r"step_(\d+)\.json", name))}
    return {step: record for step, record in steps.items() if record}


def _count_unfinished(run_dir: Path, files: RunFiles, training: bool) -> int:
    """Returns how many completions lie in the journals of evals that did not finish, and notes each journal."""
    total = 0
    for path in sorted(run_dir.glob("eval/step_*.partial.jsonl")):
        name = str(path.relative_to(run_dir))
        found = files.count_lines(name)
        total += found
        goes_on = "--resume does it again" if training else f"--resume goes on from its {found:,} completions"
        files.notes.append(f"{name} is there: that eval did not finish; {goes_on}")
    return total


def headline(aggregate: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the headline grader's name, accuracy and intervals, each None where it is not there."""
    primary = aggregate.get("primary_grader")
    scores = aggregate.get("graders", {}).get(primary, {})
    return {"grader": primary, **{key: scores.get(key) for key in ("accuracy", "ci95", "wilson95")}}


def _graders(aggregate: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the per-grader table, the headline grader first."""
    primary = aggregate.get("primary_grader")
    table = [{**scores, "name": name, "primary": name == primary} for name, scores in aggregate.get("graders", {}).items()]
    return sorted(table, key=lambda entry: not entry["primary"])


def _at_k(aggregate: Mapping[str, Any]) -> list[dict[str, Any]]:
    passed, majority = aggregate.get("pass_at_k") or {}, aggregate.get("maj_at_k") or {}
    ks = sorted({int(k) for k in [*passed, *majority]})
    return [{"k": k, "pass": passed.get(str(k)), "maj": majority.get(str(k))} for k in ks]


def status_words(status: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a page says of a run's status: state, command, reason, times."""
    state = "died" if status.get("died") else str(status["state"])
    starts: Sequence[Mapping[str, Any]] = status.get("starts") or []
    started = starts[0].get("started_at") if starts else status.get("started_at")
    explained = {
        "died": "the process is gone and left no last word (killed, or the machine went down)",
        "running": "still running when this page was written",
        "created": "created, and not started when this page was written",
    }
    return {
        "state": state,
        "command": status.get("command"),
        "reason": status.get("reason") or explained.get(state),
        "started_at": started,
        "ended_at": status.get("ended_at"),
        "duration": _duration(started, status.get("ended_at")),
        "exit_code": status.get("exit_code"),
        "num_starts": len(starts),
    }


def _duration(started: str | None, ended: str | None) -> str | None:
    if not started or not ended:
        return None
    try:
        seconds = int((datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds())
    except ValueError as error:
        raise InputError(f"status.json holds a time that cannot be read: {error}") from error
    hours, rest = divmod(seconds, 3600)
    if hours:
        return f"{hours} h {rest // 60} min"
    return f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{rest} s"


def _provenance(files: RunFiles, training: bool) -> dict[str, Any]:
    config, command = files.json("config.json"), files.json("command.json")
    git, system = files.json("sys/git.json"), files.json("sys/system.json")
    versions, nvidia = files.json("sys/versions.json"), files.json("sys/nvidia.json")
    values, sources = config.get("values", {}), config.get("sources", {})
    facts = _TRAINING_FACTS if training else _FACTS
    cpu, memory = system.get("cpu", {}), system.get("memory_bytes", {})
    machine = {
        "OS": system.get("os", {}).get("distribution"),
        "Python": system.get("python", {}).get("version"),
        "CPU": f"{cpu.get('model')} ({cpu.get('usable_cores')} of {cpu.get('cores')} cores)" if cpu else None,
        "memory": f"{memory['MemTotal'] / 2**30:.0f} GiB" if memory.get("MemTotal") else None,
        "GPU": nvidia.get("list", {}).get("output", "").strip() or nvidia.get("why"),
    }
    stack = {name: version for name, version in versions.get("stack", {}).items() if version}
    drivers = {name: versions.get(name) for name in ("driver", "cuda", "cudnn", "nccl") if versions.get(name)}
    return {
        "facts": [(key, values[key], sources.get(key, "")) for key in facts if values.get(key) is not None],
        "config": [(key, value, sources.get(key, "")) for key, value in values.items()],
        "argv": command.get("argv") or [],
        "package": command.get("package") or {},
        "image_digest": command.get("image_digest"),
        "git": git,
        "machine": [(key, value) for key, value in machine.items() if value],
        "versions": list({**stack, **drivers}.items()),
        "data": [_data_row(entry, training) for entry in files.json("data.json").get("files", [])],
        "engine": [] if training else flatten(files.json("sys/engine.json")),
        "determinism": files.json("sys/determinism.json") or [],
        "packages": files.text("sys/packages.txt"),
    }


def _data_row(entry: Mapping[str, Any], training: bool) -> dict[str, Any]:
    parts = [entry.get("role"), entry.get("dataset"), entry.get("split")]
    name = " ".join(part for part in parts if part) or Path(entry.get("path", "")).name
    asked = entry.get("revision_asked", entry.get("revision"))
    row = {key: entry.get(key) for key in ("source", "commit", "rows", "sha256")}
    if not training:
        return {"name": name, "asked": asked, **row}
    dropped = entry.get("dropped")
    return {
        "name": name,
        "asked": asked,
        "path": entry.get("path"),
        "num_trained": entry.get("num_trained"),
        "num_dropped": None if dropped is None else len(dropped),
        **row,
    }
