"""Record what a policy does as a data set, the way the sets of D4RL were recorded."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.demonstrations.dataset import Episodes
from dppo_jax.errors import SettingsError
from dppo_jax.normalize import (
    Normalizer,
    fit_normalizer,
    policy_obs,
    unnormalize_action,
)
from dppo_jax.rollout import env_keys, first_episodes
from dppo_jax.types import Act, Array, Obs, PyTree, TimeStep, Transition, VecEnv


class _Rows(NamedTuple):
    """What a control step showed; leaves [T, B, ...] of a round."""

    state: Any
    action: Any
    reward: Any
    terminated: Any


def make_recorder(
    env: VecEnv,
    act: Act,
    *,
    num_control_steps: int,
) -> Callable[[PyTree, Array], Episodes]:
    """Record whole episodes, until they hold `num_control_steps` control steps or more.

    Every environment gives the first episode of a round, since taking whatever ends
    first would favour short ones; rounds of the same compiled program follow each
    other until there are enough. The last episode is not cut.

    Args:
        env: at the control rate and in task units, with a time limit.
        act: (params, keys [B], obs {"state": [B, Do]}) -> (action [B, Da], extras),
            the actions that are executed and recorded, in task units.
        num_control_steps: N at least.

    Returns:
        (params, key) -> Episodes in task units with `rewards` and `terminals`; an
        episode without a terminal is one that the time limit cut.

    Raises:
        SettingsError: no time limit, or less than one step.
    """
    if env.max_steps is None:
        raise SettingsError(
            "recording needs a time limit; wrap the task in time_limit."
        )
    if num_control_steps < 1:
        raise SettingsError(
            f"num_control_steps={num_control_steps} to record must be at least 1."
        )
    max_steps = env.max_steps

    def row(transition: Transition, outcome: TimeStep) -> _Rows:
        return _Rows(
            state=transition.obs["state"],
            action=transition.action,
            reward=transition.reward,
            terminated=transition.terminated > 0,
        )

    @jax.jit
    def play(params: PyTree, key: Array) -> tuple[Array, _Rows]:
        episodes = first_episodes(
            env,
            functools.partial(act, params),
            env_keys(key, env.num_envs),
            record=row,
        )
        return episodes.length, episodes.kept

    def record(params: PyTree, key: Array) -> Episodes:
        parts: list[_Rows] = []
        lengths: list[np.ndarray] = []
        missing = num_control_steps
        while missing > 0:
            key, round_key = jax.random.split(key)
            length, rows = jax.tree.map(np.asarray, play(params, round_key))
            # As many episodes as are missing, in the order of the environments.
            length = length[: np.searchsorted(np.cumsum(length), missing) + 1]
            kept = np.arange(max_steps) < length[:, None]
            parts.append(
                jax.tree.map(lambda x: x.swapaxes(0, 1)[: len(length)][kept], rows)
            )
            lengths.append(length)
            missing -= int(length.sum())
        rows = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        return Episodes(
            observations={"state": rows.state},
            actions=rows.action,
            episode_lengths=np.concatenate(lengths),
            rewards=rows.reward,
            terminals=rows.terminated,
        )

    return record


def in_task_units(act: Act, normalizer: Normalizer) -> Act:
    """What a policy with To = 1 does, at the control rate and in task units.

    Returns:
        (params, keys [B], obs {"state": [B, Do]}) -> (action [B, Da], extras): the
        first action of each chunk that `act` chooses, clipped to the bounds, because
        Gaussian noise reaches beyond what a motor can do, and data should say what was
        done.
    """

    def act_on_raw(
        params: PyTree, keys: Array, obs: Obs, *, deterministic: bool = False
    ) -> tuple[Array, PyTree]:
        state = policy_obs(normalizer, obs["state"])[:, None]
        chunk, extras = act(params, keys, {"state": state}, deterministic=deterministic)
        action = jnp.clip(chunk[:, 0], -1.0, 1.0)
        return unnormalize_action(normalizer, action), extras

    return act_on_raw


def random_bounds(env: VecEnv, key: Array, *, num_control_steps: int) -> Normalizer:
    """Bounds for a policy that starts from nothing: what random actions show.

    They stay as they are, unlike running moments, so that a checkpoint carries them
    like those of a data set. A policy that outgrows them sees entries beyond +-1.

    Args:
        env: as for `make_recorder`, with actions in [-1, 1].
        num_control_steps: of random actions, uniform in [-1, 1]; at least.

    Returns:
        The smallest and largest observations; [-1, 1] itself for the actions.
    """

    def act(
        params: PyTree, keys: Array, obs: Obs, *, deterministic: bool = False
    ) -> tuple[Array, PyTree]:
        def one(key: Array) -> Array:
            return jax.random.uniform(key, env.action_shape, minval=-1.0, maxval=1.0)

        return jax.vmap(one)(keys), ()

    episodes = make_recorder(env, act, num_control_steps=num_control_steps)(None, key)
    normalizer = fit_normalizer(episodes.observations["state"], episodes.actions)
    one = np.ones(env.action_shape, np.float32)
    return normalizer._replace(action_min=-one, action_max=one)
