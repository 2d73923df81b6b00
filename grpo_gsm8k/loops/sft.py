"""Supervised fine-tuning: given responses, trained on by cross entropy.

    step = batch of examples → forward and backward → one AdamW update → ledger, metrics, evaluation, checkpoint

The loss of a step is the mean over its trained tokens (not over examples), whatever the micro-batches. Evaluation never holds
training up, except at the end and where its queue is full.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_gsm8k.algorithms.data_order import batch_indices
from grpo_gsm8k.algorithms.sft_loss import SftLoss
from grpo_gsm8k.learners.protocol import Learner
from grpo_gsm8k.loops.training import TrainingRecord
from grpo_gsm8k.runs.storage import digest
from grpo_gsm8k.tokenize import TokenSequence


@dataclass(frozen=True)
class SftTask:
    """What is trained on and how: examples, their number a step, the seed of their order, the learning rate of a step.

    `seed_step` makes what randomness a step has (dropout) a function of the step.
    """

    examples: Sequence[TokenSequence]
    batch_size: int
    seed: int
    learning_rate: Callable[[int], float]
    seed_step: Callable[[int], None]


def train(task: SftTask, learner: Learner, record: TrainingRecord) -> dict[int, dict[str, Any]]:
    """Returns the evaluations by step, having trained to the end. Raises: ProofError; what the learner and evaluator raise."""
    for step in record.steps():
        began = time.monotonic()
        task.seed_step(step)
        chosen = batch_indices(len(task.examples), task.batch_size, step, task.seed)
        batch = [task.examples[index] for index in chosen]
        with record.keeping_failed_batch(step + 1):
            update = learner.forward_backward(batch, SftLoss(sum(example.num_trained for example in batch)))
            taken = learner.optim_step(task.learning_rate(step))
        seconds = time.monotonic() - began
        metrics = {
            "train/loss": update["loss"],
            "train/num_tokens": update["num_tokens"],
            "train/num_trained": update["num_trained"],
            "train/epoch": (step + 1) * task.batch_size / len(task.examples),
            "optim/lr": taken["lr"],
            "optim/grad_norm": taken["grad_norm"],
            "optim/grad_norm_clipped": taken["grad_norm_clipped"],
            "time/update_s": seconds,
            "time/tokens_per_s": update["num_trained"] / seconds,
        }
        stages = {
            "data": digest([example.id for example in batch]),
            "tokens": digest([[example.token_ids, example.trained] for example in batch]),
            "loss": update["loss"],
            "grad_norm": taken["grad_norm"],
        }
        record.after_update(step + 1, metrics, stages)
    return record.finish()
