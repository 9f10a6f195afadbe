"""Run a policy in a vectorised environment; all loops over environments are here."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from dppo_jax.envs.breaks import no_break, notice
from dppo_jax.training import parallel
from dppo_jax.types import (
    BREAK,
    Array,
    Metrics,
    Obs,
    PyTree,
    TimeStep,
    Transition,
    VecEnv,
)

BoundAct = Callable[[Array, Obs], tuple[Array, PyTree]]
Record = TypeVar("Record")

# Metrics of `envs.quarantine` and `envs.action_noise` whose greatest value is reported,
# over the steps of a roll-out or the episodes of an evaluation, instead of the mean.
GREATEST = ("contacts_full", "constraints_full", "action_noise")


def env_keys(key: Array, num_envs: int) -> Array:
    """Split one key per environment and return those of this device.

    Args:
        num_envs: environments of all devices. Key i does not depend on this number.
    """
    return parallel.local_part(jax.random.split(key, num_envs))


def restart(env: VecEnv, env_state: Any, keys: Array) -> Any:
    """Begin new episodes in all environments; returns the state.

    Args:
        keys: [B] one key per environment.
    """
    if env.restart is None:
        return env.reset(keys)
    return env.restart(env_state, keys)


def rollout(
    env: VecEnv,
    act: BoundAct,
    env_state: Any,
    keys: Array,
    num_chunks: int,
    record: Callable[[Transition, TimeStep], Any] = lambda transition, _: transition,
) -> tuple[Any, Any, Metrics]:
    """Execute `num_chunks` action chunks in every environment.

    Args:
        act: (keys [B], obs) -> (action [B, Ta, Da], extras); if a chunk is longer than
            that of the environment, only its first actions are executed.
        keys: [B] one key per environment.
        record: (Transition, TimeStep) of one step, leaves [B, ...] -> what to keep of
            it. Fields that it does not return take no memory.

    Returns:
        The last environment state, what `record` returned (a Transition by default) and
        the metrics, the latter two with leading axes [T, B]. If `env.keeps_breaks`, the
        metrics also have `BREAK`, the first step of the roll-out that diverged.
    """

    def step(carry: tuple[Any, Any], time: Array) -> tuple[Any, tuple[Any, Metrics]]:
        before, broken = carry
        env_state, transition, outcome = _one_step(
            env, act, before, _keys_at(keys, time)
        )
        if broken is not None:
            diverged = outcome.metrics["diverged"]
            broken = notice(broken, before, transition.action, diverged, time)
        return (env_state, broken), (record(transition, outcome), outcome.metrics)

    broken = no_break(env_state, env.action_shape) if env.keeps_breaks else None
    (env_state, broken), (kept, metrics) = jax.lax.scan(
        step, (env_state, broken), jnp.arange(num_chunks)
    )
    kept_break: dict[str, Any] = {}
    if broken is not None:
        kept_break = {BREAK: parallel.first_found(broken.found, broken)}
    return env_state, kept, metrics | kept_break


class FirstEpisodes(NamedTuple):
    """The first episode of every environment.

    metrics: [B] metrics of the step that ended the episode.
    length: [B] number of steps (chunks).
    kept: [T, B, ...] what `record` returned; ignore entries from `length` on.
    """

    metrics: Metrics
    length: Array
    kept: Any


def first_episodes(
    env: VecEnv,
    act: BoundAct,
    keys: Array,
    record: Callable[[Transition, TimeStep], Any] = lambda transition, _: (),
) -> FirstEpisodes:
    """Run every environment until its first episode has ended.

    Later episodes are ignored, because counting every episode that ends would favour
    short ones. The loop stops when the longest first episode has ended.

    Args:
        env: with a time limit, T = `env.max_steps`.
        act: as in `rollout`.
        keys: [B] one key per episode, from which it draws all its randomness, so that
            it does not depend on the number of environments.
        record: as in `rollout`.
    """
    assert env.max_steps is not None, "first episodes need a time limit"
    reset_keys, act_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    env_state = env.reset(reset_keys)

    def step(env_state: Any, time: Array) -> tuple[Any, Array, Metrics, Any]:
        env_state, transition, outcome = _one_step(
            env, act, env_state, _keys_at(act_keys, time)
        )
        done = jnp.maximum(outcome.terminated, outcome.truncated) > 0
        return env_state, done, outcome.metrics, record(transition, outcome)

    def go_on(carry: Any) -> Array:
        return (carry[0] < env.max_steps) & ~(carry[2] > 0).all()

    def one_more(carry: Any) -> Any:
        time, env_state, length, metrics, table = carry
        env_state, done, now, kept = step(env_state, time)
        running = length == 0
        metrics = jax.tree.map(lambda x, y: jnp.where(running, y, x), metrics, now)
        table = jax.tree.map(lambda x, row: x.at[time].set(row), table, kept)
        length = jnp.where(running & done, time + 1, length)
        return time + 1, env_state, length, metrics, table

    _, done, metrics, kept = jax.eval_shape(step, env_state, jnp.int32(0))
    start = (
        jnp.int32(0),
        env_state,
        jnp.zeros(done.shape, jnp.int32),
        jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics),
        jax.tree.map(lambda x: jnp.zeros((env.max_steps, *x.shape), x.dtype), kept),
    )
    # A scan would always run to the time limit, even if all episodes are short.
    _, _, length, metrics, kept = jax.lax.while_loop(go_on, one_more, start)
    return FirstEpisodes(metrics, length, kept)


def episode_means(done: Array, reward: Array, obs: Obs, metrics: Metrics) -> Metrics:
    """Means over the episodes that ended in a roll-out; NaN if none ended.

    Over all steps are the mean and the standard deviation of `reward`, `obs_magnitude`,
    the mean of the absolute values of the normalised state, which lie in [0, 1] within
    the bounds, and `obs_outside`, the share of them that exceed 2. If the environment
    reports which simulations diverged (`envs.quarantine`), `diverged` is the number of
    these steps; their episodes and rewards do not count, and if nothing else was left,
    `reward` and `reward_std` are NaN. The entry `BREAK` is passed on. Of the
    metrics in `GREATEST` the greatest of all steps counts.

    Args:
        done: [T, B] 1 where an episode ended.
        reward: [T, B].
        obs: leaves [T, B, ...].
        metrics: leaves [T, B].
    """
    metrics = dict(metrics)
    diverged = metrics.pop("diverged", None)
    counts: Metrics = {BREAK: metrics.pop(BREAK)} if BREAK in metrics else {}
    for name in GREATEST:
        if name in metrics:
            counts[name] = parallel.greatest(metrics.pop(name).max())
    mean_reward, variance = parallel.moments(reward)
    if diverged is not None:
        done = done * (1 - diverged)
        counts["diverged"] = parallel.total(diverged.sum())
        sound = parallel.mean((1 - diverged).mean())

        def mean_of_sound(x: Array) -> Array:
            # The first actions of a chunk that broke later may have earned something.
            part = parallel.mean(jnp.where(diverged > 0, 0.0, x).mean())
            return jnp.where(sound > 0, part / sound, _nothing())

        mean_reward = mean_of_sound(reward)
        variance = mean_of_sound((reward - mean_reward) ** 2)
    count, sums = parallel.total(
        (done.sum(), {name: (x * done).sum() for name, x in metrics.items()})
    )
    means = {
        name: jnp.where(count > 0, x / jnp.maximum(count, 1), _nothing())
        for name, x in sums.items()
    }
    magnitude = jnp.abs(obs["state"])
    over_steps = {
        "reward": mean_reward,
        "reward_std": jnp.sqrt(variance),
        "obs_magnitude": parallel.mean(magnitude.mean()),
        "obs_outside": parallel.mean((magnitude > 2).mean()),
    }
    return means | counts | {"num_episodes": count} | over_steps


def _nothing() -> float:
    """NaN; infinity while JAX looks for NaNs, which would take it for an error."""
    looks: bool = jax.config.jax_debug_nans  # type: ignore[attr-defined]
    return jnp.inf if looks else jnp.nan


def _one_step(
    env: VecEnv, act: BoundAct, env_state: Any, keys: Array
) -> tuple[Any, Transition, TimeStep]:
    obs = env_state.obs
    action, extras = act(keys, obs)
    action = action[:, : env.action_shape[0]]
    env_state, outcome = env.step(env_state, action)
    transition = Transition(
        obs=obs,
        action=action,
        reward=outcome.reward,
        next_obs=outcome.obs,
        terminated=outcome.terminated,
        truncated=outcome.truncated,
        extras=extras,
    )
    return env_state, transition, outcome


def _keys_at(keys: Array, time: Array) -> Array:
    """Fold the time into the keys of the environments, [B] -> [B]."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, time)
