"""Adapters: exact gradients, peft reads them, merged copies equal them, and bad targets are refused with the modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import build, difference, gradients, padded_loss, sequences
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from grpo_gsm8k.algorithms.sft_loss import SftLoss
from grpo_gsm8k.errors import ConfigError, ModelError
from grpo_gsm8k.learners.native import NativeLearner
from grpo_gsm8k.learners.options import LearnerOptions, LoraOptions

EXAMPLES = sequences()
LOSS = SftLoss(sum(example.num_trained for example in EXAMPLES))
LORA = LoraOptions(rank=4, alpha=8.0)


def learner(
    lora: LoraOptions = LORA, name: str = "qwen2", dtype: torch.dtype = torch.float32, **options: object
) -> NativeLearner:
    model = build(name, dtype)
    torch.manual_seed(3)  # the adapter's own first weights are drawn
    return NativeLearner(model, LearnerOptions(lora=lora, **options))  # type: ignore[arg-type]


def train(subject: NativeLearner, num_steps: int = 2) -> None:
    for _ in range(num_steps):
        subject.forward_backward(EXAMPLES, LOSS)
        subject.optim_step(1e-2)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.tensor([EXAMPLES[4].token_ids])).logits
    return found


def test_gradient_of_the_adapter_is_that_of_peft_on_the_padded_batch() -> None:
    subject = learner(dtype=torch.float64)
    reference = build("qwen2")
    torch.manual_seed(3)
    adapted = get_peft_model(reference, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():  # B starts at zero, and then A has no gradient
        for model in (subject.model, reference):
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(torch.sin(torch.arange(parameter.numel())).view_as(parameter) * 0.1)
    padded_loss(adapted.get_base_model(), EXAMPLES).backward()
    subject.forward_backward(EXAMPLES, LOSS)
    wanted = gradients(reference)
    assert len(wanted) == 2 * 7 * 2
    assert difference(gradients(subject.model), wanted) < 1e-6


def test_only_the_adapter_is_trained() -> None:
    subject = learner()
    train(subject)
    fresh = dict(build("qwen2", torch.float32).named_parameters())
    for name, parameter in subject.model.named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, fresh[name.replace(".base_layer", "")]), name
    assert subject.describe()["num_trained_parameters"] < subject.describe()["num_parameters"] / 3


def test_published_adapter_is_loaded_by_peft_and_gives_the_same_logits(tmp_path: Path) -> None:
    subject = learner()
    train(subject)
    assert subject.publish_adapter(tmp_path) == 2
    loaded = PeftModel.from_pretrained(build("qwen2", torch.float32), str(tmp_path))
    subject.publish_weights(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits(loaded), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(merged), logits(loaded.merge_and_unload()), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(logits(merged), logits(build("qwen2", torch.float32)))


@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_publishing_merged_weights_changes_no_bit_of_what_is_trained(name: str, tmp_path: Path) -> None:
    one, other = learner(name=name), learner(name=name)
    train(one)
    before = {key: value.clone() for key, value in one.model.state_dict().items()}
    one.publish_weights(tmp_path)
    for key, value in one.model.state_dict().items():
        assert torch.equal(value, before[key]), key
    train(one)
    train(other, 4)
    assert one.weights_digest() == other.weights_digest()


def test_merged_bf16_weights_are_full_weights_in_bf16(tmp_path: Path) -> None:
    half = NativeLearner(build("llama", torch.float32), LearnerOptions(dtype="bfloat16", lora=LORA))
    assert {p.dtype for p in half.model.parameters() if p.requires_grad} == {torch.float32}
    train(half)
    half.publish_weights(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert {n for n, _ in loaded.named_parameters()} == {n for n, _ in build("llama").named_parameters()}


def test_state_with_an_adapter_goes_on_exactly_and_holds_no_base_weights(tmp_path: Path) -> None:
    unbroken = learner(LoraOptions(rank=4, dropout=0.25))
    torch.manual_seed(10)
    train(unbroken)
    unbroken.save_state(tmp_path)
    torch.manual_seed(11)
    train(unbroken)

    resumed = learner(LoraOptions(rank=4, dropout=0.25))
    resumed.load_state(tmp_path)
    torch.manual_seed(11)
    train(resumed)

    assert resumed.weights_digest() == unbroken.weights_digest()
    assert (tmp_path / "adapter_model.safetensors").exists()
    assert not (tmp_path / "model.safetensors").exists()


def test_dropout_of_the_adapter_is_on_and_draws_from_the_seed() -> None:
    def loss_of_second_step(seed: int, dropout: float) -> float:
        subject = learner(LoraOptions(rank=4, dropout=dropout))
        torch.manual_seed(0)
        train(subject)
        torch.manual_seed(seed)
        return subject.forward_backward(EXAMPLES, LOSS)["loss"]

    assert loss_of_second_step(1, 0.5) == loss_of_second_step(1, 0.5) != loss_of_second_step(2, 0.5)
    assert loss_of_second_step(1, 0.0) == loss_of_second_step(2, 0.0)


def test_adapter_trains_with_gradient_checkpointing() -> None:
    plain, checkpointed = learner(), learner(gradient_checkpointing=True)
    train(plain)
    train(checkpointed)
    assert plain.weights_digest() == checkpointed.weights_digest()


def test_state_of_another_rank_or_kind_is_refused(tmp_path: Path) -> None:
    learner().save_state(tmp_path)
    with pytest.raises(ModelError, match="another adapter"):
        learner(LoraOptions(rank=2)).load_state(tmp_path)
    with pytest.raises(ModelError, match="kind lora, this learner full"):
        NativeLearner(build("qwen2", torch.float32)).load_state(tmp_path)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "query",
            "matches no module; the modules are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj, or all-linear",
        ),
        ("lm_head", "'lm_head' is the head or the embeddings"),
        ("embed_tokens", "'embed_tokens' is the head or the embeddings"),
    ],
)
def test_target_that_matches_nothing_or_must_not_be_adapted_is_refused(target: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        learner(LoraOptions(rank=4, target_modules=("q_proj", target)))


def test_named_targets_alone_are_adapted() -> None:
    subject = learner(LoraOptions(rank=4, target_modules=("q_proj", "v_proj")))
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name, p in subject.model.named_parameters() if p.requires_grad}
    assert adapted == {"q_proj", "v_proj"}


def test_learner_without_an_adapter_publishes_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="made without LoRA"):
        NativeLearner(build("qwen2", torch.float32)).publish_adapter(tmp_path)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"rank": 4, "dropout": 1.0}, {"rank": 4, "target_modules": ()}])
def test_options_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        LoraOptions(**wrong)  # type: ignore[arg-type]
