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
from ml_collections.config_dict import placeholder

from dppo_jax import chain_losses, losses, optimizers, returns, schedules
from dppo_jax.minibatch import (
    drawn_rows,
    mean_over_parts,
    part_size,
    shuffled_batches,
)
from dppo_jax.rollout import episode_means, rollout
from dppo_jax.types import (
    Algorithm,
    Array,
    Metrics,
    Obs,
    Policy,
    PolicyParams,
    PyTree,
    Transition,
    VecEnv,
)


class PPOState(NamedTuple):
    """Everything an iteration starts from; a checkpoint of it resumes exactly."""

    params: PolicyParams
    critic_params: PyTree
    actor_optimizer: Any
    critic_optimizer: Any
    env: Any
    first: Array
    reward_scale: returns.RewardScale
    key: Array
    iteration: Array


class Pairs(NamedTuple):
    """Samples of the update: environment steps [N, ...], each with K' moves."""

    obs: Obs
    chain: Array
    log_prob: Array
    advantage: Array
    target: Array
    value: Array


class Moves(NamedTuple):
    """A minibatch of pairs [B, ...], in the order that a surrogate loss takes them."""

    obs: Obs
    x: Array
    next_x: Array
    step: Array
    old_log_prob: Array
    advantage: Array


def default_config() -> ConfigDict:
    """Settings of the paper where it names one for all tasks; see its appendix."""
    config = ConfigDict()
    # `make_ppo` takes the number of environments from its environment, and K' with
    # the settings of sampling (min_std ... reward_horizon) from its policy; they stand
    # here for `make_env` and `make_policy`, so that one section says it all. Of what
    # a policy tells, a value that differs here is refused.
    config.num_iterations = 100
    config.num_envs = 40
    config.num_steps = 100  # action chunks per environment and iteration
    config.reset_at_iteration = True
    config.num_tuned_steps = 10
    config.min_std = 0.1  # exploration: floor of a chain's sampling std
    config.min_log_prob_std = 0.1  # stability: floor of the std in log-probs
    config.draw_clip = 3.0
    config.final_clip = placeholder(float)
    config.noise_clip = placeholder(float)
    config.eta = 1.0
    config.reward_horizon = placeholder(int)
    config.discount = 0.99
    config.gae_lambda = 0.95
    config.denoising_discount = 0.99
    config.scale_rewards = True
    config.reward_scale = 1.0
    config.batch_size = 1000  # pairs (t, k)
    # Rows whose gradients are computed at a time; their mean is exact. None: as many
    # as the caches of a CPU hold, all on an accelerator.
    config.micro_batch_size = placeholder(int)
    config.epochs = 5
    config.clip_top = 0.01
    config.clip_base = 0.001
    config.clip_rate = 3.0
    config.value_clip = placeholder(float)
    config.value_coef = 0.5
    config.entropy_coef = 0.0
    config.clone_coef = 0.0
    config.normalize_advantage = True
    config.advantage_quantiles = (0.0, 1.0)
    config.target_kl = placeholder(float)
    config.critic_warmup = 0
    for name, rate in (("actor", 1e-4), ("critic", 1e-3)):
        config[name] = ConfigDict(
            dict(
                learning_rate=rate,
                min_learning_rate=rate,
                cycle_steps=1000,
                warmup_steps=10,
                weight_decay=0.0,
                max_grad_norm=placeholder(float),
            )
        )
    # Annealing, both off: the sampling floor moves to min_std_end over
    # min_std_steps iterations; every tuned_steps_every iterations the frozen
    # network is replaced by the tuned one and keeps tuned_steps_drop more moves.
    config.min_std_end = 0.1
    config.min_std_steps = 0
    config.tuned_steps_drop = 0
    config.tuned_steps_every = 0
    return config


def make_ppo(
    env: VecEnv,
    policy: Policy,
    critic: Any,
    config: ConfigDict,
) -> Algorithm:
    """PPO over (t, k) with the settings of `default_config`.

    Args:
        env: whose action is a chunk, [Ta, Da].
        policy: a chain of K' moves.
        critic: a module, `apply(params, obs) -> [B]`.

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
    num_envs, num_steps = env.num_envs, config.num_steps
    num_pairs = num_envs * num_steps * policy.num_steps
    if not 1 <= config.batch_size <= num_pairs:
        raise ValueError(
            f"batch_size={config.batch_size} must lie between 1 and the {num_pairs} "
            f"pairs of an iteration ({num_envs} environments x {num_steps} chunks x "
            f"{policy.num_steps} moves); lower it or collect more."
        )
    actor_optimizer, critic_optimizer = (
        optimizers.adamw(
            weight_decay=c.weight_decay, max_grad_norm=c.get("max_grad_norm")
        )
        for c in (config.actor, config.critic)
    )
    anneals_steps = config.tuned_steps_drop > 0 and config.tuned_steps_every > 0
    micro_batch = part_size(config.batch_size, config.get("micro_batch_size"))

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
        env_state = env.reset(env_key)
        obs = jax.tree.map(lambda x: x[:1], env_state.obs)
        if params is None:
            params = policy.init(policy_key, obs)
        params = anneal(params, jnp.zeros((), jnp.int32))
        if critic_params is None:
            critic_params = critic.init(critic_key, obs)
        return PPOState(
            params=params,
            critic_params=critic_params,
            actor_optimizer=actor_optimizer.init(params.tuned),
            critic_optimizer=critic_optimizer.init(critic_params),
            env=env_state,
            first=jnp.ones(num_envs),
            reward_scale=returns.init_reward_scale(num_envs),
            key=key,
            iteration=jnp.zeros((), jnp.int32),
        )

    def collect(state: PPOState, key: Array) -> tuple[PPOState, Transition, Metrics]:
        reset_key, act_key = jax.random.split(key)
        if config.reset_at_iteration:
            state = state._replace(
                env=env.reset(reset_key), first=jnp.ones_like(state.first)
            )
        min_std = schedules.linear_anneal(
            state.iteration,
            start=policy.min_std,
            end=config.min_std_end,
            steps=config.min_std_steps,
        )

        def act(key: Array, obs: Obs) -> Any:
            return policy.sample(state.params, key, obs, min_std=min_std)

        env_state, transitions, metrics = rollout(
            env, act, state.env, act_key, num_steps
        )
        metrics = episode_means(transitions, metrics) | {"min_std": min_std}
        return state._replace(env=env_state), transitions, metrics

    def evaluate_returns(
        state: PPOState, transitions: Transition
    ) -> tuple[PPOState, Pairs, Metrics]:
        value, next_value = (
            _per_step(critic.apply, state.critic_params, obs)
            for obs in (transitions.obs, transitions.next_obs)
        )
        done = jnp.maximum(transitions.terminated, transitions.truncated)
        first = jnp.concatenate([state.first[None], done[:-1]])
        reward, reward_scale = transitions.reward, state.reward_scale
        if config.scale_rewards:
            reward_scale, reward = returns.scale_rewards(
                reward_scale, reward, first, discount=config.discount
            )
        advantage, target = returns.gae(
            *(reward * config.reward_scale, value, next_value),
            *(transitions.terminated, transitions.truncated),
            discount=config.discount,
            gae_lambda=config.gae_lambda,
        )
        pairs = Pairs(
            transitions.obs,
            transitions.chain,
            transitions.log_prob,
            *(advantage, target, value),
        )
        pairs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pairs)
        state = state._replace(first=done[-1], reward_scale=reward_scale)
        variance = jnp.var(target)
        explained = 1 - jnp.var(target - value) / jnp.where(variance > 0, variance, 1)
        return state, pairs, {"explained_variance": explained}

    def actor_loss(
        tuned: PyTree, params: PolicyParams, moves: Moves, key: Array
    ) -> tuple[Array, Metrics]:
        loss, info = chain_losses.surrogate_loss(
            *(tuned, policy, *moves),
            clip_top=config.clip_top,
            clip_base=config.clip_base,
            clip_rate=config.clip_rate,
            num_active=params.num_active,
        )
        metrics = {"policy_loss": loss} | info._asdict()
        if config.entropy_coef:
            entropy = policy.entropy(tuned, moves.obs)
            loss -= config.entropy_coef * entropy
            metrics["entropy"] = entropy
        if config.clone_coef:
            penalty = chain_losses.cloning_penalty(
                *(tuned, policy, params.base, key, moves.obs),
                num_active=params.num_active,
            )
            loss += config.clone_coef * penalty
            metrics["cloning_penalty"] = penalty
        return loss, metrics

    def actor_gradient(
        params: PolicyParams, moves: Moves, key: Array
    ) -> tuple[PyTree, Metrics]:
        """Mean gradient over a minibatch, its parts one after the other."""
        advantage = chain_losses.move_advantage(
            *(moves.advantage, moves.step),
            num_steps=policy.num_steps,
            denoising_discount=config.denoising_discount,
            normalize=config.normalize_advantage,
            quantiles=tuple(config.advantage_quantiles),
            num_active=params.num_active,
        )

        def gradient(part: tuple[Moves, Array]) -> tuple[PyTree, Metrics]:
            moves, rows = part
            return jax.grad(actor_loss, has_aux=True)(
                params.tuned, params, moves, jax.random.fold_in(key, rows[0])
            )

        return mean_over_parts(
            gradient,
            (moves._replace(advantage=advantage), jnp.arange(config.batch_size)),
            micro_batch,
            chain_losses.move_weight(moves.step, policy.num_steps, params.num_active),
        )

    def critic_gradient(
        critic_params: PyTree, pairs: Pairs, row: Array
    ) -> tuple[PyTree, Array]:
        """Mean gradient over the environment steps of a minibatch, and the loss.

        A value is the same for all moves of an environment step, so that none needs
        to be evaluated more than once.
        """
        steps, weight = drawn_rows((pairs.obs, pairs.target, pairs.value), row)

        def loss(critic_params: PyTree, part: Any) -> tuple[Array, Array]:
            (obs, target, old_value), weight = part
            value = critic.apply(critic_params, obs)
            loss = losses.value_loss(
                *(value, target, old_value),
                clip=config.get("value_clip"),
                weight=weight,
            )
            return config.value_coef * loss, loss

        return mean_over_parts(
            lambda part: jax.grad(loss, has_aux=True)(critic_params, part),
            (steps, weight),
            part_size(min(num_envs * num_steps, config.batch_size)),
            weight,
        )

    def minibatch(pairs: Pairs, row: Array, step: Array) -> Moves:
        return Moves(
            obs=jax.tree.map(lambda x: x[row], pairs.obs),
            x=pairs.chain[row, step],
            next_x=pairs.chain[row, step + 1],
            step=step,
            old_log_prob=pairs.log_prob[row, step],
            advantage=pairs.advantage[row],
        )

    def update(state: PPOState, pairs: Pairs, key: Array) -> tuple[PPOState, Metrics]:
        it = state.iteration
        actor_rate, critic_rate = learning_rates(config, it)
        shuffle_key, clone_key = jax.random.split(key)
        index = jax.vmap(
            lambda key: shuffled_batches(key, num_pairs, config.batch_size)
        )(jax.random.split(shuffle_key, config.epochs))
        index = index.reshape(-1, config.batch_size)

        def learn(state: PPOState, index: Array, key: Array) -> Any:
            row, move = jnp.divmod(index, policy.num_steps)
            grads, metrics = actor_gradient(
                state.params, minibatch(pairs, row, move), key
            )
            critic_grads, value_loss = critic_gradient(state.critic_params, pairs, row)
            critic_params, critic_state = optimizers.update(
                *(critic_optimizer, critic_grads, state.critic_optimizer),
                *(state.critic_params, critic_rate),
            )
            tuned, actor_state = jax.lax.cond(
                it >= config.critic_warmup,
                lambda: optimizers.update(
                    *(actor_optimizer, grads, state.actor_optimizer),
                    *(state.params.tuned, actor_rate),
                ),
                lambda: (state.params.tuned, state.actor_optimizer),
            )
            state = state._replace(
                params=state.params._replace(tuned=tuned),
                critic_params=critic_params,
                actor_optimizer=actor_state,
                critic_optimizer=critic_state,
            )
            return state, metrics | {"value_loss": value_loss}

        def guarded(carry: Any, inputs: Any) -> Any:
            # The KL estimate is known only after the step that went too far; from
            # there on the data are used up, as in the reference.
            state, stopped = carry
            shapes = jax.eval_shape(learn, state, *inputs)[1]
            state, metrics = jax.lax.cond(
                stopped,
                lambda: (state, jax.tree.map(jnp.zeros_like, shapes)),
                lambda: learn(state, *inputs),
            )
            ran = ~stopped
            if config.get("target_kl") is not None:
                stopped |= metrics["approx_kl"] > config.target_kl
            return (state, stopped), (metrics, ran)

        keys = jax.random.split(clone_key, index.shape[0])
        (state, _), (metrics, ran) = jax.lax.scan(
            guarded, (state, jnp.asarray(False)), (index, keys)
        )
        last_kl = metrics["approx_kl"][ran.sum() - 1]
        # Means over the updates that ran; a NaN among them must show.
        metrics = {name: x.sum() / ran.sum() for name, x in metrics.items()}
        metrics |= {
            "approx_kl_last": last_kl,
            "num_updates": ran.sum(),
            "actor_lr": actor_rate,
            "critic_lr": critic_rate,
        }
        return state, metrics

    def step(state: PPOState) -> tuple[PPOState, Metrics]:
        key, collect_key, update_key = jax.random.split(state.key, 3)
        tuned = state.params.tuned
        state, transitions, episodes = collect(state, collect_key)
        state, pairs, values = evaluate_returns(state, transitions)
        state, updates = update(state, pairs, update_key)
        change = optax.tree.norm(optax.tree.sub(state.params.tuned, tuned))
        iteration = state.iteration + 1
        state = state._replace(
            params=anneal(state.params, iteration), key=key, iteration=iteration
        )
        counts = {
            "params_change": change,
            "env_steps": iteration * float(num_envs * num_steps * env.action_shape[0]),
        }
        return state, episodes | values | updates | counts

    return Algorithm(init, step)


def check_config(config: ConfigDict, policy: Policy) -> None:
    """Refuse settings that contradict each other; raises ValueError by name."""
    for name in ("num_steps", "epochs", "num_iterations"):
        if config[name] < 1:
            raise ValueError(f"{name}={config[name]} must be at least 1.")
    if config.num_tuned_steps != policy.num_steps and policy.num_steps > 1:
        raise ValueError(
            f"num_tuned_steps={config.num_tuned_steps}, but the policy tunes "
            f"{policy.num_steps} steps; make both the same."
        )
    if config.min_std != policy.min_std and policy.num_steps > 1:
        raise ValueError(
            f"min_std={config.min_std}, but the policy explores with "
            f"{policy.min_std}; make both the same."
        )
    if (config.tuned_steps_drop > 0) != (config.tuned_steps_every > 0):
        raise ValueError(
            f"tuned_steps_drop={config.tuned_steps_drop} and "
            f"tuned_steps_every={config.tuned_steps_every} anneal K' together; set "
            "both or none."
        )
    for name in ("discount", "gae_lambda", "denoising_discount"):
        if not 0 <= config[name] <= 1:
            raise ValueError(f"{name}={config[name]} must lie in [0, 1].")
    lower, upper = config.advantage_quantiles
    if not 0 <= lower < upper <= 1:
        raise ValueError(
            f"advantage_quantiles={(lower, upper)} must satisfy "
            "0 <= lower < upper <= 1."
        )
    if not 0 < config.clip_base <= config.clip_top or config.clip_rate <= 0:
        raise ValueError(
            f"the clip range needs 0 < clip_base <= clip_top and clip_rate > 0, got "
            f"clip_base={config.clip_base}, clip_top={config.clip_top}, "
            f"clip_rate={config.clip_rate}."
        )
    for name in ("actor", "critic"):
        schedules.check_cosine_restarts(name, **_rate_settings(config[name]))


def learning_rates(config: ConfigDict, iteration: Array) -> tuple[Array, Array]:
    """Actor and critic rate; the actor's clock starts after the critic's warm-up."""
    actor_step = jnp.maximum(iteration - config.critic_warmup, 0)
    return (
        schedules.cosine_restarts(actor_step, **_rate_settings(config.actor)),
        schedules.cosine_restarts(iteration, **_rate_settings(config.critic)),
    )


def _rate_settings(config: ConfigDict) -> dict[str, Any]:
    return dict(
        peak=config.learning_rate,
        floor=config.min_learning_rate,
        cycle_steps=config.cycle_steps,
        warmup_steps=config.warmup_steps,
    )


def _per_step(apply: Callable[..., Array], params: PyTree, obs: Obs) -> Array:
    """Apply a batched network to leaves [T, B, ...]."""
    leading = next(iter(obs.values())).shape[:2]
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), obs)
    return apply(params, flat).reshape(leading)
