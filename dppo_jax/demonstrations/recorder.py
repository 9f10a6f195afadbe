"""Record what a policy does as a data set, the way the sets of D4RL were recorded."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.demonstrations.dataset import Episodes
from dppo_jax.normalize import (
    Normalizer,
    fit_normalizer,
    normalize_obs,
    unnormalize_action,
)
from dppo_jax.types import Array, Obs, Policy, PyTree, VecEnv


class _Rows(NamedTuple):
    """What a round of roll-outs saw; every leaf has leading axes [B, T]."""

    state: Any
    action: Any
    reward: Any
    terminated: Any
    truncated: Any


def make_recorder(
    env: VecEnv,
    act: Callable[[PyTree, Array, Obs], Array],
    *,
    num_steps: int,
) -> Callable[[PyTree, Array], Episodes]:
    """Record whole episodes, until they hold `num_steps` control steps or more.

    Every environment gives the first episode of a round, since taking whatever ends
    first would favour short ones; rounds of the same compiled program follow each
    other until there are enough. The last episode is not cut.

    Args:
        env: at the control rate and in task units, with a time limit.
        act: (params, key, obs {"state": [B, Do]}) -> [B, Da], the actions that are
            executed and recorded, in task units.
        num_steps: N at least.

    Returns:
        (params, key) -> Episodes in task units with `rewards` and `terminals`; an
        episode without a terminal is one that the time limit cut.

    Raises:
        ValueError: no time limit, or less than one step.
    """
    if env.max_steps is None:
        raise ValueError("recording needs a time limit; wrap the task in time_limit.")
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} to record must be at least 1.")
    max_steps = env.max_steps

    @jax.jit
    def play(params: PyTree, key: Array) -> _Rows:
        reset_key, act_key = jax.random.split(key)
        keys = jax.random.split(act_key, max_steps)

        def step(env_state: Any, key: Array) -> tuple[Any, _Rows]:
            obs = env_state.obs
            action = act(params, key, obs)
            env_state, outcome = env.step(env_state, action)
            return env_state, _Rows(
                *(obs["state"], action, outcome.reward),
                *(outcome.terminated > 0, outcome.truncated > 0),
            )

        def go_on(carry: tuple[Any, Any, _Rows, Array]) -> Array:
            return ~carry[-1].all()

        def control_step(carry: tuple[Any, Any, _Rows, Array]) -> tuple:
            time, env_state, table, ended = carry
            env_state, rows = step(env_state, keys[time])
            table = jax.tree.map(lambda x, row: x.at[:, time].set(row), table, rows)
            return time + 1, env_state, table, ended | rows.terminated | rows.truncated

        env_state = env.reset(reset_key)
        shapes = jax.eval_shape(step, env_state, keys[0])[1]
        table = jax.tree.map(
            lambda x: jnp.zeros((x.shape[0], max_steps, *x.shape[1:]), x.dtype), shapes
        )
        # Where episodes are short, most of a scan over the time limit would be waste.
        start = (jnp.int32(0), env_state, table, jnp.zeros(env.num_envs, bool))
        return jax.lax.while_loop(go_on, control_step, start)[2]

    def record(params: PyTree, key: Array) -> Episodes:
        parts: list[_Rows] = []
        lengths: list[np.ndarray] = []
        missing = num_steps
        while missing > 0:
            key, round_key = jax.random.split(key)
            rows = jax.tree.map(np.asarray, play(params, round_key))
            length = (rows.terminated | rows.truncated).argmax(axis=1) + 1
            # As many episodes as are missing, in the order of the environments.
            length = length[: np.searchsorted(np.cumsum(length), missing) + 1]
            kept = np.arange(max_steps) < length[:, None]
            parts.append(jax.tree.map(lambda x: x[: len(length)][kept], rows))
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


def exploring_act(
    policy: Policy, normalizer: Normalizer
) -> Callable[[PyTree, Array, Obs], Array]:
    """What a policy with To = 1 does while it explores, in task units.

    Returns:
        (params, key, obs {"state": [B, Do]}) -> [B, Da], the first action of each
        chunk that `policy` samples, clipped to the bounds: Gaussian noise reaches
        beyond what a motor can do, and data should say what was done.
    """

    def act(params: PyTree, key: Array, obs: Obs) -> Array:
        state = normalize_obs(normalizer, obs["state"])[:, None]
        chain, _ = policy.sample(params, key, {"state": state})
        action = jnp.clip(chain[:, -1, 0], -1.0, 1.0)
        return unnormalize_action(normalizer, action)

    return act


def random_bounds(env: VecEnv, key: Array, *, num_steps: int) -> Normalizer:
    """Bounds for a policy that starts from nothing: what random actions show.

    They stay as they are, unlike running moments, so that a checkpoint carries them
    like those of a data set. A policy that outgrows them sees entries beyond +-1.

    Args:
        env: as for `make_recorder`, with actions in [-1, 1].
        num_steps: of random actions, uniform in [-1, 1]; at least.

    Returns:
        The smallest and largest observations; [-1, 1] itself for the actions.
    """

    def act(params: PyTree, key: Array, obs: Obs) -> Array:
        shape = (env.num_envs, *env.action_shape)
        return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)

    episodes = make_recorder(env, act, num_steps=num_steps)(None, key)
    normalizer = fit_normalizer(episodes.observations["state"], episodes.actions)
    one = np.ones(env.action_shape, np.float32)
    return normalizer._replace(action_min=-one, action_max=one)
