"""PPO over the moves of a policy's chain: DPPO, and Gaussian PPO as a chain of one.

Every pair (t, k) of a chunk and a tuned denoising step is a sample of the two-layer
MDP of the DPPO paper (arXiv 2409.00588, Sec. 4). Its advantage is that of the chunk,
times `denoising_discount` for each denoising step that is left in the chain.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from dppo_jax.algorithms.ppo.collect import make_collector
from dppo_jax.algorithms.ppo.gradients import Steps
from dppo_jax.algorithms.ppo.settings import (
    check_config,
    check_devices,
    check_groups,
    log_prob_mean,
)
from dppo_jax.algorithms.ppo.update import PPOState, make_updates
from dppo_jax.errors import SettingsError
from dppo_jax.learning import returns
from dppo_jax.networks.build_encoder import make_state_critic
from dppo_jax.policies import ChainPolicy, PolicyParams
from dppo_jax.rollout import env_keys
from dppo_jax.training import parallel
from dppo_jax.types import OF_ENVIRONMENT, Algorithm, Array, Metrics, PyTree, VecEnv


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
    if len(env.action_shape) != 2:
        raise SettingsError(
            f"the environment takes actions of shape {env.action_shape}, but PPO needs "
            "chunks [Ta, Da]; wrap it in chunk_actions(env, Ta), with Ta = 1 for "
            "single actions."
        )
    if num_chunks < 1:
        raise SettingsError(f"num_chunks={num_chunks} must be at least 1.")
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

    def init(
        key: Array,
        params: PolicyParams | None = None,
        critic_params: PyTree | None = None,
    ) -> PPOState:
        env_key, policy_key, critic_key, key = jax.random.split(key, 4)
        env_state = env.reset(env_keys(env_key, num_envs))
        obs = jax.tree.map(lambda x: x[:1], env_state.obs)
        if params is None:
            params = policy.init(policy_key, obs)
        params = policy.prepare(jax.random.fold_in(policy_key, 1), params, obs)
        params = anneal(params, jnp.zeros((), jnp.int32))
        if critic_params is None:
            critic_params = critic.init(critic_key, obs)
        actor_optimizer, critic_optimizer = updates.init(params.tuned, critic_params)
        return PPOState(
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

    def collect(state: PPOState) -> tuple[PPOState, Steps, Metrics]:
        """Run the first phase of an iteration: roll-out and returns."""
        key, collect_key = jax.random.split(state.key)
        state, collected, episodes = collector.collect(
            state._replace(key=key), collect_key
        )
        state, steps, values = collector.evaluate_returns(state, collected)
        return state, steps, episodes | values

    def learn(
        state: PPOState, steps: Steps, metrics: Metrics
    ) -> tuple[PPOState, Metrics]:
        """Run the second phase of an iteration: all updates."""
        key, update_key = jax.random.split(state.key)
        tuned = state.params.tuned
        state, losses = updates.run(state, steps, update_key)
        change = optax.tree.norm(optax.tree.sub(state.params.tuned, tuned))
        iteration = state.iteration + 1
        state = state._replace(
            params=anneal(state.params, iteration), key=key, iteration=iteration
        )
        counts = {
            "params_change": change,
            "env_steps": iteration * float(num_envs * num_chunks * env.action_shape[0]),
        }
        return state, metrics | losses | counts

    def step(state: PPOState) -> tuple[PPOState, Metrics]:
        return learn(*collect(state))

    def split(state: PPOState, num_devices: int) -> PPOState:
        """Split the leaves that belong to environments; replicate all others."""
        check_devices(config, num_devices)
        updates.check_devices(num_devices)
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
        act=policy.act,
        split=split,
        finite=(*OF_ENVIRONMENT, "policy_loss", "value_loss", "params_change"),
        phases=(collect, learn),
    )


def make(
    env: VecEnv, policy: ChainPolicy, config: ConfigDict, data: Any = None
) -> Algorithm:
    """Make PPO from a whole configuration.

    Args:
        config: its sections `algorithm.ppo`, `rollout` and `critic` are read.
        data: not used.
    """
    del data
    return make_ppo(
        env,
        policy,
        make_state_critic(config.critic),
        config.algorithm.ppo,
        num_chunks=config.rollout.num_chunks,
        reset_at_iteration=config.rollout.reset_at_iteration,
    )
