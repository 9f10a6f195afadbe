"""RLPD, Cal-QL and IBRL on `tiny.point_env`, with demonstrations of it."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dppo_jax.algorithms import calql, ibrl, rlpd
from dppo_jax.demonstrations.dataset import Episodes
from dppo_jax.types import VecEnv
from tests import tiny

MODULES = {"rlpd": rlpd, "calql": calql, "ibrl": ibrl}
NUM_DEMONSTRATIONS = 6
# Control steps of each demonstration.
LENGTH = 6
# The reward of every demonstrated control step; those of `point_env` are not above 0.
REWARD = 0.5


def demonstrations(**changes: Any) -> Episodes:
    """Episodes whose actions are nearly GOAL; half of them terminate."""
    draws = np.random.default_rng(0)
    steps = NUM_DEMONSTRATIONS * LENGTH
    action = tiny.GOAL + 0.05 * draws.normal(size=(steps, tiny.ACTION_DIM))
    count = np.tile(np.arange(LENGTH), NUM_DEMONSTRATIONS)
    before = np.where(count == 0, 0.0, np.roll(action[:, 0], 1))
    ends = (count == LENGTH - 1) & (np.arange(steps) < steps / 2)
    return Episodes(
        observations={"state": np.stack([before, count], 1).astype(np.float32)},
        actions=action.astype(np.float32),
        episode_lengths=np.full(NUM_DEMONSTRATIONS, LENGTH),
        rewards=np.full(steps, REWARD, np.float32),
        terminals=ends,
        normalizer=tiny.NORMALIZER,
    )._replace(**changes)


def configuration(name: str, **changes: Any) -> ConfigDict:
    """4 chunks in each environment and 16 updates of 8 rows for an iteration.

    Write dots in names of `changes`, which are settings of the algorithm, as double
    underscores.
    """
    config = ConfigDict()
    config.rollout = dict(num_chunks=4, reset_at_iteration=False)
    config.critic = dict(hidden_sizes=(16,), activation="relu", layer_norm=True)
    config.algorithm = {name: MODULES[name].default_config()}
    settings = config.algorithm[name]
    settings.replay.update(capacity=400, batch_size=8, random_steps=0, min_fill=0)
    settings.replay.update(updates_per_transition=1.0, updates_per_round=2)
    if name == "calql":
        settings.replay.updates_per_round = 1
        settings.update(offline_iterations=2, offline_updates=8, backup_actions=2)
    settings.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in changes.items()}
    )
    return config


def make(
    name: str,
    env: VecEnv | None = None,
    *,
    data: Episodes | None = None,
    policy: Any = None,
    rollout: dict[str, Any] | None = None,
    **changes: Any,
):
    """The algorithm `name`; `changes` as in `configuration`."""
    config = configuration(name, **changes)
    config.rollout.update(rollout or {})
    if policy is None:
        policy = policy_of(name)
    return MODULES[name].make(
        tiny.point_env(4, lengths=(3, 99)) if env is None else env,
        policy,
        config,
        demonstrations() if data is None else data,
    )


def without_learning(name: str, monkeypatch: Any, watch: Any = None) -> None:
    """Algorithms that are made from now on collect and store, and learn nothing.

    Args:
        watch: batches -> metrics of a round. None: no metrics.
    """
    make_learner = MODULES[name].make_learner

    def inert(*args: Any) -> Any:
        def update(state: Any, batches: Any, key: Any) -> tuple[Any, Any]:
            return state, watch(batches) if watch else {}

        return make_learner(*args)._replace(update=update)

    monkeypatch.setattr(MODULES[name], "make_learner", inert)


def policy_of(name: str):
    return (
        tiny.tiny_gaussian_policy() if name == "ibrl" else tiny.tiny_squashed_policy()
    )


def start(name: str, algorithm, *, seed: int = 0):
    """The initial state; IBRL gets the parameters of a policy."""
    args = ()
    if name == "ibrl":
        obs = {"state": np.zeros((1, 1, 2), np.float32)}
        args = (tiny.tiny_gaussian_policy().init(jax.random.key(7), obs),)
    return algorithm.init(jax.random.key(seed), *args)


def run(name: str, algorithm, num_iterations: int):
    """The final state, the metrics of every iteration, and the compiled phases."""
    state, programs, rows = start(name, algorithm), tiny.compiled(algorithm), []
    for _ in range(num_iterations):
        state, metrics = tiny.iterate(programs, state)
        rows.append({key: float(value) for key, value in metrics.items()})
    return state, rows, programs
