"""The `best/` folder of a run: the policy whose score was highest."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from dppo_jax.normalize import Normalizer
from dppo_jax.training.checkpoint import (
    BEST,
    described,
    open_folder,
    policy_item,
    read_policy_item,
)
from dppo_jax.training.orbax_manager import writing
from dppo_jax.types import PyTree


class Best:
    """The `best/` folder of one run: the policy whose score was highest.

    Args:
        name: name of the score. A saved policy with another name is replaced at the
            first score.
    """

    def __init__(self, run_dir: str | os.PathLike, name: str) -> None:
        self._name = np.frombuffer(name.encode(), np.uint8)
        self._manager = open_folder(run_dir, BEST, max_to_keep=1, create=True)
        self._score = -np.inf
        step = self._manager.latest_step()
        if step is not None:
            policy = read_policy_item(self._manager, step)
            if np.array_equal(policy["score_name"], self._name):
                self._score = float(policy["score"])

    def close(self) -> None:
        """Wait until everything is written.

        Raises:
            OSError: it cannot be written.
        """
        with writing(self._manager):
            self._manager.close()

    def clear(self) -> None:
        """Remove what is saved."""
        for step in self._manager.all_steps():
            self._manager.delete(step)
        self._score = -np.inf

    def is_beaten_by(self, score: float) -> bool:
        """Whether `score` is higher than all before; False for NaN."""
        return score > self._score

    def save(
        self,
        iteration: int,
        params: PyTree,
        normalizer: Normalizer,
        *,
        score: float,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Replace the saved parameters by these; `about` as in `Checkpoints.save`."""
        self._score = score
        # A run that resumed from an earlier checkpoint repeats iterations.
        if iteration in self._manager.all_steps():
            self._manager.delete(iteration)
        item = policy_item(
            params, normalizer, score=np.asarray(score), score_name=self._name
        )
        with writing(self._manager, begins=True):
            # Save even if the replaced policy has a later iteration.
            self._manager.save(
                iteration,
                args=ocp.args.Composite(policy=item),
                custom_metadata=described(about),
                force=True,
            )
