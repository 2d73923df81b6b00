"""A few rollouts of an environment, sampled now by the transformers engine."""

from __future__ import annotations

from typing import Any

from grpo_gsm8k.config_env import EnvRolloutsConfig
from grpo_gsm8k.engines.loading import load_tokenizer
from grpo_gsm8k.engines.requests import check_request
from grpo_gsm8k.engines.select import make_engine
from grpo_gsm8k.envs.protocol import Environment
from grpo_gsm8k.loops.rollouts import RolloutLimits, RolloutRequest, RolloutSampler, turn_seeds
from grpo_gsm8k.prompts import DEFAULT_TEMPLATE, load_template, render_batch
from grpo_gsm8k.runs.token_texts import Decode
from grpo_gsm8k.turns import observation_renderer
from grpo_gsm8k.types import Rollout, Sampling


def sample_rollouts(env: Environment, config: EnvRolloutsConfig) -> tuple[list[Rollout], Decode]:
    """Returns one rollout of each of the first `num` problems of a split, and how tokens read, special ones included.

    Raises: PromptError for a prompt longer than the model's window; what the engine and the environment raise.
    """
    import torch

    if config.model_id == "tiny":
        torch.set_num_threads(1)
    name = config.template
    if name == "auto":
        name = "question" if config.model_id == "tiny" else DEFAULT_TEMPLATE
    template = load_template(name)
    tokenizer = load_tokenizer(config.model_id, config.model_revision)
    problems = env.problems(config.split)[: config.num]
    prompts = render_batch(tokenizer, problems, template=template)
    sampling = Sampling(config.temperature, max_tokens=config.max_new_tokens, stop=template.stop)
    renderer = observation_renderer(env, tokenizer, template)
    engine, _ = make_engine("transformers", model_id=config.model_id, revision=config.model_revision, device=config.device)
    try:
        window = engine.describe().get("window_tokens")
        check_request(prompts, sampling, [0] * len(prompts), window=window)
        limits = RolloutLimits(env.max_turns, config.max_new_tokens, config.max_rollout_tokens)

        def decode(token_ids: Any) -> str:
            return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))

        sampler = RolloutSampler(env, engine, sampling, limits, decode, None if renderer is None else renderer.extend)
        requests = [RolloutRequest(problem, prompt, 0) for problem, prompt in zip(problems, prompts, strict=True)]
        batch = sampler.sample(requests, turn_seeds(config.seed, 0))
    finally:
        engine.close()
    return list(batch.rollouts), lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False))
