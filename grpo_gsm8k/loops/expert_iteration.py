"""Expert iteration: sample, keep what is right, fine-tune on it, and again.

    round = problems → rollouts (engine) → scores (environment) → the correct, different ones → supervised updates (learner)
            → weights to the engine → ledger, metrics, evaluation, checkpoint

A step of the record is a round. What was kept of a round, and why the rest was not, is in expert_data/round_<n>.jsonl.
Source: expert iteration (arXiv 1705.08439), STaR (arXiv 2203.14465); a single round from the first weights is rejection
sampling fine-tuning (arXiv 2308.01825).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_gsm8k.algorithms.data_order import batch_indices, num_steps
from grpo_gsm8k.algorithms.rollout_sequences import plain_sequence
from grpo_gsm8k.algorithms.sft_loss import SftLoss
from grpo_gsm8k.errors import ProofError
from grpo_gsm8k.learners.protocol import Learner
from grpo_gsm8k.loops.collect import Collected, Collector, collected_metrics
from grpo_gsm8k.loops.policy_sync import PolicySync
from grpo_gsm8k.loops.rollouts import RolloutSampler
from grpo_gsm8k.loops.training import TrainingRecord
from grpo_gsm8k.runs.determinism import derive_seed
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.rollout_files import rollout_digests, write_rollouts
from grpo_gsm8k.runs.rollout_metrics import is_truncated
from grpo_gsm8k.runs.storage import digest, json_line, make_folder, write_bytes
from grpo_gsm8k.tokenize import TokenSequence
from grpo_gsm8k.types import Rollout

FOLDER = "expert_data"
KEPT = "kept"


@dataclass(frozen=True)
class Keeping:
    """Which rollouts are learned from: correct ones, at most so many of a problem, no two alike, of such lengths."""

    max_per_problem: int | None
    min_tokens: int
    max_tokens: int | None

    def verdicts(self, rollouts: Sequence[Rollout]) -> list[str]:
        """Returns "kept" or why not, for each rollout; the first of those alike, and the first of a problem, are kept."""
        seen: set[tuple[str, tuple[int, ...]]] = set()
        num_kept: Counter[str] = Counter()
        found = []
        for rollout in rollouts:
            verdict = self._verdict(rollout, seen, num_kept)
            found.append(verdict)
            if verdict == KEPT:
                seen.add((rollout.problem.id, rollout.token_ids))
                num_kept[rollout.problem.id] += 1
        return found

    def _verdict(self, rollout: Rollout, seen: set[tuple[str, tuple[int, ...]]], num_kept: Counter[str]) -> str:
        if rollout.score.status != "correct":
            return "truncated" if is_truncated(rollout) else rollout.score.status
        if rollout.num_sampled < self.min_tokens:
            return "too_short"
        if self.max_tokens is not None and rollout.num_sampled > self.max_tokens:
            return "too_long"
        if (rollout.problem.id, rollout.token_ids) in seen:
            return "duplicate"
        if self.max_per_problem is not None and num_kept[rollout.problem.id] >= self.max_per_problem:
            return "over_cap"
        return KEPT


@dataclass(frozen=True)
class ExpertIterationTask:
    """What is sampled and kept, and how it is fine-tuned on.

    `begin_round` is called before each round's updates (it restores the first weights where each round starts from those);
    `seed_step` makes what randomness a round's updates have a function of the round.
    """

    collector: Collector
    keeping: Keeping
    num_prompts: int
    num_rounds: int
    num_epochs: int
    batch_size: int
    seed: int
    learning_rate: Callable[[int, int, int], float]
    seed_step: Callable[[int], None]
    begin_round: Callable[[int], None]
    save_rollouts_every: int


def train(
    task: ExpertIterationTask,
    run: RunDirectory,
    learner: Learner,
    sampler: RolloutSampler,
    sync: PolicySync,
    record: TrainingRecord,
) -> dict[int, dict[str, Any]]:
    """Returns the evaluations by round, having trained to the end. Raises: ProofError; what the parts raise."""
    for number in record.steps():
        began = time.monotonic()
        found = task.collector.collect(sampler, task.num_prompts, number)
        rollouts = found.rollouts
        verdicts = task.keeping.verdicts(rollouts)
        write_kept(run, number + 1, rollouts, verdicts)
        examples = [plain_sequence(rollout) for rollout, verdict in zip(rollouts, verdicts, strict=True) if verdict == KEPT]
        if not examples:
            raise ProofError(
                f"round {number + 1}: none of {len(rollouts)} rollouts was kept ({_counted(verdicts)}), so there is nothing to "
                "fine-tune on; choose easier problems, more rollouts, or a model that solves some"
            )
        task.seed_step(number)
        task.begin_round(number)
        updating = time.monotonic()
        with record.keeping_failed_batch(number + 1):
            losses, norms, num_trained = fine_tune(task, learner, examples, number)
        update_s = time.monotonic() - updating
        publish_s = sync.publish(number + 1)
        if number % task.save_rollouts_every == 0 or number + 1 == task.num_rounds:
            write_rollouts(run, number + 1, rollouts, trained=[verdict == KEPT for verdict in verdicts])
        seconds = time.monotonic() - began
        metrics = {
            **collected_metrics(found),
            **_kept_metrics(verdicts),
            "train/loss": sum(losses) / len(losses),
            "train/loss_last": losses[-1],
            "train/num_updates": float(len(losses)),
            "train/num_trained": float(num_trained),
            "optim/grad_norm": sum(norms) / len(norms),
            "time/sample_s": found.sample_s,
            "time/score_s": found.score_s,
            "time/update_s": update_s,
            "time/publish_s": publish_s,
            "time/step_s": seconds,
            "time/tokens_per_s": num_trained / update_s,
        }
        note = f"reward {metrics['reward/mean']:.3f}  kept {len(examples)}"
        record.after_update(number + 1, metrics, _stages(found, examples, losses, norms), note=note)
    return record.finish()


def fine_tune(
    task: ExpertIterationTask, learner: Learner, examples: Sequence[TokenSequence], number: int
) -> tuple[list[float], list[float], int]:
    """Returns the loss and gradient norm of each update of a round, and how many tokens were trained in all."""
    size = min(task.batch_size, len(examples))
    total = num_steps(len(examples), size, task.num_epochs)
    seed = derive_seed(task.seed, number, "fine_tune", 0)
    losses, norms, num_trained = [], [], 0
    for update in range(total):
        batch = [examples[index] for index in batch_indices(len(examples), size, update, seed)]
        done = learner.forward_backward(batch, SftLoss(sum(example.num_trained for example in batch)))
        taken = learner.optim_step(task.learning_rate(number, update, total))
        losses.append(done["loss"])
        norms.append(taken["grad_norm"])
        num_trained += int(done["num_trained"])
    return losses, norms, num_trained


def write_kept(run: RunDirectory, number: int, rollouts: Sequence[Rollout], verdicts: Sequence[str]) -> None:
    """Writes expert_data/round_<n>.jsonl: each rollout's text, its score and why it is learned from or not."""
    make_folder(run.path / FOLDER)
    rows = [
        {
            "problem_id": rollout.problem.id,
            "sample_index": rollout.sample_index,
            "question": rollout.problem.question,
            "gold": rollout.problem.gold,
            "response": [turn.text for turn in rollout.turns],
            "num_tokens": rollout.num_sampled,
            "answer": rollout.score.answer,
            "status": rollout.score.status,
            "verdict": verdict,
        }
        for rollout, verdict in zip(rollouts, verdicts, strict=True)
    ]
    write_bytes(run.path / FOLDER / f"round_{number}.jsonl", b"".join(json_line(row) for row in rows))


def _counted(verdicts: Sequence[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(Counter(verdicts).items()))


def _kept_metrics(verdicts: Sequence[str]) -> dict[str, float]:
    counts = Counter(verdicts)
    metrics = {"ei/sampled": float(len(verdicts)), "ei/kept": float(counts.pop(KEPT, 0))}
    return metrics | {f"ei/rejected_{name}": float(count) for name, count in sorted(counts.items())}


def _stages(found: Collected, examples: Sequence[TokenSequence], losses: list[float], norms: list[float]) -> dict[str, Any]:
    return {
        **rollout_digests(found.rollouts),
        "kept": digest([example.id for example in examples]),
        "loss": losses,
        "grad_norm": norms,
    }
