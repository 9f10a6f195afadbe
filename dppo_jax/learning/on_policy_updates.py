"""What the updates of on-policy algorithms have in common, see `on_policy`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dppo_jax.learning import losses, on_policy, on_policy_settings, optimizers
from dppo_jax.learning.minibatch import (
    drawn_rows,
    grouped_batches,
    mean_over_micro_batches,
    micro_batch_size,
)
from dppo_jax.learning.on_policy import OnPolicyState, Steps
from dppo_jax.policies import ChainPolicy, PolicyParams
from dppo_jax.rollout import BoundAct
from dppo_jax.training import parallel
from dppo_jax.types import Algorithm, Array, Metrics, Obs, PyTree, VecEnv


def value_gradient(
    critic: Any,
    critic_params: PyTree,
    data: tuple[Obs, Array, Array],
    row: Array,
    *,
    value_coef: float,
    value_clip: float | None,
) -> tuple[PyTree, Array]:
    """Mean gradient of `value_coef` times the value loss over drawn rows, and the loss.

    If more rows are drawn than there are, the critic evaluates each once and weights
    it.

    Args:
        data: observations, targets and old values, leaves [N, ...].
        row: [B] indices into N.
    """
    drawn, weight = drawn_rows(data, row)

    def loss(critic_params: PyTree, batch: Any) -> tuple[Array, Array]:
        (obs, target, old_value), weight = batch
        value = critic.apply(critic_params, obs)
        loss = losses.value_loss(
            value, target, old_value, clip=value_clip, weight=weight
        )
        return value_coef * loss, loss

    # All devices draw equally many rows, so they get equal weights.
    return parallel.mean(
        mean_over_micro_batches(
            lambda batch: jax.grad(loss, has_aux=True)(critic_params, batch),
            (drawn, weight),
            micro_batch_size(drawn[1].shape[0]),
            weight,
        )
    )


class Optimizers(NamedTuple):
    """The optimizers of actor and critic.

    init: (tuned parameters, critic parameters) -> optimizer states of both.
    rates: iteration -> learning rates of both.
    descend: (state, actor's gradient, critic's gradient, rates) -> state, one update.
    """

    init: Callable[[PyTree, PyTree], tuple[Any, Any]]
    rates: Callable[[Array], tuple[Array, Array]]
    descend: Callable[
        [OnPolicyState, PyTree, PyTree, tuple[Array, Array]], OnPolicyState
    ]


def make_optimizers(config: ConfigDict) -> Optimizers:
    """AdamW for both; `config`: `default_config` with changes, already checked."""
    actor_optimizer, critic_optimizer = (
        optimizers.adamw(
            weight_decay=c.weight_decay, max_grad_norm=c.get("max_grad_norm")
        )
        for c in (config.actor, config.critic)
    )

    def init(tuned: PyTree, critic_params: PyTree) -> tuple[Any, Any]:
        return actor_optimizer.init(tuned), critic_optimizer.init(critic_params)

    def descend(
        state: OnPolicyState,
        grads: PyTree,
        critic_grads: PyTree,
        rates: tuple[Array, Array],
    ) -> OnPolicyState:
        actor_rate, critic_rate = rates
        critic_params, critic_state = optimizers.update(
            critic_optimizer,
            critic_grads,
            state.critic_optimizer,
            state.critic_params,
            critic_rate,
        )
        before = (state.params.tuned, state.actor_optimizer)
        tuned, actor_state = optimizers.update(
            actor_optimizer,
            grads,
            state.actor_optimizer,
            state.params.tuned,
            actor_rate,
        )
        if config.critic_warmup > 0:
            warm = state.iteration >= config.critic_warmup
            tuned, actor_state = jax.tree.map(
                functools.partial(jnp.where, warm), (tuned, actor_state), before
            )
        return state._replace(
            params=state.params._replace(tuned=tuned),
            critic_params=critic_params,
            actor_optimizer=actor_state,
            critic_optimizer=critic_state,
        )

    return Optimizers(init, functools.partial(learning_rates, config), descend)


def learning_rates(config: ConfigDict, iteration: Array) -> tuple[Array, Array]:
    """Learning rates of actor and critic; the actor's starts after `critic_warmup`."""
    actor_step = jnp.maximum(iteration - config.critic_warmup, 0)
    return (
        optimizers.cosine_restarts(actor_step, **_rate_settings(config.actor)),
        optimizers.cosine_restarts(iteration, **_rate_settings(config.critic)),
    )


def run_updates(
    learn: Callable[[OnPolicyState, Any], tuple[OnPolicyState, Metrics]],
    state: OnPolicyState,
    batches: PyTree,
    *,
    target_kl: float | None,
) -> tuple[OnPolicyState, Metrics]:
    """Make one update after the other, until the KL estimate exceeds `target_kl`.

    Args:
        learn: (state, batch) -> (state, metrics), one update; `approx_kl` is a metric.
        batches: leaves [U, ...], of U updates.
        target_kl: None: make all updates.

    Returns:
        The state, and means of the metrics over the updates that ran.
    """
    num_batches = jax.tree.leaves(batches)[0].shape[0]

    def batch(count: Array | int) -> PyTree:
        return jax.tree.map(lambda x: x[count], batches)

    shapes = jax.eval_shape(learn, state, batch(0))[1]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    num_updates = jnp.zeros((), jnp.int32)
    last_kl = zeros["approx_kl"]

    def go_on(carry: Any) -> Array:
        # The KL estimate is known only after the update that exceeds target_kl.
        # The remaining updates are then skipped, as in the reference.
        count, _, _, last_kl = carry
        left = count < num_batches
        return left if target_kl is None else left & ~(last_kl > target_kl)

    def one_more(carry: Any) -> Any:
        count, state, totals, _ = carry
        state, metrics = learn(state, batch(count))
        totals = jax.tree.map(jnp.add, totals, metrics)
        return count + 1, state, totals, metrics["approx_kl"]

    num_updates, state, totals, last_kl = jax.lax.while_loop(
        go_on, one_more, (num_updates, state, zeros, last_kl)
    )
    # A NaN in any of the updates makes the mean NaN.
    metrics = {name: x / num_updates for name, x in totals.items()}
    return state, metrics | {"approx_kl_last": last_kl, "num_updates": num_updates}


class ChunkObjective(NamedTuple):
    """What is kept of the chunks of a roll-out, and what is learned from it.

    explore: parameters -> `act` of a roll-out, whose extras become those of the steps.
    loss: (tuned parameters, parameters, steps with these extras) -> (mean over the
        steps of what the actor minimises, metrics, `approx_kl` among them).
    """

    explore: Callable[[PolicyParams], BoundAct]
    loss: Callable[[PyTree, PolicyParams, Steps], tuple[Array, Metrics]]


def make_chunk_algorithm(
    env: VecEnv,
    policy: ChainPolicy,
    critic: Any,
    config: ConfigDict,
    objective: ChunkObjective,
    *,
    num_chunks: int,
    reset_at_iteration: bool,
    rows_each: int,
    name: str,
) -> Algorithm:
    """Make an on-policy algorithm whose minibatches are of whole chunks.

    Args:
        critic, config, rows_each, name: as in `make_chunk_updates`.
        num_chunks, reset_at_iteration: as in `on_policy.collect`.

    Returns:
        See `on_policy.on_policy`; nothing is added to the parameters of the policy.

    Raises:
        SettingsError: as `make_chunk_updates`.
    """
    updates = make_chunk_updates(
        critic,
        config,
        objective.loss,
        num_envs=env.num_envs,
        num_chunks=num_chunks,
        rows_each=rows_each,
        name=name,
    )

    def init(key: Array, params: PolicyParams | None, obs: Obs) -> PolicyParams:
        return policy.init(key, obs) if params is None else params

    learner = on_policy.Learner(
        init=init,
        init_optimizers=updates.init,
        collect=on_policy.make_collect(
            env,
            critic,
            config,
            objective.explore,
            num_chunks=num_chunks,
            reset_at_iteration=reset_at_iteration,
        ),
        update=updates.update,
        act=policy.act,
        check_devices=updates.check_devices,
    )
    return on_policy.on_policy(env, critic, learner, num_chunks=num_chunks)


class ChunkUpdates(NamedTuple):
    """Updates on minibatches of whole chunks.

    init, update, check_devices: as in `on_policy.Learner`.
    """

    init: Callable[[PyTree, PyTree], tuple[Any, Any]]
    update: Callable[[OnPolicyState, Steps, Array], tuple[OnPolicyState, Metrics]]
    check_devices: Callable[[int], None]


def make_chunk_updates(
    critic: Any,
    config: ConfigDict,
    loss: Callable[[PyTree, PolicyParams, Steps], tuple[Array, Metrics]],
    *,
    num_envs: int,
    num_chunks: int,
    rows_each: int,
    name: str,
) -> ChunkUpdates:
    """Make the updates on `num_chunks` chunks of `num_envs` environments.

    Args:
        critic: a module, `apply(params, obs) -> [B]`.
        config: `on_policy_settings.default_config` with changes, already checked, and
            `batch_size`, the chunks of a minibatch.
        loss: as in `ChunkObjective`. The advantages are normalised over the minibatch
            if `normalize_advantage` is set.
        rows_each: rows that the actor's network evaluates at once for a chunk.
        name: of the algorithm, for messages.

    Raises:
        SettingsError: the size of a micro-batch does not divide that of a minibatch.
    """
    both = make_optimizers(config)

    def micro_items(num_devices: int) -> int:
        size, wanted = config.batch_size // num_devices, config.get("micro_batch_size")
        return micro_batch_size(size, wanted, moves=rows_each)

    def update(
        state: OnPolicyState, steps: Steps, key: Array
    ) -> tuple[OnPolicyState, Metrics]:
        rates = both.rates(state.iteration)
        shape = (num_chunks, num_envs // parallel.num_shards(), 1)
        rows = jax.vmap(
            lambda key: grouped_batches(
                key, shape, config.batch_size, num_groups=config.shuffle_groups
            )
        )(jax.random.split(key, config.epochs))

        def learn(state: OnPolicyState, row: Array) -> tuple[OnPolicyState, Metrics]:
            batch = jax.tree.map(lambda x: x[row], steps)
            if config.normalize_advantage:
                advantage = losses.normalize_advantage(batch.advantage)
                batch = batch._replace(advantage=advantage)
            grads, metrics = parallel.mean(
                mean_over_micro_batches(
                    lambda batch: jax.grad(loss, has_aux=True)(
                        state.params.tuned, state.params, batch
                    ),
                    batch,
                    micro_items(parallel.num_shards()),
                )
            )
            critic_grads, value_loss = value_gradient(
                critic,
                state.critic_params,
                (steps.obs, steps.target, steps.value),
                row,
                value_coef=config.value_coef,
                value_clip=config.get("value_clip"),
            )
            state = both.descend(state, grads, critic_grads, rates)
            return state, metrics | {"value_loss": value_loss}

        state, metrics = run_updates(
            learn,
            state,
            rows.reshape(-1, rows.shape[-1]),
            target_kl=config.get("target_kl"),
        )
        return state, metrics | {"actor_lr": rates[0], "critic_lr": rates[1]}

    def check_devices(num_devices: int) -> None:
        on_policy_settings.check_devices(config.shuffle_groups, num_devices, name=name)
        micro_items(num_devices)

    check_devices(1)
    return ChunkUpdates(both.init, update, check_devices)


def _rate_settings(config: ConfigDict) -> dict[str, Any]:
    return dict(
        peak=config.learning_rate,
        floor=config.min_learning_rate,
        cycle_steps=config.cycle_steps,
        warmup_steps=config.warmup_steps,
    )
