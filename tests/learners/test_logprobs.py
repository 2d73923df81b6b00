"""Log-probs without training: those of transformers' own logits, at the temperature, under the present or the first weights."""

from __future__ import annotations

import pytest
import torch
from architectures import build, difference, gradients, sequences

from grpo_gsm8k.algorithms.packing import PackedBatch
from grpo_gsm8k.algorithms.sft_loss import SftLoss
from grpo_gsm8k.errors import ConfigError, ModelError
from grpo_gsm8k.learners.native import NativeLearner
from grpo_gsm8k.learners.options import LearnerOptions, LoraOptions

EXAMPLES = sequences()
LOSS = SftLoss(sum(example.num_trained for example in EXAMPLES))


def plain_logprobs(model: torch.nn.Module, temperature: float) -> list[list[float]]:
    found = []
    with torch.no_grad():
        for example in EXAMPLES:
            ids_T = torch.tensor(example.token_ids)
            all_TV = (model(ids_T[None]).logits[0, :-1] / temperature).log_softmax(-1)
            found.append(all_TV.gather(1, ids_T[1:, None])[:, 0][torch.tensor(example.trained[1:])].tolist())
    return found


def near(found: list[tuple[float, ...]], wanted: list[list[float]]) -> bool:
    return all(list(a) == pytest.approx(b, abs=1e-5) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("name", ["qwen2", "gemma3 text"])
def test_log_probs_are_those_of_transformers_in_the_order_of_the_sequences(name: str, temperature: float) -> None:
    learner = NativeLearner(build(name), LearnerOptions(tokens_per_microbatch=30, temperature=temperature))
    assert near(learner.logprobs(EXAMPLES), plain_logprobs(build(name), temperature))


class Recorded(SftLoss):
    """A supervised loss that keeps the log-probs it is given."""

    def __call__(self, logprobs_N: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        for place, logprob in zip(batch.sequence_index_N.tolist(), logprobs_N.tolist(), strict=True):
            SEEN.setdefault(place, []).append(logprob)
        return super().__call__(logprobs_N, batch)


SEEN: dict[int, list[float]] = {}


def test_training_sees_the_same_log_probs_bit_for_bit() -> None:
    SEEN.clear()
    learner = NativeLearner(build("qwen2", torch.float32), LearnerOptions(tokens_per_microbatch=30, temperature=0.7))
    learner.forward_backward(EXAMPLES, Recorded(LOSS.num_trained))
    assert [tuple(SEEN[place]) for place in range(len(EXAMPLES))] == learner.logprobs(EXAMPLES)


def test_temperature_scales_the_gradient_as_autograd_does() -> None:
    reference = build("llama")
    total = sum(
        (reference(torch.tensor([example.token_ids])).logits[0, :-1] / 0.6)
        .log_softmax(-1)
        .gather(1, torch.tensor(example.token_ids[1:])[:, None])[torch.tensor(example.trained[1:])]
        .sum()
        for example in EXAMPLES
    )
    (-total / LOSS.num_trained).backward()
    learner = NativeLearner(build("llama"), LearnerOptions(temperature=0.6))
    learner.forward_backward(EXAMPLES, LOSS)
    assert difference(gradients(learner.model), gradients(reference)) < 1e-6


@pytest.mark.parametrize(
    "options",
    [
        LearnerOptions(keep_reference=True),
        LearnerOptions(lora=LoraOptions(rank=4, dropout=0.5)),
        LearnerOptions(keep_reference=True, gradient_checkpointing=True),
    ],
    ids=["full", "LoRA", "checkpointed"],
)
def test_reference_stays_what_the_learner_was_made_with(options: LearnerOptions) -> None:
    learner = NativeLearner(build("qwen2", torch.float32), options)
    first = learner.logprobs(EXAMPLES)
    assert learner.logprobs(EXAMPLES, reference=True) == first
    for _ in range(2):
        learner.forward_backward(EXAMPLES, LOSS)
        learner.optim_step(1e-2)
    assert learner.logprobs(EXAMPLES, reference=True) == first
    present = learner.logprobs(EXAMPLES)
    assert present != first
    assert learner.logprobs(EXAMPLES) == present  # no dropout is drawn


def test_asking_for_log_probs_changes_nothing_of_the_training() -> None:
    options = LearnerOptions(lora=LoraOptions(rank=4, dropout=0.25), gradient_checkpointing=True)
    digests = []
    for asked in (False, True):
        torch.manual_seed(3)
        learner = NativeLearner(build("qwen2", torch.float32), options)
        torch.manual_seed(4)
        for _ in range(2):
            if asked:
                learner.logprobs(EXAMPLES)
                learner.logprobs(EXAMPLES, reference=True)
            learner.forward_backward(EXAMPLES, LOSS)
            learner.optim_step(1e-2)
        digests.append(learner.weights_digest())
    assert digests[0] == digests[1]


def test_reference_that_was_not_kept_is_refused() -> None:
    with pytest.raises(ModelError, match="kept no reference weights; make it with keep_reference"):
        NativeLearner(build("qwen2")).logprobs(EXAMPLES, reference=True)


def test_temperature_that_divides_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="temperature 0 divides no logits"):
        LearnerOptions(temperature=0)


class WithEntropy(SftLoss):
    """A supervised loss with an entropy bonus that differs from token to token."""

    def entropy_weights(self, batch: PackedBatch) -> torch.Tensor:
        return -0.1 * (1 + batch.labels_N.double() / 61) / self.num_trained


class WholeWithEntropy(WithEntropy):
    separable = False


@pytest.mark.parametrize("kind", [WithEntropy, WholeWithEntropy])
def test_entropy_bonus_is_part_of_loss_gradient_and_metrics(kind: type[SftLoss]) -> None:
    reference = build("qwen2")
    total = torch.zeros((), dtype=torch.float64)
    for example in EXAMPLES:
        ids_T, trained = torch.tensor(example.token_ids), torch.tensor(example.trained[1:])
        all_TV = reference(ids_T[None]).logits[0, :-1].log_softmax(-1)[trained]
        labels_T = ids_T[1:][trained]
        entropy_T = -(all_TV.exp() * all_TV).sum(-1)
        total = total - all_TV.gather(1, labels_T[:, None]).sum() / LOSS.num_trained
        total = total - (0.1 * (1 + labels_T / 61) * entropy_T).sum() / LOSS.num_trained
    total.backward()
    learner = NativeLearner(build("qwen2"), LearnerOptions(tokens_per_microbatch=30))
    metrics = learner.forward_backward(EXAMPLES, kind(LOSS.num_trained))
    assert metrics["loss"] == pytest.approx(total.item(), rel=1e-6)
    assert 0 < metrics["entropy"] < 5
    assert difference(gradients(learner.model), gradients(reference)) < 1e-6
