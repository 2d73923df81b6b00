"""A prefix that sequences share, computed once: the gradient is that of each sequence by itself, on every architecture.

`pytest -s` prints the table of differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from architectures import CONFIGS, VOCAB, Whole, build, difference, gradients, padded_loss

from grpo_gsm8k.algorithms.packing import PackedBatch
from grpo_gsm8k.algorithms.sft_loss import SftLoss
from grpo_gsm8k.learners import packed_attention
from grpo_gsm8k.learners.native import NativeLearner
from grpo_gsm8k.learners.options import LearnerOptions, LoraOptions
from grpo_gsm8k.tokenize import TokenSequence

FLOAT64_LIMIT, FLOAT32_LIMIT = 1e-10, 2e-5
ROTATES_IN_FLOAT32 = ("cohere",)  # in transformers, also where the model is float64


def groups() -> list[TokenSequence]:
    """Three prompts of 11, 4 and 8 tokens with 4, 1 and 2 completions, in no order; some have two turns, one has one token."""
    generator = torch.Generator().manual_seed(2)

    def draw(num: int) -> list[int]:
        return torch.randint(3, VOCAB, (num,), generator=generator).tolist()

    prompts = [draw(11), draw(4), draw(8)]
    shapes = [(0, (5,)), (1, (9,)), (0, (1,)), (2, (7, -3, 2)), (0, (12, -2, 3, -1, 2)), (2, (16,)), (0, (6, -2))]
    found = []
    for place, (prompt, stretches) in enumerate(shapes):
        ids, trained = list(prompts[prompt]), [False] * len(prompts[prompt])
        for stretch in stretches:  # below 0: the environment's tokens
            ids += draw(abs(stretch))
            trained += [stretch > 0] * abs(stretch)
        found.append(TokenSequence(f"g{prompt}-{place}", tuple(ids), tuple(trained)))
    return found


EXAMPLES = groups()
LORA = LoraOptions(rank=4)
LOSS = SftLoss(sum(example.num_trained for example in EXAMPLES))


def exact_norms(model: torch.nn.Module) -> None:
    """transformers norms in float32 even in a float64 model, which hides what is exact; after this it does not."""
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            module.forward = normaliser(module, 1.0 if kind.startswith("Gemma") else 0.0)  # type: ignore[method-assign]


def normaliser(module: torch.nn.Module, offset: float) -> Callable[[torch.Tensor], torch.Tensor]:
    eps = getattr(module, "variance_epsilon", None) or module.eps

    def forward(x: torch.Tensor) -> torch.Tensor:
        return (module.weight + offset) * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))

    return forward


def learner(name: str, dtype: torch.dtype = torch.float64, **options: object) -> NativeLearner:
    model = build(name, dtype)
    if dtype == torch.float64:
        exact_norms(model)
    torch.manual_seed(3)  # an adapter's first weights are drawn
    subject = NativeLearner(model, LearnerOptions(**options))  # type: ignore[arg-type]
    with torch.no_grad():  # B of an adapter starts at zero, and then A has no gradient
        for part, parameter in subject.model.named_parameters():
            if "lora_B" in part:
                parameter.copy_(torch.sin(torch.arange(parameter.numel())).view_as(parameter) * 0.1)
    return subject


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    rows: list[str] = []
    yield rows
    print("\n\n| architecture | precision | attention | relative difference |\n|---|---|---|---|")
    print("\n".join(rows))


@pytest.fixture(params=[(256, 256), (0, 256), (0, 5)], ids=["one call", "by segments", "by blocks of 5"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether a group is attended to at once, a segment at a time, or a block of a segment at a time."""
    tree, block = request.param
    monkeypatch.setattr(packed_attention, "TREE_TOKENS", tree)
    monkeypatch.setattr(packed_attention, "QUERY_BLOCK", block)
    return "one call" if tree else f"segments, {block} queries at once"


@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_and_log_probs_equal_those_of_each_sequence_by_itself(name: str, way: str, table: list[str]) -> None:
    limit = FLOAT32_LIMIT if name in ROTATES_IN_FLOAT32 else FLOAT64_LIMIT
    compare(name, torch.float64, limit, table, way)


@pytest.mark.parametrize("name", ["qwen2", "llama", "qwen3", "gemma3 text"])
def test_so_they_are_in_float32(name: str, table: list[str]) -> None:
    compare(name, torch.float32, FLOAT32_LIMIT, table, "one call")


def compare(name: str, dtype: torch.dtype, limit: float, table: list[str], way: str) -> None:
    alone, shared = (learner(name, dtype, share_prefixes=on) for on in (False, True))
    wanted, found = (subject.forward_backward(EXAMPLES, LOSS) for subject in (alone, shared))
    worst = difference(gradients(shared.model), gradients(alone.model))
    table.append(f"| {name} | {str(dtype)[6:]} | {way} | {worst:.1e} |")
    assert wanted["num_tokens"] - found["num_tokens"] == 3 * 11 + 8
    assert found["loss"] == pytest.approx(wanted["loss"], rel=limit)
    assert worst < limit
    for one, other in zip(shared.logprobs(EXAMPLES), alone.logprobs(EXAMPLES), strict=True):
        assert one == pytest.approx(other, abs=10 * limit)


def test_gradient_equals_that_of_the_padded_batch_in_plain_transformers() -> None:
    reference = build("qwen3")
    padded_loss(reference, EXAMPLES).backward()
    subject = NativeLearner(build("qwen3"))
    subject.forward_backward(EXAMPLES, LOSS)
    assert difference(gradients(subject.model), gradients(reference)) < 1e-6


@pytest.mark.parametrize("name", ["qwen2 sliding", "gemma2"])
@pytest.mark.parametrize(
    "options",
    [
        {"lora": LoraOptions(rank=4)},
        {"gradient_checkpointing": True},
        {"lora": LoraOptions(rank=4), "gradient_checkpointing": True},
    ],
    ids=["LoRA", "checkpointed", "both"],
)
def test_adapters_and_checkpointing_share_as_exactly(name: str, options: dict[str, object]) -> None:
    alone, shared = (learner(name, share_prefixes=on, **options) for on in (False, True))
    for subject in (alone, shared):
        subject.forward_backward(EXAMPLES, Whole(LOSS))
    assert difference(gradients(shared.model), gradients(alone.model)) < FLOAT64_LIMIT


def test_bf16_shares_within_its_rounding() -> None:
    found = []
    for on in (False, True):
        subject = NativeLearner(build("qwen2 sliding", torch.float32), LearnerOptions(dtype="bfloat16", share_prefixes=on))
        subject.forward_backward(EXAMPLES, LOSS)
        found.append({name: weight.grad for name, weight in subject._optimizer.weights.items()})
    assert difference(found[1], found[0]) < 0.02


@pytest.mark.parametrize("budget", [1, 20, 30, 45])
def test_group_that_is_split_over_micro_batches_gives_the_same_gradient(budget: int) -> None:
    whole, split = learner("qwen3"), learner("qwen3", tokens_per_microbatch=budget)
    one, many = whole.forward_backward(EXAMPLES, LOSS), split.forward_backward(EXAMPLES, LOSS)
    assert one["num_microbatches"] == 1 < many["num_microbatches"]
    assert difference(gradients(split.model), gradients(whole.model)) < FLOAT64_LIMIT
    for a, b in zip(split.logprobs(EXAMPLES), whole.logprobs(EXAMPLES), strict=True):
        assert a == pytest.approx(b, abs=1e-9)


def test_where_nothing_is_shared_no_bit_differs() -> None:
    different = [EXAMPLES[1], EXAMPLES[3], EXAMPLES[4]]
    alone, shared = (learner("gemma3 text", torch.float32, share_prefixes=on) for on in (False, True))
    for subject in (alone, shared):
        subject.forward_backward(different, LOSS)
    for name, gradient in gradients(alone.model).items():
        assert torch.equal(gradient, gradients(shared.model)[name]), name


class Seen(SftLoss):
    """A supervised loss that weighs tokens by their label, so that a value at another token's place would show."""

    def __call__(self, logprobs_N: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        return -(logprobs_N * batch.extras["weight"] * (1 + batch.sequence_index_N)).sum()


def test_extras_and_places_stay_with_their_tokens() -> None:
    examples = [
        TokenSequence(example.id, example.token_ids, example.trained, {"weight": tuple(map(float, example.token_ids))})
        for example in EXAMPLES
    ]
    alone, shared = (learner("llama", share_prefixes=on) for on in (False, True))
    losses = [subject.forward_backward(examples, Seen(1))["loss"] for subject in (alone, shared)]
    assert losses[0] == pytest.approx(losses[1], rel=FLOAT64_LIMIT)
    assert difference(gradients(shared.model), gradients(alone.model)) < FLOAT64_LIMIT


def test_record_says_whether_prefixes_are_shared() -> None:
    assert learner("llama").describe()["share_prefixes"] is True
    assert learner("llama", share_prefixes=False).describe()["share_prefixes"] == "off"
