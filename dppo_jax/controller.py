"""A loaded policy in the loop of a robot: NumPy in, NumPy out, one action per call."""

from collections.abc import Mapping

import jax
import numpy as np

from dppo_jax.deploy import LoadedPolicy, Observation, as_entries
from dppo_jax.errors import SettingsError


class Controller:
    """Receding-horizon control: acts by chunks, of which it executes the beginning.

    It keeps what lies between two control steps: the history of observations, the rest
    of the chunk and the state of the random numbers. A loop calls it at the rate of the
    task:

        controller = Controller(load_policy("runs/can/finetune"))
        controller.reset()
        while running:
            robot.send(controller(robot.observe()))

    Args:
        policy: what `load_policy` returns.
        executed: actions of a chunk that are executed before the next one is sampled;
            None: as in training.
        ensemble: None, or m >= 0: sample a chunk in every control step and execute the
            weighted mean of all actions that were planned for it, with the weight
            exp(-m i) of the i-th oldest (temporal ensembling, Zhao et al. 2023, arXiv
            2304.13705, Sec. IV-B). It replaces `executed`.
        deterministic: False explores, as the roll-outs of training do.
        seed: of the random numbers. With `deterministic` the denoising chain still
            starts from noise; the same seed gives the same actions.

    It compiles when it is made, so that no control step waits for it.

    Raises:
        SettingsError: a policy that cannot act, or `executed` or `ensemble` out of
            range.
    """

    def __init__(
        self,
        policy: LoadedPolicy,
        *,
        executed: int | None = None,
        ensemble: float | None = None,
        deterministic: bool = True,
        seed: int = 0,
    ) -> None:
        self._policy, self._deterministic = policy, deterministic
        self._ensemble = ensemble
        self._key = jax.random.key(seed)
        self._split = jax.jit(jax.random.split)
        self._history: dict[str, np.ndarray] = {}
        self._plans: list[np.ndarray] = []
        zeros = {name: np.zeros(x.shape, x.dtype) for name, x in policy.reads.items()}
        length = len(self._sample(zeros))
        if ensemble is not None and not ensemble >= 0:
            raise SettingsError(f"ensemble={ensemble} must not be negative.")
        self.executed = _executed(policy, length) if executed is None else executed
        if not 1 <= self.executed <= length:
            raise SettingsError(
                f"executed={executed} must lie between 1 and the {length} actions of a "
                "chunk."
            )
        self._key = jax.random.key(seed)

    def reset(self) -> None:
        """Begin an episode: forget observations and planned actions."""
        self._history, self._plans = {}, []

    def __call__(self, obs: Observation) -> np.ndarray:
        """The action of this control step.

        Args:
            obs: the newest observation in the units of the task: [Do], or a mapping
                with `state` [Do] and, for policies that see, `rgb` [H, W, C] uint8.

        Returns:
            [Da] in the units of the task.

        Raises:
            SettingsError: an observation of another shape, or one that is not finite.
        """
        self._remember(obs)
        if self._ensemble is not None:
            return self._mean_of_plans()
        if not self._plans:
            self._plans = list(self._sample(self._history)[: self.executed])
        return self._plans.pop(0)

    def _remember(self, obs: Observation) -> None:
        reads = self._policy.reads
        entries = as_entries(obs, reads)
        for name, x in entries.items():
            _, *shape = reads[name].shape
            if x.shape != tuple(shape):
                raise SettingsError(
                    f"obs[{name!r}] has shape {list(x.shape)}; this policy takes "
                    f"{shape}: the newest observation, without a history."
                )
        for name, x in entries.items():
            length = reads[name].shape[0]
            # The first observation of an episode fills the history, as in training.
            seen = self._history.get(name, np.repeat(x[None], length, axis=0))
            self._history[name] = np.concatenate([seen[1:], x[None]])

    def _sample(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        self._key, key = self._split(self._key)
        return self._policy.sample(key, obs, deterministic=self._deterministic)

    def _mean_of_plans(self) -> np.ndarray:
        # Every plan begins with the action of this control step; the oldest is first.
        plans = [plan[1:] for plan in self._plans] + [self._sample(self._history)]
        self._plans = [plan for plan in plans if len(plan)]
        assert self._ensemble is not None
        weights = np.exp(-self._ensemble * np.arange(len(self._plans)))
        actions = [plan[0] for plan in self._plans]
        return np.average(actions, axis=0, weights=weights).astype(np.float32)


def _executed(policy: LoadedPolicy, length: int) -> int:
    env = policy.config.get("env")
    executed = env.get("executed") if isinstance(env, dict) else None
    return length if executed is None else min(executed, length)
