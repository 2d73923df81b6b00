"""The policy that samples is the policy that was trained: weights go from the learner to the engine through a folder in RAM."""

from __future__ import annotations

import time

from grpo_gsm8k.engines.protocol import Engine, require
from grpo_gsm8k.learners.protocol import Learner
from grpo_gsm8k.runs.weight_folders import WeightFolders

READER = "engine"


class PolicySync:
    """Publishes the learner's weights to the engine; `version` is the number of optimiser steps the engine's weights have."""

    def __init__(self, learner: Learner, engine: Engine, folders: WeightFolders) -> None:
        """Raises: ConfigError when the engine takes no new weights or gives no log-probs."""
        require(engine, weight_updates=True, logprobs=True, token_ids=True, per_request_seeds=True)
        self._learner, self._engine, self._folders = learner, engine, folders
        self.version = 0

    def publish(self, step: int) -> float:
        """Hands the learner's weights to the engine; returns the seconds it took. Raises: ModelError, StorageError."""
        began = time.monotonic()
        path = self._folders.make(step, READER)
        try:
            self.version = self._learner.publish_weights(path)
            self._engine.load_weights(path, self.version)
        finally:
            self._folders.remove(step, READER)
        return time.monotonic() - began
