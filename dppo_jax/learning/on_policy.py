"""The iteration that on-policy algorithms share: a roll-out, then updates on it.

`on_policy` makes an `Algorithm` from a `Learner`, the functions that one algorithm
adds. The roll-out and the returns, which learners share, are here too;
`on_policy_updates` has the shared parts of their updates.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from dppo_jax.learning import returns
from dppo_jax.learning.quarantine import without_diverged
from dppo_jax.policies import PolicyParams
from dppo_jax.rollout import BoundAct, env_keys, episode_means, restart, rollout
from dppo_jax.training import parallel
from dppo_jax.types import (
    OF_ENVIRONMENT,
    Act,
    Algorithm,
    Array,
    Metrics,
    Obs,
    PyTree,
    TimeStep,
    Transition,
    VecEnv,
)


class OnPolicyState(NamedTuple):
    """The training state between two iterations; a checkpoint of it resumes exactly."""

    params: PolicyParams
    critic_params: PyTree
    actor_optimizer: Any
    critic_optimizer: Any
    env: Any
    first: Array
    reward_scale: returns.RewardScale
    key: Array
    iteration: Array
    average: PyTree = None  # of the tuned parameters, see `averages`


class Collected(NamedTuple):
    """The stored data of a roll-out; leaves [T, B, ...].

    extras: of the exploring policy, see `types.Act`.
    end_value: V of the observation that followed, in steps at which an environment
        reached a time limit; 0 in all other steps.
    diverged: [T, B] 1 where a simulation broke; None: the environment does not tell.
    """

    obs: Obs
    extras: Any
    reward: Array
    terminated: Array
    truncated: Array
    end_value: Array
    diverged: Array | None = None


class Returns(NamedTuple):
    """Advantages, value targets and values V(s_t) of a roll-out, each [T, B]."""

    advantage: Array
    target: Array
    value: Array


def collect(
    env: VecEnv,
    critic: Any,
    act: BoundAct,
    state: OnPolicyState,
    key: Array,
    *,
    num_chunks: int,
    reset_at_iteration: bool,
) -> tuple[OnPolicyState, Collected, Metrics]:
    """Execute `num_chunks` chunks in every environment.

    Args:
        critic: a module, `apply(params, obs) -> [B]`.
        act: as in `rollout.rollout`.
        reset_at_iteration: start with new episodes.

    Returns:
        The state, the roll-out, and means over the episodes that ended in it.
    """
    reset_key, act_key = jax.random.split(key)
    if reset_at_iteration:
        state = state._replace(
            env=restart(env, state.env, env_keys(reset_key, env.num_envs)),
            first=jnp.ones_like(state.first),
        )

    def record(transition: Transition, outcome: TimeStep) -> Collected:
        # Only here is next_obs not the observation of the next step. Few steps
        # truncate an episode, so the critic runs only if one does.
        end_value = jax.lax.cond(
            outcome.truncated.any(),
            lambda obs: critic.apply(state.critic_params, obs),
            lambda obs: jnp.zeros_like(outcome.reward),
            outcome.obs,
        )
        return Collected(
            obs=transition.obs,
            extras=transition.extras,
            reward=transition.reward,
            terminated=transition.terminated,
            truncated=transition.truncated,
            end_value=jnp.where(outcome.truncated > 0, end_value, 0.0),
            diverged=outcome.metrics.get("diverged"),
        )

    env_state, collected, metrics = rollout(
        env, act, state.env, env_keys(act_key, env.num_envs), num_chunks, record
    )
    done = jnp.maximum(collected.terminated, collected.truncated)
    metrics = episode_means(done, collected.reward, collected.obs, metrics)
    return state._replace(env=env_state), collected, metrics


def evaluate_returns(
    critic: Any,
    state: OnPolicyState,
    collected: Collected,
    *,
    discount: float,
    gae_lambda: float,
    scale_rewards: bool,
    reward_scale: float,
) -> tuple[OnPolicyState, Returns, Metrics]:
    """Evaluate every observation of a roll-out once, and estimate advantages by GAE.

    Args:
        critic: a module, `apply(params, obs) -> [B]`.
        discount: per chunk.
        gae_lambda: see `returns.gae`.
        scale_rewards: divide rewards by the standard deviation of returns.
        reward_scale: a factor of what `scale_rewards` leaves.
    """
    value = _per_step(critic.apply, state.critic_params, collected.obs)
    last_value = critic.apply(state.critic_params, state.env.obs)
    done = jnp.maximum(collected.terminated, collected.truncated)
    # V of the observation that followed, before any reset.
    next_value = jnp.concatenate([value[1:], last_value[None]])
    next_value = jnp.where(done > 0, collected.end_value, next_value)
    first = jnp.concatenate([state.first[None], done[:-1]])
    reward, scale = collected.reward, state.reward_scale
    if scale_rewards:
        scale, reward = returns.scale_rewards(scale, reward, first, discount=discount)
    advantage, target = returns.gae(
        reward * reward_scale,
        value,
        next_value,
        collected.terminated,
        collected.truncated,
        discount=discount,
        gae_lambda=gae_lambda,
        diverged=collected.diverged,
    )
    state = state._replace(first=done[-1], reward_scale=scale)
    (_, variance), (_, rest) = map(parallel.moments, (target, target - value))
    explained = 1 - rest / jnp.where(variance > 0, variance, 1)
    values = Returns(advantage=advantage, target=target, value=value)
    return state, values, {"explained_variance": explained}


class Steps(NamedTuple):
    """The data of the updates, N chunks; leaves [N, ...].

    extras: as in `Collected`.
    advantage, target, value: as in `Returns`.
    """

    obs: Obs
    extras: Any
    advantage: Array
    target: Array
    value: Array


def make_collect(
    env: VecEnv,
    critic: Any,
    config: ConfigDict,
    explore: Callable[[PolicyParams], BoundAct],
    *,
    num_chunks: int,
    reset_at_iteration: bool,
) -> Callable[[OnPolicyState, Array], tuple[OnPolicyState, Steps, Metrics]]:
    """Make a `Learner.collect` that runs `collect` and then `evaluate_returns`.

    Args:
        config: `on_policy_settings.default_config` with changes, already checked.
        explore: parameters -> `act` of the roll-out, whose extras become those of the
            steps.
        critic, num_chunks, reset_at_iteration: as in `collect`.
    """

    def collect_steps(
        state: OnPolicyState, key: Array
    ) -> tuple[OnPolicyState, Steps, Metrics]:
        state, collected, episodes = collect(
            env,
            critic,
            explore(state.params),
            state,
            key,
            num_chunks=num_chunks,
            reset_at_iteration=reset_at_iteration,
        )
        state, values, metrics = evaluate_returns(
            critic,
            state,
            collected,
            discount=config.discount,
            gae_lambda=config.gae_lambda,
            scale_rewards=config.scale_rewards,
            reward_scale=config.reward_scale,
        )
        steps = Steps(obs=collected.obs, extras=collected.extras, **values._asdict())
        return state, sound_steps(steps, collected), episodes | metrics

    return collect_steps


def flat(tree: PyTree) -> PyTree:
    """Leaves [T, B, ...] as [T * B, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def sound_steps(steps: PyTree, collected: Collected) -> PyTree:
    """Flatten the steps of a roll-out, without those in which a simulation broke."""
    return without_diverged(flat(steps), flat(collected.diverged))


class Learner(NamedTuple):
    """The functions that one algorithm adds to the shared iteration.

    init: (key, parameters to start from or None, obs [1, ...]) -> PolicyParams.
    init_optimizers: as `Optimizers.init`.
    collect: (state, key) -> (state, steps, metrics), a roll-out and its returns; steps
        are any pytree.
    update: (state, steps, key) -> (state, metrics), all updates of an iteration.
    act: see `types.Act`.
    check_devices: (number of devices) -> None; raises SettingsError for settings that
        do not work on this many.
    anneal: (params, number of finished iterations) -> params, at the end of each.
    """

    init: Callable[[Array, PolicyParams | None, Obs], PolicyParams]
    init_optimizers: Callable[[PyTree, PyTree], tuple[Any, Any]]
    collect: Callable[[OnPolicyState, Array], tuple[OnPolicyState, Any, Metrics]]
    update: Callable[[OnPolicyState, Any, Array], tuple[OnPolicyState, Metrics]]
    act: Act
    check_devices: Callable[[int], None]
    anneal: Callable[[PolicyParams, Array], PolicyParams] = lambda params, _: params


def on_policy(
    env: VecEnv, critic: Any, learner: Learner, *, num_chunks: int
) -> Algorithm:
    """Make an Algorithm of an iteration with two phases, roll-out and updates.

    Args:
        env: its action is a chunk, [Ta, Da].
        critic: a module, `apply(params, obs) -> [B]`.
        num_chunks: action chunks per environment and iteration.

    Returns:
        An Algorithm; `init(key, params=None, critic_params=None)` starts from the given
        parameters, or from new ones.
    """
    num_envs = env.num_envs

    def init(
        key: Array,
        params: PolicyParams | None = None,
        critic_params: PyTree | None = None,
    ) -> OnPolicyState:
        env_key, policy_key, critic_key, key = jax.random.split(key, 4)
        env_state = env.reset(env_keys(env_key, num_envs))
        obs = jax.tree.map(lambda x: x[:1], env_state.obs)
        params = learner.init(policy_key, params, obs)
        if critic_params is None:
            critic_params = critic.init(critic_key, obs)
        actor_optimizer, critic_optimizer = learner.init_optimizers(
            params.tuned, critic_params
        )
        return OnPolicyState(
            params=params,
            critic_params=critic_params,
            actor_optimizer=actor_optimizer,
            critic_optimizer=critic_optimizer,
            env=env_state,
            first=jnp.ones(num_envs),
            reward_scale=returns.init_reward_scale(num_envs),
            key=key,
            iteration=jnp.zeros((), jnp.int32),
        )

    def collect(state: OnPolicyState) -> tuple[OnPolicyState, Any, Metrics]:
        """Run the first phase of an iteration: roll-out and returns."""
        key, collect_key = jax.random.split(state.key)
        return learner.collect(state._replace(key=key), collect_key)

    def learn(
        state: OnPolicyState, steps: Any, metrics: Metrics
    ) -> tuple[OnPolicyState, Metrics]:
        """Run the second phase of an iteration: all updates."""
        key, update_key = jax.random.split(state.key)
        tuned = state.params.tuned
        state, losses = learner.update(state, steps, update_key)
        change = optax.tree.norm(optax.tree.sub(state.params.tuned, tuned))
        iteration = state.iteration + 1
        state = state._replace(
            params=learner.anneal(state.params, iteration), key=key, iteration=iteration
        )
        counts = {
            "params_change": change,
            "env_steps": iteration * float(num_envs * num_chunks * env.action_shape[0]),
        }
        return state, metrics | losses | counts

    def step(state: OnPolicyState) -> tuple[OnPolicyState, Metrics]:
        return learn(*collect(state))

    def split(state: OnPolicyState, num_devices: int) -> OnPolicyState:
        """Split the leaves that belong to environments; replicate all others."""
        learner.check_devices(num_devices)
        whole = jax.tree.map(lambda _: parallel.WHOLE, state)
        return whole._replace(
            env=jax.tree.map(lambda _: parallel.SPLIT, state.env),
            first=parallel.SPLIT,
            reward_scale=whole.reward_scale._replace(discounted=parallel.SPLIT),
        )

    return Algorithm(
        init=jax.jit(init),
        step=step,
        params=lambda state: state.params,
        act=learner.act,
        split=split,
        finite=(*OF_ENVIRONMENT, "policy_loss", "value_loss", "params_change"),
        phases=(collect, learn),
    )


def _per_step(apply: Callable[..., Array], params: PyTree, obs: Obs) -> Array:
    """Apply a network for leaves [B, ...] to leaves [T, B, ...]."""
    leading = next(iter(obs.values())).shape[:2]
    return apply(params, flat(obs)).reshape(leading)
