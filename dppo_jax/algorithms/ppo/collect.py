"""The first phase of an iteration of PPO: a roll-out, its returns and advantages."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dppo_jax.algorithms.ppo.gradients import Steps
from dppo_jax.diffusion.chain import Moments
from dppo_jax.learning import on_policy, optimizers
from dppo_jax.learning.on_policy import Collected, OnPolicyState
from dppo_jax.networks.augmentation import random_shifts
from dppo_jax.policies import ChainPolicy
from dppo_jax.rollout import env_keys
from dppo_jax.types import Array, Metrics, Obs, PyTree, VecEnv


class Collector(NamedTuple):
    """The functions of the first phase.

    collect: (state, key) -> (state, Collected, metrics of episodes); runs a roll-out.
        Extras are the chains [T, B, K' + 1, Ta, Da] of all tuned moves, whose last
        entry is the action chunk, their log-probabilities [T, B, K'], computed while
        sampling, and their moments for the KL penalty, or None without one.
    evaluate_returns: (state, Collected) -> (state, Steps with leaves [T * B, ...],
        metrics); computes values and advantages, and scales rewards if
        `scale_rewards` is set.
    """

    collect: Callable[[OnPolicyState, Array], tuple[OnPolicyState, Collected, Metrics]]
    evaluate_returns: Callable[
        [OnPolicyState, Collected], tuple[OnPolicyState, Steps, Metrics]
    ]


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

    def kept_moments(params: PyTree, chain: Array, obs: Obs) -> Moments | None:
        if not config.chain_kl.coef or policy.chain_moments is None:
            return None
        # Evaluated again, which costs little beside the updates, so that sampling does
        # nothing for those who need no moments.
        return policy.chain_moments(params, chain, obs)

    def shift(params: PyTree, collected: Collected, key: Array) -> Collected:
        """The images shifted at random, and the log-probabilities and moments of that.

        Ratios start at one, because old and new log-probabilities see the same images.
        """

        chain, *_ = collected.extras

        def one(inputs: tuple[Array, Obs, Array]) -> tuple[Obs, PyTree]:
            time, obs, chain = inputs
            keys = env_keys(jax.random.fold_in(key, time), num_envs)
            obs = random_shifts(keys, obs, max_shift=config.random_shift)
            log_prob = mean(policy.chain_log_prob(params, chain, obs))
            return obs, (log_prob, kept_moments(params, chain, obs))

        obs, scores = jax.lax.map(one, (jnp.arange(num_chunks), collected.obs, chain))
        return collected._replace(obs=obs, extras=(chain, *scores))

    def collect(
        state: OnPolicyState, key: Array
    ) -> tuple[OnPolicyState, Collected, Metrics]:
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
            moments = kept_moments(state.params.tuned, sample.chain, obs)
            return sample.chain[:, -1], (sample.chain, mean(sample.log_prob), moments)

        state, collected, metrics = on_policy.collect(
            env,
            critic,
            act,
            state,
            key,
            num_chunks=num_chunks,
            reset_at_iteration=reset_at_iteration,
        )
        if config.random_shift:
            # A key that nothing in `on_policy.collect` uses.
            shift_key = jax.random.fold_in(key, 2)
            collected = shift(state.params.tuned, collected, shift_key)
        return state, collected, metrics | settings

    def evaluate_returns(
        state: OnPolicyState, collected: Collected
    ) -> tuple[OnPolicyState, Steps, Metrics]:
        state, values, metrics = on_policy.evaluate_returns(
            critic,
            state,
            collected,
            discount=config.discount,
            gae_lambda=config.gae_lambda,
            scale_rewards=config.scale_rewards,
            reward_scale=config.reward_scale,
        )
        chain, log_prob, moments = collected.extras
        steps = Steps(
            obs=collected.obs,
            chain=chain,
            log_prob=log_prob,
            moments=moments,
            **values._asdict(),
        )
        return state, on_policy.sound_steps(steps, collected), metrics

    return Collector(collect, evaluate_returns)
