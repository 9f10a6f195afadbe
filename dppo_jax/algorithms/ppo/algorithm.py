"""PPO over the moves of a policy's chain: DPPO, and Gaussian PPO as a chain of one.

Every pair (environment step, denoising move) is a sample of the two-layer MDP of
the DPPO paper (arXiv 2409.00588, Sec. 4). Advantages are those of the environment
step, discounted by the moves that were left.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from dppo_jax import parallel, returns, schedules
from dppo_jax.algorithms.ppo.settings import (
    check_config,
    check_devices,
    check_groups,
    log_prob_mean,
)
from dppo_jax.algorithms.ppo.update import PPOState, Steps, make_updates
from dppo_jax.networks.critics import StateCritic
from dppo_jax.policies import ChainPolicy, PolicyParams
from dppo_jax.rollout import env_keys, episode_means, rollout
from dppo_jax.types import (
    Algorithm,
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
    log_prob: [T, B, K'] of every tuned move, from the sampling pass itself.
    end_value: V of the observation that a time limit made the last one; 0 elsewhere.
    """

    obs: Obs
    chain: Array
    log_prob: Array
    reward: Array
    terminated: Array
    truncated: Array
    end_value: Array


def make_ppo(
    env: VecEnv,
    policy: ChainPolicy,
    critic: Any,
    config: ConfigDict,
    *,
    num_steps: int,
    reset_at_iteration: bool = True,
) -> Algorithm:
    """PPO over (t, k) with the settings of `default_config`.

    Args:
        env: whose action is a chunk, [Ta, Da].
        policy: a chain of K' moves.
        critic: a module, `apply(params, obs) -> [B]`.
        num_steps: action chunks per environment and iteration.
        reset_at_iteration: start every iteration with new episodes.

    Returns:
        An Algorithm; `init(key, params=None, critic_params=None)` starts from given
        parameters, or from new ones. One `step` is roll-out, returns and all updates.

    Raises:
        ValueError: settings that contradict each other, by name.
    """
    check_config(config, policy)
    if len(env.action_shape) != 2:
        raise ValueError(
            f"the environment takes actions of shape {env.action_shape}, but policies "
            "act in chunks [Ta, Da]; wrap it in chunk_actions(env, Ta), Ta = 1 for "
            "single actions."
        )
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1.")
    num_envs = env.num_envs
    num_pairs = num_envs * num_steps * policy.num_steps
    if not 1 <= config.batch_size <= num_pairs:
        raise ValueError(
            f"batch_size={config.batch_size} must lie between 1 and the {num_pairs} "
            f"pairs of an iteration ({num_envs} environments x {num_steps} chunks x "
            f"{policy.num_steps} moves); lower it or collect more."
        )
    check_groups(config, policy, num_envs=num_envs)
    mean = log_prob_mean(config, policy, executed=env.action_shape[0])
    updates = make_updates(
        policy, critic, config, num_envs=num_envs, num_steps=num_steps, mean=mean
    )
    anneals_steps = config.tuned_steps_drop > 0 and config.tuned_steps_every > 0

    def anneal(params: PolicyParams, iteration: Array) -> PolicyParams:
        """Where K' drops, the tuned network becomes the frozen one."""
        if not anneals_steps:
            return params
        drops = iteration // config.tuned_steps_every
        active = jnp.maximum(policy.num_steps - drops * config.tuned_steps_drop, 1)
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

    def collect(state: PPOState, key: Array) -> tuple[PPOState, Collected, Metrics]:
        reset_key, act_key = jax.random.split(key)
        if reset_at_iteration:
            state = state._replace(
                env=env.reset(env_keys(reset_key, num_envs)),
                first=jnp.ones_like(state.first),
            )
        settings: Metrics = {}
        if policy.denoises:
            settings["min_std"] = schedules.linear_anneal(
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
            # Few steps cut an episode, and only there is what followed not what the
            # next action looks at.
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
            env, act, state.env, env_keys(act_key, num_envs), num_steps, record
        )
        done = jnp.maximum(collected.terminated, collected.truncated)
        metrics = episode_means(done, collected.reward, metrics) | settings
        return state._replace(env=env_state), collected, metrics

    def evaluate_returns(
        state: PPOState, collected: Collected
    ) -> tuple[PPOState, Steps, Metrics]:
        value = _per_step(critic.apply, state.critic_params, collected.obs)
        last_value = critic.apply(state.critic_params, state.env.obs)
        done = jnp.maximum(collected.terminated, collected.truncated)
        # V of what followed, before any reset.
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

    def step(state: PPOState) -> tuple[PPOState, Metrics]:
        key, collect_key, update_key = jax.random.split(state.key, 3)
        tuned = state.params.tuned
        state, collected, episodes = collect(state, collect_key)
        state, steps, values = evaluate_returns(state, collected)
        state, losses = updates.run(state, steps, update_key)
        change = optax.tree.norm(optax.tree.sub(state.params.tuned, tuned))
        iteration = state.iteration + 1
        state = state._replace(
            params=anneal(state.params, iteration), key=key, iteration=iteration
        )
        counts = {
            "params_change": change,
            "env_steps": iteration * float(num_envs * num_steps * env.action_shape[0]),
        }
        return state, episodes | values | losses | counts

    def split(state: PPOState, num_devices: int) -> PPOState:
        """Everything of the environments is split, everything learned is not."""
        check_devices(config, num_devices)
        updates.check_devices(num_devices)
        whole = jax.tree.map(lambda _: parallel.WHOLE, state)
        return whole._replace(
            env=jax.tree.map(lambda _: parallel.SPLIT, state.env),
            first=parallel.SPLIT,
            reward_scale=whole.reward_scale._replace(discounted=parallel.SPLIT),
        )

    return Algorithm(
        init=init,
        step=step,
        params=lambda state: state.params,
        act=policy.act,
        split=split,
        finite=("policy_loss", "value_loss", "params_change"),
    )


def make(
    env: VecEnv, policy: ChainPolicy, config: ConfigDict, data: Any = None
) -> Algorithm:
    """PPO as `config.algorithm.ppo`, `config.rollout` and `config.critic` say.

    Args:
        data: demonstrations, of which PPO makes no use.
    """
    del data
    return make_ppo(
        env,
        policy,
        StateCritic(**config.critic),
        config.algorithm.ppo,
        num_steps=config.rollout.num_steps,
        reset_at_iteration=config.rollout.reset_at_iteration,
    )


def _per_step(apply: Callable[..., Array], params: PyTree, obs: Obs) -> Array:
    """Apply a batched network to leaves [T, B, ...]."""
    leading = next(iter(obs.values())).shape[:2]
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), obs)
    return apply(params, flat).reshape(leading)
