"""The policy that samples is the policy that was trained: weights go from the learner to the engine through a folder in RAM."""

from __future__ import annotations

import time
from types import TracebackType

from grpo_gsm8k.engines.protocol import Engine, require
from grpo_gsm8k.learners.protocol import Learner
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.weight_folders import WeightFolders, choose_place


class PolicySync:
    """Publishes the learner's weights to the engine; `version` is the number of optimiser steps the engine's weights have."""

    def __init__(self, run: RunDirectory, learner: Learner, engine: Engine, weights_bytes: int) -> None:
        """Raises: ConfigError when the engine takes no new weights or gives no log-probs; StorageError."""
        require(engine, weight_updates=True, logprobs=True, token_ids=True, per_request_seeds=True)
        self._learner, self._engine = learner, engine
        self._folders = WeightFolders(choose_place(run.path, weights_bytes, 1))
        self.version = 0

    def __enter__(self) -> PolicySync:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._folders.close()

    def publish(self, step: int) -> float:
        """Hands the learner's weights to the engine; returns the seconds it took. Raises: ModelError, StorageError."""
        began = time.monotonic()
        path = self._folders.make(step)
        try:
            self.version = self._learner.publish_weights(path)
            self._engine.load_weights(path, self.version)
        finally:
            self._folders.remove(step)
        return time.monotonic() - began
