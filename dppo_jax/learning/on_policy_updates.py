"""Shared parts of the updates of on-policy algorithms, see `on_policy`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dppo_jax.learning import losses, optimizers
from dppo_jax.learning.minibatch import (
    drawn_rows,
    mean_over_micro_batches,
    micro_batch_size,
)
from dppo_jax.learning.on_policy import OnPolicyState
from dppo_jax.training import parallel
from dppo_jax.types import Array, Metrics, Obs, PyTree


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
        value_coef: factor of the loss whose gradient is returned.
        value_clip: `clip` of `losses.value_loss`.
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
        If either gradient is not finite, neither network changes.
    """

    init: Callable[[PyTree, PyTree], tuple[Any, Any]]
    rates: Callable[[Array], tuple[Array, Array]]
    descend: Callable[
        [OnPolicyState, PyTree, PyTree, tuple[Array, Array]], OnPolicyState
    ]


def make_optimizers(config: ConfigDict) -> Optimizers:
    """AdamW for both.

    Args:
        config: `on_policy_settings.default_config` with changes, already checked.
    """
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
        # What the one learns in an update depends on the other, so both are skipped.
        finite = optimizers.are_finite((grads, critic_grads))
        critic_params, critic_state = optimizers.update(
            critic_optimizer,
            critic_grads,
            state.critic_optimizer,
            state.critic_params,
            critic_rate,
            finite=finite,
        )
        before = (state.params.tuned, state.actor_optimizer)
        tuned, actor_state = optimizers.update(
            actor_optimizer,
            grads,
            state.actor_optimizer,
            state.params.tuned,
            actor_rate,
            finite=finite,
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
        learn: (state, batch) -> (state, metrics), one update; `approx_kl` is a metric,
            and so is `skipped_updates`, 1 if its gradients were not finite.
        batches: leaves [U, ...], of U updates.
        target_kl: None: make all updates.

    Returns:
        The state, and means of the metrics over the updates that ran and were not
        skipped; of `skipped_updates` the sum, and `first_ratio`, the ratio of the first
        update, which is 1 if old and new log-probabilities agree.
    """
    num_batches = jax.tree.leaves(batches)[0].shape[0]

    def batch(count: Array | int) -> PyTree:
        return jax.tree.map(lambda x: x[count], batches)

    shapes = jax.eval_shape(learn, state, batch(0))[1]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    num_updates = jnp.zeros((), jnp.int32)
    last_kl, first_ratio = zeros["approx_kl"], zeros["ratio"]

    def go_on(carry: Any) -> Array:
        # The KL estimate is known only after the update that exceeds target_kl.
        # The remaining updates are then skipped, as in the reference.
        count, _, _, last_kl, _ = carry
        left = count < num_batches
        return left if target_kl is None else left & ~(last_kl > target_kl)

    def one_more(carry: Any) -> Any:
        count, state, totals, _, first_ratio = carry
        state, metrics = learn(state, batch(count))
        last_kl = metrics["approx_kl"]
        first_ratio = jnp.where(count == 0, metrics["ratio"], first_ratio)
        skipped = metrics["skipped_updates"]
        counted = jax.tree.map(lambda x: jnp.where(skipped > 0, 0, x), metrics)
        counted["skipped_updates"] = skipped
        totals = jax.tree.map(jnp.add, totals, counted)
        return count + 1, state, totals, last_kl, first_ratio

    num_updates, state, totals, last_kl, first_ratio = jax.lax.while_loop(
        go_on, one_more, (num_updates, state, zeros, last_kl, first_ratio)
    )
    skipped = totals.pop("skipped_updates")
    # A NaN in any of the other updates makes the mean NaN.
    num_made = jnp.maximum(num_updates - skipped, 1)
    metrics = {name: x / num_made for name, x in totals.items()}
    return state, metrics | {
        "approx_kl_last": last_kl,
        "first_ratio": first_ratio,
        "num_updates": num_updates,
        "skipped_updates": skipped,
    }


def skipped(*grads: PyTree) -> Metrics:
    """The metric that `run_updates` needs, of an update with these gradients."""
    return {"skipped_updates": 1 - optimizers.are_finite(grads).astype(jnp.int32)}


def _rate_settings(config: ConfigDict) -> dict[str, Any]:
    return dict(
        peak=config.learning_rate,
        floor=config.min_learning_rate,
        cycle_steps=config.cycle_steps,
        warmup_steps=config.warmup_steps,
    )
