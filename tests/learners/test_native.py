"""The native learner against references made by hand: the AdamW step, clipping, bad input, state, published weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from architectures import VOCAB, Whole, build, difference, gradients, padded_loss, sequences
from transformers import AutoModelForCausalLM

from grpo_gsm8k.algorithms.packing import PackedBatch
from grpo_gsm8k.algorithms.sft_loss import SftLoss
from grpo_gsm8k.errors import DataError, EngineError, EnvironmentFailure, ModelError, ProofError, StorageError
from grpo_gsm8k.learners.native import NativeLearner
from grpo_gsm8k.learners.options import AdamWOptions, LearnerOptions
from grpo_gsm8k.learners.protocol import Learner, Loss, NotFiniteError
from grpo_gsm8k.tokenize import TokenSequence

EXAMPLES = sequences()
LOSS = SftLoss(sum(example.num_trained for example in EXAMPLES))
PLAIN, BF16 = LearnerOptions(), LearnerOptions(dtype="bfloat16")


def learner(options: LearnerOptions = PLAIN, dtype: torch.dtype = torch.float32) -> NativeLearner:
    return NativeLearner(build("qwen2", dtype), options)


def one_step(subject: Learner, lr: float = 1e-2, loss: Loss = LOSS) -> None:
    subject.forward_backward(EXAMPLES, loss)
    subject.optim_step(lr)


def test_metrics_say_what_went_through_the_model() -> None:
    metrics = learner(LearnerOptions(tokens_per_microbatch=30, entropy=True)).forward_backward(EXAMPLES, LOSS)
    reference = build("qwen2")
    with torch.no_grad():
        entropies = []
        for example in EXAMPLES:
            all_TV = reference(torch.tensor([example.token_ids])).logits[0].log_softmax(-1)
            entropies += (-(all_TV.exp() * all_TV).sum(-1))[:-1][torch.tensor(example.trained[1:])].tolist()
        loss = padded_loss(reference, EXAMPLES).item()
    assert metrics == {
        "loss": pytest.approx(loss, rel=1e-5),
        "num_trained": 38.0,
        "num_tokens": 69.0,
        "num_microbatches": 3.0,
        "entropy": pytest.approx(sum(entropies) / 38, rel=1e-5),
    }


def test_first_step_moves_each_weight_as_adamw_does_by_hand_and_decays_matrices_only() -> None:
    subject = learner(LearnerOptions(adamw=AdamWOptions(weight_decay=0.5)), torch.float64)
    before = {name: p.detach().clone() for name, p in subject.model.named_parameters()}
    subject.forward_backward(EXAMPLES, LOSS)
    gradient = gradients(subject.model)
    metrics = subject.optim_step(0.01)
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradient.values()))
    assert metrics == {"lr": 0.01, "grad_norm": pytest.approx(norm), "grad_norm_clipped": pytest.approx(norm)}
    for name, p in subject.model.named_parameters():
        decayed = before[name] * (1 - 0.01 * 0.5) if p.dim() >= 2 else before[name]
        g = gradient[name]  # after one step Adam's corrected moments are g and g²
        torch.testing.assert_close(p.detach(), decayed - 0.01 * g / (g.abs() + 1e-8), rtol=1e-9, atol=1e-12)


def test_gradient_is_clipped_to_its_limit_and_both_norms_are_told() -> None:
    whole = learner(dtype=torch.float64)
    whole.forward_backward(EXAMPLES, LOSS)
    norm = whole.optim_step(1e-3)["grad_norm"]
    limit = norm / 3
    # eps is large, so that AdamW's step depends on the gradient's length and not on its direction alone.
    clipped = learner(LearnerOptions(max_grad_norm=limit, adamw=AdamWOptions(eps=10.0)), torch.float64)
    scaled = learner(LearnerOptions(adamw=AdamWOptions(eps=10.0)), torch.float64)
    clipped.forward_backward(EXAMPLES, LOSS)
    scaled.forward_backward(EXAMPLES, SftLoss(LOSS.num_trained * 3))
    metrics = clipped.optim_step(1.0)
    scaled.optim_step(1.0)
    assert metrics == {"lr": 1.0, "grad_norm": pytest.approx(norm), "grad_norm_clipped": pytest.approx(limit)}
    for a, b in zip(clipped.model.parameters(), scaled.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def test_several_calls_before_a_step_add_up() -> None:
    whole, parts = learner(dtype=torch.float64), learner(dtype=torch.float64)
    whole.forward_backward(EXAMPLES, LOSS)
    parts.forward_backward(EXAMPLES[:2], LOSS)
    parts.forward_backward(EXAMPLES[2:], LOSS)
    assert difference(gradients(parts.model), gradients(whole.model)) < 1e-6


def test_supervised_loss_is_separable_and_its_gradient_is_the_same_either_way() -> None:
    assert LOSS.separable
    forward, backward = learner(dtype=torch.float64), learner(dtype=torch.float64)
    forward.forward_backward(EXAMPLES, LOSS)
    backward.forward_backward(EXAMPLES, Whole(LOSS))
    assert difference(gradients(forward.model), gradients(backward.model)) < 1e-12


def test_loss_is_given_the_extras_and_the_places_of_its_tokens() -> None:
    examples = [replace(example, extras={"weight": tuple(map(float, example.token_ids))}) for example in EXAMPLES]
    seen: dict[tuple[int, int], float] = {}

    def loss(logprobs_N: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        for place, label, weight in zip(batch.sequence_index_N, batch.labels_N, batch.extras["weight"], strict=True):
            seen[int(place), int(label)] = float(weight)
        return -logprobs_N.sum()

    learner(LearnerOptions(tokens_per_microbatch=30)).forward_backward(examples, Whole(loss))
    wanted = {
        (place, token): float(token)
        for place, example in enumerate(examples)
        for token, trained in zip(example.token_ids, example.trained, strict=True)
        if trained
    }
    assert seen == wanted


def test_gradient_is_cleared_by_a_step_so_that_the_next_step_needs_a_new_one() -> None:
    subject = learner()
    one_step(subject)
    with pytest.raises(ProofError, match="without a gradient"):
        subject.optim_step(0.01)


def test_same_steps_give_the_same_digest_and_each_step_another() -> None:
    one, other = learner(), learner()
    digests = []
    for _ in range(3):
        one_step(one)
        one_step(other)
        assert one.weights_digest() == other.weights_digest()
        digests.append(one.weights_digest())
    assert len(set(digests)) == 3


def test_bf16_has_float32_masters_that_small_steps_reach() -> None:
    subject = learner(BF16)
    assert subject.describe()["master_weights"]
    weight = subject.model.base_model.norm.weight  # about 1, where bf16 tells apart what differs by 1/256
    before = weight.detach().clone()
    digests = set()
    for _ in range(4):
        one_step(subject, lr=1e-7)
        digests.add(subject.weights_digest())
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, before)
    assert len(digests) == 4  # the steps are not lost


def test_bf16_gradient_gathered_over_micro_batches_is_that_of_one() -> None:
    whole, split = learner(BF16), learner(replace(BF16, tokens_per_microbatch=1))
    whole.forward_backward(EXAMPLES, LOSS)
    split.forward_backward(EXAMPLES, LOSS)
    exact = build("qwen2", torch.float64)
    padded_loss(exact, EXAMPLES).backward()
    for subject in (whole, split):
        found = {name: weight.grad.double() for name, weight in subject._optimizer.weights.items()}
        assert difference(found, gradients(exact)) < 0.03


@pytest.mark.parametrize("options", [LearnerOptions(), BF16], ids=["float32", "bfloat16"])
def test_training_goes_on_from_a_saved_state_exactly_as_if_never_stopped(options: LearnerOptions, tmp_path: Path) -> None:
    unbroken = learner(options)
    one_step(unbroken)
    unbroken.save_state(tmp_path / "state")
    one_step(unbroken, lr=5e-3)

    resumed = learner(options)
    one_step(resumed, lr=1.0)  # anything that the loaded state must replace
    resumed.load_state(tmp_path / "state")
    one_step(resumed, lr=5e-3)

    assert resumed.weights_digest() == unbroken.weights_digest()
    assert resumed.publish_weights(tmp_path / "weights") == 2


def test_state_saved_before_the_first_step_and_its_weights_can_be_loaded(tmp_path: Path) -> None:
    subject = learner()
    subject.save_state(tmp_path)
    subject.load_state(tmp_path)
    one_step(subject)
    fresh = learner()
    one_step(fresh)
    assert subject.weights_digest() == fresh.weights_digest()
    assert sorted(path.name for path in (tmp_path / "trainer").iterdir()) == ["learner.json", "optimizer.safetensors"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.get_input_embeddings().weight, build("qwen2", torch.float32).get_input_embeddings().weight)


def test_state_of_another_model_precision_or_none_is_refused(tmp_path: Path) -> None:
    NativeLearner(build("llama", torch.float32)).save_state(tmp_path / "llama")
    learner().save_state(tmp_path / "float32")
    with pytest.raises(ModelError, match="other weights"):
        learner().load_state(tmp_path / "llama")
    with pytest.raises(ModelError, match="dtype float32, this learner bfloat16"):
        learner(BF16).load_state(tmp_path / "float32")
    with pytest.raises(ModelError, match="no learner state"):
        learner().load_state(tmp_path / "nowhere")


def test_state_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        learner().save_state(tmp_path / "file" / "state")


def test_published_weights_are_the_trained_ones_and_count_the_steps(tmp_path: Path) -> None:
    subject = learner()
    assert subject.publish_weights(tmp_path / "before") == 0
    one_step(subject)
    assert subject.publish_weights(tmp_path / "after") == 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "after")
    for (name, a), b in zip(loaded.named_parameters(), subject.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert "packed" not in (tmp_path / "after" / "config.json").read_text()


def poison(subject: NativeLearner, token: int) -> None:
    with torch.no_grad():
        subject.model.get_input_embeddings().weight[token] = math.nan


@pytest.mark.parametrize("wrap", [lambda loss: loss, Whole], ids=["separable", "whole"])
def test_loss_that_is_not_finite_stops_names_its_micro_batch_and_leaves_no_gradient(wrap: Callable[[Loss], Loss]) -> None:
    subject = NativeLearner(build("llama"), LearnerOptions(tokens_per_microbatch=1))
    elsewhere = {token for example in EXAMPLES if example.id != "s3" for token in example.token_ids}
    poison(subject, next(token for token in EXAMPLES[3].token_ids[:14] if token not in elsewhere))
    with pytest.raises(NotFiniteError, match=r"the loss is nan at step 0; .*sequences: s3$") as caught:
        subject.forward_backward(EXAMPLES, wrap(LOSS))
    assert caught.value.sequence_ids == ("s3",)
    assert not gradients(subject.model)


def test_gradient_that_is_not_finite_stops_names_its_micro_batch_and_leaves_the_weights() -> None:
    subject = learner(LearnerOptions(tokens_per_microbatch=1))
    before = subject.weights_digest()

    def loss(logprobs_N: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        # The square root of 0 is 0, and its gradient infinite.
        odd = (logprobs_N - logprobs_N.detach()).abs().sqrt().sum() if batch.sequence_ids == ("s1",) else 0.0
        return -logprobs_N.sum() + odd

    subject.forward_backward(EXAMPLES, Whole(loss))
    with pytest.raises(NotFiniteError, match="gradient norm is nan at step 0") as caught:
        subject.optim_step(0.01)
    assert caught.value.sequence_ids == ("s1",)
    assert subject.weights_digest() == before
    with pytest.raises(ProofError, match="without a gradient"):
        subject.optim_step(0.01)


def test_step_without_sequences_and_a_sequence_that_trains_nothing_are_refused() -> None:
    subject = learner()
    with pytest.raises(ProofError, match="no sequence"):
        subject.forward_backward([], LOSS)
    with pytest.raises(ProofError, match="'empty' trains no token"):
        subject.forward_backward([*EXAMPLES, TokenSequence("empty", (1, 2), (False, False))], LOSS)
    with pytest.raises(ProofError, match="without a gradient"):
        subject.optim_step(0.01)


@pytest.mark.parametrize("token", [VOCAB, -1])
def test_token_outside_the_vocabulary_is_refused_by_name(token: int) -> None:
    bad = TokenSequence("odd", (3, 4, token), (False, True, True))
    with pytest.raises(ModelError, match=f"'odd' has token {token}, but the model's tokens are 0 to {VOCAB - 1}"):
        learner().forward_backward([*EXAMPLES, bad], LOSS)


def test_sequence_longer_than_the_model_takes_is_refused_by_name() -> None:
    long = TokenSequence.of_response("long", [3], [4] * 65)
    with pytest.raises(DataError, match="'long' has 65 tokens; the model takes 64"):
        learner().forward_backward([long], SftLoss(65))


def test_running_out_of_memory_names_what_saves_some() -> None:
    def hungry(logprobs_N: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        return logprobs_N.sum() * torch.empty(2**60).sum()

    with pytest.raises(
        EnvironmentFailure, match=r"tokens_per_microbatch \(now 4096\); set gradient_checkpointing; use lora_rank"
    ):
        learner().forward_backward(EXAMPLES, Whole(hungry))


def test_device_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(EngineError, match="no CUDA device"):
        NativeLearner.from_pretrained("tiny", device="cuda:0")


def test_tiny_model_is_trained_from_its_name() -> None:
    subject = NativeLearner.from_pretrained("tiny", device="cpu")
    example = TokenSequence.of_response("a", [3, 4, 5], [6, 7, 2])
    losses = []
    for _ in range(4):
        losses.append(subject.forward_backward([example], SftLoss(3))["loss"])
        subject.optim_step(1e-3)
    assert losses[-1] < losses[0]
