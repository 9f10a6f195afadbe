"""PPO over the moves of a policy's chain: DPPO, and Gaussian PPO as a chain of one.

Every pair (t, k) of a chunk and a tuned denoising step is a sample of the two-layer
MDP of the DPPO paper (arXiv 2409.00588, Sec. 4). Its advantage is that of the chunk,
times `denoising_discount` for each denoising step that is left in the chain.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dppo_jax.algorithms.ppo.collect import make_collector
from dppo_jax.algorithms.ppo.gradients import Steps
from dppo_jax.algorithms.ppo.settings import (
    check_config,
    check_devices,
    check_groups,
    log_prob_mean,
)
from dppo_jax.algorithms.ppo.update import make_updates
from dppo_jax.errors import SettingsError
from dppo_jax.learning import on_policy, on_policy_settings
from dppo_jax.learning.on_policy import OnPolicyState
from dppo_jax.policies import ChainPolicy, PolicyParams
from dppo_jax.types import Algorithm, Array, Metrics, Obs, VecEnv


def make_ppo(
    env: VecEnv,
    policy: ChainPolicy,
    critic: Any,
    config: ConfigDict,
    *,
    num_chunks: int,
    reset_at_iteration: bool = True,
) -> Algorithm:
    """Make PPO over pairs (t, k).

    Args:
        env: its action is a chunk, [Ta, Da].
        policy: a chain with K' tuned moves.
        critic: a module, `apply(params, obs) -> [B]`.
        config: `default_config` with changes.
        num_chunks: action chunks per environment and iteration.
        reset_at_iteration: start every iteration with new episodes.

    Returns:
        An Algorithm; `init(key, params=None, critic_params=None)` starts from the given
        parameters, or from new ones. One `step` is roll-out, returns and all updates.

    Raises:
        SettingsError: invalid or contradictory settings, which the message names.
    """
    check_config(config, policy)
    on_policy_settings.check_env(env, num_chunks, name="PPO")
    num_envs = env.num_envs
    num_pairs = num_envs * num_chunks * policy.num_tuned_steps
    if not 1 <= config.batch_size <= num_pairs:
        raise SettingsError(
            f"batch_size={config.batch_size} must lie between 1 and the {num_pairs} "
            f"pairs of an iteration ({num_envs} environments x {num_chunks} chunks x "
            f"{policy.num_tuned_steps} moves); lower it or collect more."
        )
    check_groups(config, policy, num_envs=num_envs)
    mean = log_prob_mean(config, policy, executed=env.action_shape[0])
    updates = make_updates(
        policy, critic, config, num_envs=num_envs, num_chunks=num_chunks, mean=mean
    )
    collector = make_collector(
        env,
        policy,
        critic,
        config,
        num_chunks=num_chunks,
        reset_at_iteration=reset_at_iteration,
        mean=mean,
    )
    anneals_steps = config.tuned_steps_drop > 0 and config.tuned_steps_every > 0

    def anneal(params: PolicyParams, iteration: Array) -> PolicyParams:
        """Lower K' if it is annealed; on each drop, copy the tuned network to base."""
        if not anneals_steps:
            return params
        drops = iteration // config.tuned_steps_every
        active = jnp.maximum(
            policy.num_tuned_steps - drops * config.tuned_steps_drop, 1
        )
        if params.num_active is None:
            return params._replace(num_active=active)
        active = jnp.minimum(params.num_active, active)
        base = jax.tree.map(
            functools.partial(jnp.where, active < params.num_active),
            params.tuned,
            params.base,
        )
        return params._replace(base=base, num_active=active)

    def init(key: Array, params: PolicyParams | None, obs: Obs) -> PolicyParams:
        if params is None:
            params = policy.init(key, obs)
        params = policy.prepare(jax.random.fold_in(key, 1), params, obs)
        return anneal(params, jnp.zeros((), jnp.int32))

    def collect(
        state: OnPolicyState, key: Array
    ) -> tuple[OnPolicyState, Steps, Metrics]:
        state, collected, episodes = collector.collect(state, key)
        state, steps, values = collector.evaluate_returns(state, collected)
        return state, steps, episodes | values

    def check_num_devices(num_devices: int) -> None:
        check_devices(config, num_devices)
        updates.check_devices(num_devices)

    learner = on_policy.Learner(
        init=init,
        init_optimizers=updates.init,
        collect=collect,
        update=updates.run,
        act=policy.act,
        check_devices=check_num_devices,
        anneal=anneal,
    )
    return on_policy.on_policy(env, critic, learner, num_chunks=num_chunks)


def make(
    env: VecEnv, policy: ChainPolicy, config: ConfigDict, data: Any = None
) -> Algorithm:
    """Make PPO from a whole configuration.

    Args:
        config: its sections `algorithm.ppo`, `rollout` and `critic` are read.
        data: not used.
    """
    del data
    return on_policy_settings.make_configured("ppo", make_ppo, env, policy, config)
