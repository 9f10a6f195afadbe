"""The first phase of an iteration of PPO: a roll-out, its returns and advantages."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dppo_jax.algorithms.ppo.gradients import Steps
from dppo_jax.algorithms.ppo.update import PPOState
from dppo_jax.learning import optimizers, returns
from dppo_jax.networks.vision import random_shifts
from dppo_jax.policies import ChainPolicy
from dppo_jax.rollout import env_keys, episode_means, rollout
from dppo_jax.training import parallel
from dppo_jax.types import (
    Array,
    Metrics,
    Obs,
    PyTree,
    TimeStep,
    Transition,
    VecEnv,
)


class Collected(NamedTuple):
    """What PPO keeps of a roll-out; leaves [T, B, ...].

    chain: [T, B, K' + 1, Ta, Da]; the last entry is the action chunk.
    log_prob: [T, B, K'] of every tuned move, computed while sampling.
    end_value: V of the observation that followed, in steps at which an environment
        reached a time limit; 0 in all other steps.
    """

    obs: Obs
    chain: Array
    log_prob: Array
    reward: Array
    terminated: Array
    truncated: Array
    end_value: Array


class Collector(NamedTuple):
    """The functions of the first phase.

    collect: (state, key) -> (state, Collected, metrics of episodes); runs a roll-out.
    evaluate_returns: (state, Collected) -> (state, Steps with leaves [T * B, ...],
        metrics); computes values and advantages, and scales rewards if
        `scale_rewards` is set.
    """

    collect: Callable[[PPOState, Array], tuple[PPOState, Collected, Metrics]]
    evaluate_returns: Callable[[PPOState, Collected], tuple[PPOState, Steps, Metrics]]


def make_collector(
    env: VecEnv,
    policy: ChainPolicy,
    critic: Any,
    config: ConfigDict,
    *,
    num_chunks: int,
    reset_at_iteration: bool,
    mean: Callable[[Array], Array],
) -> Collector:
    """Make the functions that collect `num_chunks` chunks in every environment.

    Args:
        critic: a module, `apply(params, obs) -> [B]`.
        config: `default_config` with changes, already checked.
        reset_at_iteration: start every iteration with new episodes.
        mean: averages the log-probabilities of a move, [..., Ta, Da] -> [...].
    """
    num_envs = env.num_envs

    def shift(params: PyTree, collected: Collected, key: Array) -> Collected:
        """The images shifted at random, and the log-probabilities of that.

        Ratios start at one, because old and new log-probabilities see the same images.
        """

        def one(inputs: tuple[Array, Obs, Array]) -> tuple[Obs, Array]:
            time, obs, chain = inputs
            keys = env_keys(jax.random.fold_in(key, time), num_envs)
            obs = random_shifts(keys, obs, max_shift=config.random_shift)
            return obs, mean(policy.chain_log_prob(params, chain, obs))

        obs, log_prob = jax.lax.map(
            one, (jnp.arange(num_chunks), collected.obs, collected.chain)
        )
        return collected._replace(obs=obs, log_prob=log_prob)

    def collect(state: PPOState, key: Array) -> tuple[PPOState, Collected, Metrics]:
        reset_key, act_key = jax.random.split(key)
        if reset_at_iteration:
            state = state._replace(
                env=env.reset(env_keys(reset_key, num_envs)),
                first=jnp.ones_like(state.first),
            )
        settings: Metrics = {}
        if policy.denoises:
            settings["min_std"] = optimizers.linear_anneal(
                state.iteration,
                start=policy.min_std,
                end=config.min_std_end,
                steps=config.min_std_steps,
            )

        def act(keys: Array, obs: Obs) -> tuple[Array, PyTree]:
            sample = policy.sample(state.params, keys, obs, **settings)
            return sample.chain[:, -1], (sample.chain, mean(sample.log_prob))

        def record(transition: Transition, outcome: TimeStep) -> Collected:
            chain, log_prob = transition.extras
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
                chain=chain,
                log_prob=log_prob,
                reward=transition.reward,
                terminated=transition.terminated,
                truncated=transition.truncated,
                end_value=end_value,
            )

        env_state, collected, metrics = rollout(
            env, act, state.env, env_keys(act_key, num_envs), num_chunks, record
        )
        if config.random_shift:
            shift_key = jax.random.fold_in(key, 2)  # Neither of the two above.
            collected = shift(state.params.tuned, collected, shift_key)
        done = jnp.maximum(collected.terminated, collected.truncated)
        metrics = episode_means(done, collected.reward, collected.obs, metrics)
        return state._replace(env=env_state), collected, metrics | settings

    def evaluate_returns(
        state: PPOState, collected: Collected
    ) -> tuple[PPOState, Steps, Metrics]:
        value = _per_step(critic.apply, state.critic_params, collected.obs)
        last_value = critic.apply(state.critic_params, state.env.obs)
        done = jnp.maximum(collected.terminated, collected.truncated)
        # V of the observation that followed, before any reset.
        next_value = jnp.concatenate([value[1:], last_value[None]])
        next_value = jnp.where(done > 0, collected.end_value, next_value)
        first = jnp.concatenate([state.first[None], done[:-1]])
        reward, reward_scale = collected.reward, state.reward_scale
        if config.scale_rewards:
            reward_scale, reward = returns.scale_rewards(
                reward_scale, reward, first, discount=config.discount
            )
        advantage, target = returns.gae(
            reward * config.reward_scale,
            value,
            next_value,
            collected.terminated,
            collected.truncated,
            discount=config.discount,
            gae_lambda=config.gae_lambda,
        )
        steps = Steps(
            obs=collected.obs,
            chain=collected.chain,
            log_prob=collected.log_prob,
            advantage=advantage,
            target=target,
            value=value,
        )
        steps = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps)
        state = state._replace(first=done[-1], reward_scale=reward_scale)
        (_, variance), (_, rest) = map(parallel.moments, (target, target - value))
        explained = 1 - rest / jnp.where(variance > 0, variance, 1)
        return state, steps, {"explained_variance": explained}

    return Collector(collect, evaluate_returns)


def _per_step(apply: Callable[..., Array], params: PyTree, obs: Obs) -> Array:
    """Apply a network for leaves [B, ...] to leaves [T, B, ...]."""
    leading = next(iter(obs.values())).shape[:2]
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), obs)
    return apply(params, flat).reshape(leading)
