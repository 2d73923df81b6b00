"""The parts that `grpo` and `expert-iteration` share, built from their config: engine, sampler, evaluator, collector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from grpo_gsm8k.commands.env_problems import Material, choose, read_material
from grpo_gsm8k.commands.start import Started, record_data
from grpo_gsm8k.commands.training import open_evaluator, open_learner
from grpo_gsm8k.commands.unread import unread_by_run, warn_unread
from grpo_gsm8k.config_rl import MULTI_TURN, RewardTrainingConfig
from grpo_gsm8k.engines.loading import load_tokenizer, resolve_device
from grpo_gsm8k.engines.model_files import model_record
from grpo_gsm8k.engines.protocol import Engine
from grpo_gsm8k.engines.requests import check_request
from grpo_gsm8k.engines.select import choose_engine, cuda_is_there, make_engine, vllm_is_importable
from grpo_gsm8k.learners.native import NativeLearner
from grpo_gsm8k.loops.collect import Collector
from grpo_gsm8k.loops.curriculum import PassOrder
from grpo_gsm8k.loops.eval_client import EvalClient
from grpo_gsm8k.loops.eval_spec import EnvEvalSpec
from grpo_gsm8k.loops.policy_sync import PolicySync
from grpo_gsm8k.loops.rollouts import RolloutLimits, RolloutSampler
from grpo_gsm8k.prompts import Template, load_template
from grpo_gsm8k.runs.storage import write_text
from grpo_gsm8k.turns import observation_renderer
from grpo_gsm8k.types import Sampling


@dataclass(frozen=True)
class Prepared:
    """What is known before any weight is loaded."""

    config: Any
    tokenizer: Any
    template: Template
    material: Material


@dataclass(frozen=True)
class Parts:
    """What a loop that learns from rewards is given."""

    learner: NativeLearner
    engine: Engine
    sampling: Sampling
    sampler: RolloutSampler
    sync: PolicySync
    evaluator: EvalClient


def prepare_run(start: Started[Any]) -> Prepared:
    """Reads all that a run needs besides weights, and writes it into the run directory; what is wrong is said here."""
    start.configure_torch()
    config = choose(start)
    warn_unread(start.resolved, unread_by_run(config, _engine_name(config)))
    template = load_template(config.template)
    write_text(start.run.path / "template.txt", template.source)
    tokenizer = load_tokenizer(config.model_id, config.model_revision)
    material = read_material(start, config, tokenizer, template)
    model = model_record(config.model_id, config.model_revision)
    how = {"role": "template", "source": config.template, "sha256": template.sha256, "rows": None, "commit": None}
    record_data(start, {"files": [*model, *material.files, how], "num_problems": len(material.train)})
    start.run.write_json("overlap.json", material.overlap)
    env = material.env
    start.write_sys("env.json", {"name": env.name, "version": env.version, "max_turns": env.max_turns})
    return Prepared(config, tokenizer, template, material)


def collector_of(config: RewardTrainingConfig, material: Material, order: PassOrder, resamples: int = 0) -> Collector:
    """Returns what chooses problems and samples their groups."""
    return Collector(
        problems=material.train,
        prompts=material.prompts,
        order=order,
        group_size=config.group_size,
        seed=config.seed,
        max_error_rate=config.max_error_rate,
        resamples=resamples,
    )


def limits_of(config: RewardTrainingConfig, material: Material) -> RolloutLimits:
    """Returns what ends a rollout that its environment does not end."""
    return RolloutLimits(material.env.max_turns, config.max_new_tokens, config.max_rollout_tokens)


def longest_rollout(config: RewardTrainingConfig, material: Material) -> int:
    """Returns how many tokens a rollout can sample at most."""
    most = material.env.max_turns * config.max_new_tokens
    return most if config.max_rollout_tokens is None else min(most, config.max_rollout_tokens)


@contextmanager
def open_parts(start: Started[Any], prepared: Prepared, **learner_options: Any) -> Iterator[Parts]:
    """Opens evaluator, learner, engine and what joins them, and closes them all."""
    config, material, tokenizer = prepared.config, prepared.material, prepared.tokenizer
    env = material.env
    stop = (*prepared.template.stop, *env.stop)
    with ExitStack() as stack:
        stack.callback(env.close)
        renderer = observation_renderer(env, tokenizer, prepared.template)
        extend = renderer.extend if renderer else None
        evaluator = stack.enter_context(_open_evaluator(start, prepared, stop))
        if cuda_is_there():
            evaluator.wait_ready()  # vLLM measures the memory of its GPU while it starts
        learner = open_learner(config, **learner_options)
        start.write_sys("learner.json", dict(learner.describe()))
        engine = _open_engine(config)
        stack.callback(engine.close)
        sampling = Sampling(config.temperature, config.top_p, config.top_k, config.max_new_tokens, stop)
        described = dict(engine.describe())
        check_request(material.prompts, sampling, [0] * len(material.prompts), window=described.get("window_tokens"))
        start.write_sys("engine.json", described)

        def decode(token_ids: Any) -> str:
            return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))

        sampler = RolloutSampler(env, engine, sampling, limits_of(config, material), decode, extend)
        sync = PolicySync(learner, engine, evaluator.folders)
        yield Parts(learner, engine, sampling, sampler, sync, evaluator)


def _has_cuda(config: RewardTrainingConfig) -> bool:
    return cuda_is_there() and config.engine_device != "cpu"


def _engine_name(config: RewardTrainingConfig) -> str:
    named = config.engine == "auto" and config.engine_device != "auto"  # only transformers takes a device
    asked = "transformers" if named else config.engine
    return choose_engine(asked, has_cuda=_has_cuda(config), has_vllm=vllm_is_importable())[0]


def _open_engine(config: RewardTrainingConfig) -> Engine:
    has_cuda, name = _has_cuda(config), _engine_name(config)
    dtype = config.engine_dtype if has_cuda or config.engine_dtype != "auto" else "float32"
    arguments: dict[str, Any] = {"model_id": config.model_id, "revision": config.model_revision, "dtype": dtype}
    if name == "vllm":
        arguments |= {"gpu_mem_util": config.engine_mem_util, "seed": config.seed, "device": config.engine_device}
    else:
        arguments |= {"device": str(resolve_device(config.engine_device)), "batch_size": config.batch_size}
    engine, _ = make_engine(name, **arguments)
    return engine


def _open_evaluator(start: Started[Any], prepared: Prepared, stop: tuple[str, ...]) -> EvalClient:
    config, material = prepared.config, prepared.material
    if config.env not in MULTI_TURN:
        assert material.eval_set is not None
        return open_evaluator(start, material.eval_path, material.eval_set.stop or stop, material.graders)
    env = EnvEvalSpec(
        name=config.env,
        template=config.template,
        template_sha256=prepared.template.sha256,
        limits=RolloutLimits(material.env.max_turns, config.eval_max_new_tokens, config.max_rollout_tokens),
        options={"seed": config.split_seed, "max_turns": config.max_turns},
    )
    return open_evaluator(start, material.eval_path, stop, material.graders, env)
