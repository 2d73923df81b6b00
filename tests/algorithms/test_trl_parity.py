"""Losses, gradients and advantages against TRL 1.16's own trainers, in float64 on fixed inputs.

TRL's code runs as it is installed, scoring and loss; only what it would get from a model or a reward function is given: sampled
tokens, rewards, and log-probs of a table of logits (B rollouts, T completion tokens, V tokens). Some rollouts hold tokens of an
environment in the middle. Where its defaults are not ours they are set: `use_bias_correction_kl` off, eps 1e-4 given to both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_gsm8k.algorithms.advantages import rollout_advantages
from grpo_gsm8k.algorithms.algorithm import Algorithm, with_parts
from grpo_gsm8k.algorithms.packing import pack
from grpo_gsm8k.algorithms.policy_loss import PolicyLoss
from grpo_gsm8k.algorithms.registry import find_algorithm
from grpo_gsm8k.algorithms.rollout_sequences import build_sequences
from grpo_gsm8k.types import Problem, Rollout, Score

trl = pytest.importorskip("trl")

TINY = Path(__file__).parents[2] / "grpo_gsm8k" / "models" / "tiny"
NUM_GROUPS, GROUP_SIZE, VOCABULARY, MAX_TOKENS = 3, 3, 11, 8
LENGTHS = (5, 2, 7, 1, 6, 4, 3, 3, 8)
ENVIRONMENT = {2: (2, 3), 4: (0, 4), 8: (5,)}  # of these rollouts, the tokens that the environment wrote
REWARDS = (1.0, 0.0, 0.25, 0.5, 0.5, 0.5, 0.0, 1.0, 1.0)
EPS = 1e-4


@dataclass(frozen=True)
class Given:
    """The same inputs for both sides; log-probs (B, T)."""

    completions: tuple[tuple[int, ...], ...]
    sampled: tuple[tuple[bool, ...], ...]
    logits_BTV: torch.Tensor
    old_BT: torch.Tensor
    sampling_BT: torch.Tensor
    reference_BT: torch.Tensor
    rewards_GK: torch.Tensor

    def logprobs(self, logits_BTV: torch.Tensor) -> torch.Tensor:
        ids_BT = torch.zeros(logits_BTV.shape[:2], dtype=torch.int64)
        for row, ids in zip(ids_BT, self.completions, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return logits_BTV.log_softmax(-1).gather(-1, ids_BT[:, :, None])[:, :, 0]

    def of(self, logprobs_BT: torch.Tensor, row: int) -> list[float]:
        """The values of one rollout's sampled tokens."""
        return [logprobs_BT[row, at].item() for at, sampled in enumerate(self.sampled[row]) if sampled]


def given() -> Given:
    rng = torch.Generator().manual_seed(0)

    def near(scale: float) -> torch.Tensor:
        return logits + scale * torch.randn(logits.shape, generator=rng, dtype=torch.float64)

    logits = torch.randn((len(LENGTHS), max(LENGTHS), VOCABULARY), generator=rng, dtype=torch.float64)
    ids = torch.randint(VOCABULARY, logits.shape[:2], generator=rng).tolist()
    found = Given(
        completions=tuple(tuple(row[:length]) for row, length in zip(ids, LENGTHS, strict=True)),
        sampled=tuple(tuple(at not in ENVIRONMENT.get(row, ()) for at in range(n)) for row, n in enumerate(LENGTHS)),
        logits_BTV=logits,
        old_BT=torch.empty(0),
        sampling_BT=torch.empty(0),
        reference_BT=torch.empty(0),
        rewards_GK=torch.tensor(REWARDS, dtype=torch.float64).view(NUM_GROUPS, GROUP_SIZE),
    )
    places = {"old_BT": near(0.2), "sampling_BT": near(0.3), "reference_BT": near(0.5)}
    return replace(found, **{name: found.logprobs(table) for name, table in places.items()})


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """TRL's GRPO and RLOO trainers, which are given what a model, an engine and a reward function would give."""
    from datasets import Dataset

    found = {}
    for name, base, config in (("grpo", trl.GRPOTrainer, trl.GRPOConfig), ("rloo", trl.RLOOTrainer, trl.RLOOConfig)):
        options = {"use_cpu": True, "bf16": False, "report_to": "none", "per_device_train_batch_size": len(LENGTHS)}
        args = config(
            output_dir=str(tmp_path_factory.mktemp("trl")), num_generations=GROUP_SIZE, steps_per_generation=1, **options
        )
        dataset = Dataset.from_list([{"prompt": "2 + 3 ="}] * NUM_GROUPS)
        made = type(base.__name__, (_Fixed, base), {})(str(TINY), lambda **_: [0.0], args=args, train_dataset=dataset)
        made.model.train()
        found[name] = made
    return found


class _Fixed:
    """What stands between TRL's trainers and the world."""

    given: Given
    logits_BTV: torch.Tensor
    ref_model: Any

    def _generate(self, prompts: list[Any]) -> Any:
        prompt_ids = [[3, 4, 5]] * len(prompts)
        completions = [list(ids) for ids in self.given.completions]
        texts = ["" for _ in completions]
        if isinstance(self, trl.RLOOTrainer):
            return prompt_ids, completions, texts
        sampling = [row[: len(ids)].tolist() for row, ids in zip(self.given.sampling_BT, completions, strict=True)]
        return prompt_ids, completions, [list(row) for row in self.given.sampled], texts, sampling, {}, None, None

    def _calculate_rewards(self, *_: Any) -> torch.Tensor:
        return self.given.rewards_GK.reshape(-1, 1)

    def _get_per_token_logps_and_entropies(self, model: Any, *_: Any, compute_entropy: bool = False, **__: Any) -> Any:
        if compute_entropy:  # of the loss alone
            logprobs_BT = self.given.logprobs(self.logits_BTV)
            return logprobs_BT, torch.zeros_like(logprobs_BT), None
        return (self.given.reference_BT if model is self.ref_model else self.given.old_BT), None, None


def trl_outcome(trainer: Any, case: Given, **attributes: Any) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Returns TRL's loss, its gradient by the logits, and its advantages (B); `attributes` are set on the trainer."""
    trainer.given, trainer.logits_BTV = case, case.logits_BTV.clone().requires_grad_()
    trainer.ref_model, trainer.current_gradient_accumulation_steps = object(), 1
    for name, value in attributes.items():
        holder = trainer.args if name.startswith("use_bias") else trainer
        assert hasattr(holder, name), f"TRL's trainer reads no {name}"
        setattr(holder, name, value)
    torch.set_default_dtype(torch.float64)  # TRL makes a tensor of sampling log-probs without naming a type
    try:
        inputs = trainer._generate_and_score_completions([{"prompt": "2 + 3 ="}] * len(LENGTHS))
    finally:
        torch.set_default_dtype(torch.float32)
    loss = trainer._compute_loss(trainer.model, inputs)
    (gradient,) = torch.autograd.grad(loss, trainer.logits_BTV)
    return loss.item(), gradient, inputs["advantages"]


def our_outcome(
    case: Given, algorithm: Algorithm, *, on_policy: bool, correction: str = "none", cap: float = 2.0
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Returns the same three of ours, through rollouts, sequences and a packed batch as in a run."""
    advantages = rollout_advantages(case.rewards_GK, algorithm).flatten()
    rollouts = []
    for row, (ids, sampled) in enumerate(zip(case.completions, case.sampled, strict=True)):
        problem = Problem(id=f"p{row // GROUP_SIZE}", question="", answer="", gold="")
        logprobs = tuple(case.sampling_BT[row, at].item() if is_sampled else 0.0 for at, is_sampled in enumerate(sampled))
        score = Score(REWARDS[row], None, "wrong")
        rollouts.append(Rollout(problem, row % GROUP_SIZE, 0, (3, 4, 5), ids, sampled, logprobs, (), "answered", score))
    rows = range(len(rollouts))
    also = {"old_logprob": [case.of(case.old_BT, row) for row in rows]}
    also["reference_logprob"] = [case.of(case.reference_BT, row) for row in rows]
    sequences = build_sequences(rollouts, advantages.tolist(), algorithm, MAX_TOKENS, also=also)
    loss = PolicyLoss(algorithm, on_policy=on_policy, correction=correction, cap=cap)
    logits_BTV = case.logits_BTV.clone().requires_grad_()
    logprobs_BT = case.logprobs(logits_BTV)
    logprobs_N = torch.cat([logprobs_BT[row, : LENGTHS[row]][torch.tensor(case.sampled[row])] for row in rows])
    value = loss(logprobs_N, pack(sequences, rows))
    (gradient,) = torch.autograd.grad(value, logits_BTV)
    return value.item(), gradient, advantages


PLAIN = {
    "importance_sampling_level": "token",
    "beta": 0.0,
    "use_bias_correction_kl": False,
    "scale_rewards": "group",
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
    "use_vllm": False,
    "num_iterations": 2,  # so that the old policy is not the present one
    "max_completion_length": MAX_TOKENS,
    "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_mode": "token_truncate",
    "vllm_importance_sampling_clip_min": None,
    "vllm_importance_sampling_clip_max": 1.2,
}
TRUNCATED = {"correction": "token", "cap": 1.2}
GSPO_CLIPS = {"clip_low": 0.05, "clip_high": 0.06}  # the paper's clip every sequence of these inputs
GSPO_TRL = {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.06}

# name: (algorithm, its parts, PolicyLoss's options, TRL's)
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "grpo": ("grpo", {}, {}, {"loss_type": "grpo"}),
    "grpo on-policy": ("grpo", {}, {"on_policy": True}, {"loss_type": "grpo", "num_iterations": 1}),
    "grpo clip 0.1 and 0.3": (
        "grpo",
        {"clip_low": 0.1, "clip_high": 0.3},
        {},
        {"loss_type": "grpo", "epsilon_low": 0.1, "epsilon_high": 0.3},
    ),
    "grpo KL k3": ("grpo", {"kl_beta": 0.04}, {}, {"loss_type": "grpo", "beta": 0.04}),
    "grpo KL k3 on-policy": (
        "grpo",
        {"kl_beta": 0.04},
        {"on_policy": True},
        {"loss_type": "grpo", "beta": 0.04, "num_iterations": 1},
    ),
    "bnpo": ("grpo", {"denominator": "tokens"}, {}, {"loss_type": "bnpo"}),
    "dr_grpo": ("dr_grpo", {}, {}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "dapo": ("dapo", {}, {}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dapo token truncation": ("dapo", {}, TRUNCATED, {"loss_type": "dapo", "epsilon_high": 0.28, "use_vllm": True}),
    "dapo sequence truncation": (
        "dapo",
        {},
        {"correction": "sequence", "cap": 1.2},
        {
            "loss_type": "dapo",
            "epsilon_high": 0.28,
            "use_vllm": True,
            "vllm_importance_sampling_mode": "sequence_truncate",
        },
    ),
    "grpo KL k3 token truncation": (
        "grpo",
        {"kl_beta": 0.04},
        TRUNCATED,
        {"loss_type": "grpo", "beta": 0.04, "use_vllm": True},
    ),
    "cispo": ("cispo", {"clip_high": 0.1}, {}, {"loss_type": "cispo", "epsilon_high": 1.1}),
    "cispo token truncation": (
        "cispo",
        {"clip_high": 0.1},
        TRUNCATED,
        {"loss_type": "cispo", "epsilon_high": 1.1, "use_vllm": True},
    ),
    "cispo on-policy": ("cispo", {}, {"on_policy": True}, {"loss_type": "cispo", "epsilon_high": 5.0, "num_iterations": 1}),
    "gspo": ("gspo", GSPO_CLIPS, {}, GSPO_TRL),
    "gspo on-policy": ("gspo", {}, {"on_policy": True}, {**GSPO_TRL, "num_iterations": 1}),
    "gspo token truncation": ("gspo", GSPO_CLIPS, TRUNCATED, {**GSPO_TRL, "use_vllm": True}),
    "gspo KL k3": ("gspo", {**GSPO_CLIPS, "kl_beta": 0.04}, {}, {**GSPO_TRL, "beta": 0.04}),
}


def differences(trainers: Mapping[str, Any], variant: str) -> dict[str, float]:
    """Returns the largest difference of loss, gradient and advantages."""
    name, parts, options, theirs = VARIANTS[variant]
    algorithm = with_parts(find_algorithm(name), **parts)
    if algorithm.scale != "one":
        algorithm = with_parts(algorithm, advantage_eps=EPS)
    case = given()
    loss, gradient, advantages = our_outcome(case, algorithm, **{"on_policy": False, **options})
    expected = trl_outcome(trainers["grpo"], case, **{**PLAIN, **theirs})
    assert gradient.abs().max() > 1e-3 and loss != 0
    return {
        "loss": abs(loss - expected[0]),
        "gradient": (gradient - expected[1]).abs().max().item(),
        "advantages": (advantages - expected[2]).abs().max().item(),
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradient_are_those_of_trl(trainers: Mapping[str, Any], variant: str) -> None:
    for what, difference in differences(trainers, variant).items():
        assert difference < 1e-9, f"{variant}: {what} differs by {difference}"


def test_the_inputs_reach_every_clip() -> None:
    for name, parts in (("dapo", {}), ("cispo", {"clip_low": 0.1, "clip_high": 0.1}), ("gspo", GSPO_CLIPS)):
        algorithm, case = with_parts(find_algorithm(name), **parts), given()
        logprobs_BT = case.logprobs(case.logits_BTV)
        ratios = [
            (torch.tensor(case.of(logprobs_BT, row)) - torch.tensor(case.of(case.old_BT, row))) for row in range(len(LENGTHS))
        ]
        logs = torch.stack([row.mean() for row in ratios]) if algorithm.ratio == "sequence" else torch.cat(ratios)
        assert algorithm.clip_low is not None and algorithm.clip_high is not None
        assert (logs.exp() < 1 - algorithm.clip_low).any() and (logs.exp() > 1 + algorithm.clip_high).any()


@pytest.mark.parametrize(("scale", "theirs"), [("group_std", "group"), ("one", "none")])
def test_advantages_are_those_of_trl_by_its_scale_rewards(trainers: Mapping[str, Any], scale: str, theirs: str) -> None:
    algorithm = with_parts(find_algorithm("grpo"), scale=scale)
    algorithm = with_parts(algorithm, advantage_eps=EPS) if scale != "one" else algorithm
    case = given()
    _, _, expected = trl_outcome(trainers["grpo"], case, **{**PLAIN, "loss_type": "grpo", "scale_rewards": theirs})
    assert (rollout_advantages(case.rewards_GK, algorithm).flatten() - expected).abs().max() < 1e-12


def test_trl_divides_by_the_std_of_raw_rewards_where_its_scale_is_batch(trainers: Mapping[str, Any]) -> None:
    case = given()
    _, _, expected = trl_outcome(trainers["grpo"], case, **{**PLAIN, "loss_type": "grpo", "scale_rewards": "batch"})
    ours = rollout_advantages(case.rewards_GK, with_parts(find_algorithm("grpo"), scale="batch_std", advantage_eps=EPS))
    centred = rollout_advantages(case.rewards_GK, with_parts(find_algorithm("grpo"), scale="one"))
    stretch = (case.rewards_GK.std() + EPS) / (centred.std() + EPS)  # ours is the std of what is divided, the centred rewards
    assert (ours.flatten() - expected * stretch).abs().max() < 1e-12


def test_on_policy_k2_has_the_gradient_of_trls_bias_corrected_k3(trainers: Mapping[str, Any]) -> None:
    case = given()
    theirs = {"loss_type": "grpo", "beta": 0.04, "num_iterations": 1, "use_bias_correction_kl": True}
    _, expected, _ = trl_outcome(trainers["grpo"], case, **{**PLAIN, **theirs})
    for estimator in ("k1", "k2"):
        algorithm = with_parts(find_algorithm("grpo"), kl_beta=0.04, kl_estimator=estimator, advantage_eps=EPS)
        _, gradient, _ = our_outcome(case, algorithm, on_policy=True)
        assert (gradient - expected).abs().max() < 1e-9


@pytest.mark.parametrize("normalised", [False, True])
def test_on_policy_rloo_has_trls_advantages_and_gradient(trainers: Mapping[str, Any], normalised: bool) -> None:
    """Its loss has another value, since TRL's is of the ratio (1), ours of the log-prob; and it knows no environment tokens."""
    case = replace(given(), sampled=tuple((True,) * length for length in LENGTHS))
    case = replace(case, old_BT=case.logprobs(case.logits_BTV))
    parts = {"scale": "batch_std", "advantage_eps": EPS} if normalised else {}
    algorithm = with_parts(find_algorithm("rloo"), **parts)
    _, gradient, advantages = our_outcome(case, algorithm, on_policy=True)
    _, expected, their_advantages = trl_outcome(trainers["rloo"], case, beta=0.0, normalize_advantages=normalised)
    assert (advantages - their_advantages).abs().max() < 1e-12
    assert (gradient - expected).abs().max() < 1e-9
