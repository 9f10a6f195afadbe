"""Record the episodes of a policy as a data set, as in D4RL."""

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
    """The recorded control steps of a round; leaves [T, B, ...]."""

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
    """Make a function that records whole episodes with at least N control steps.

    In each round every environment records its first episode, because recording the
    episodes that end first would favour short ones. Rounds of the same compiled program
    follow each other until there are N control steps. The last episode is complete.

    Args:
        env: with one control step per step, in task units, with a time limit.
        act: (params, keys [B], obs {"state": [B, Do]}) -> (action [B, Da], extras);
            its actions, in task units, are executed and recorded.
        num_control_steps: N.

    Returns:
        (params, key) -> Episodes in task units with `rewards` and `terminals`; the time
        limit ended those without a terminal.

    Raises:
        SettingsError: no time limit, or `num_control_steps` below 1.
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
            # Keep only as many episodes as needed, in the order of the environments.
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
    """Convert the `act` of a policy with To = 1 to task units and single actions.

    Returns:
        (params, keys [B], obs {"state": [B, Do]}) -> (action [B, Da], extras): the
        first action of each chunk of `act`, clipped to the bounds. Gaussian noise may
        exceed the limits of motors, and data must hold the executed actions.
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
    """Find bounds by random actions, for a policy that trains without demonstrations.

    Unlike running moments, the bounds are constant, so that a checkpoint stores them
    like those of a data set. A policy that leaves them sees entries beyond +-1.

    Args:
        env: as for `make_recorder`, with actions in [-1, 1].
        num_control_steps: at least this many steps are run, with actions that are
            uniform in [-1, 1].

    Returns:
        The smallest and largest observations as bounds, and [-1, 1] for the actions.

    Raises:
        SettingsError: `num_control_steps`, the setting `random_steps`, is below 1.
    """
    if num_control_steps < 1:
        raise SettingsError(
            f"rollout.random_steps={num_control_steps} must be at least 1, because the "
            "bounds of the observations are those of random steps; raise it (for a "
            "demonstrator collect.rollout.random_steps), or give demonstrations."
        )

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
