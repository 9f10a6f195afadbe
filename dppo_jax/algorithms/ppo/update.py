"""The second phase of an iteration of PPO: updates of policy and critic."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dppo_jax.algorithms.ppo.gradients import (
    Gradients,
    Moves,
    Steps,
    make_gradients,
    minibatch_sizes,
)
from dppo_jax.learning import on_policy_updates
from dppo_jax.learning.minibatch import grouped_batches
from dppo_jax.learning.on_policy import OnPolicyState
from dppo_jax.policies import ChainPolicy
from dppo_jax.training import parallel
from dppo_jax.types import Array, Metrics, PyTree


class Updates(NamedTuple):
    """The functions of the second phase.

    init: (tuned parameters, critic parameters) -> optimizer states of both.
    run: (state, steps [N, ...], key) -> (state, metrics), all epochs of an iteration.
    check_devices: (number of devices) -> None; raises SettingsError if micro-batches do
        not divide a device's part of a minibatch.
    gradients: the gradients of one minibatch.
    """

    init: Callable[[PyTree, PyTree], tuple[Any, Any]]
    run: Callable[[OnPolicyState, Steps, Array], tuple[OnPolicyState, Metrics]]
    check_devices: Callable[[int], None]
    gradients: Gradients


def make_updates(
    policy: ChainPolicy,
    critic: Any,
    config: ConfigDict,
    *,
    num_envs: int,
    num_chunks: int,
    mean: Callable[[Array], Array],
) -> Updates:
    """Make the updates on `num_chunks` chunks of `num_envs` environments.

    The other arguments and the error are those of `make_gradients`.
    """
    moves_each, num_items, _ = minibatch_sizes(config, policy)
    gradients = make_gradients(policy, critic, config, mean=mean)
    optimizers = on_policy_updates.make_optimizers(config)

    def minibatch(steps: Steps, index: Array) -> tuple[Array, Moves]:
        """For indices of items [R], return rows of `steps` [R] and moves [R, M]."""
        row, first = jnp.divmod(index, policy.num_tuned_steps // moves_each)
        step = first[:, None] + jnp.arange(moves_each)
        entry = first[:, None] + jnp.arange(moves_each + 1)
        each = row[:, None]
        moves = Moves(
            obs=jax.tree.map(lambda x: x[row], steps.obs),
            chain=steps.chain[each, entry],
            step=step,
            old_log_prob=steps.log_prob[each, step],
            advantage=jnp.broadcast_to(steps.advantage[each], step.shape),
            # These are kept only if an item is a whole chain.
            old_moments=jax.tree.map(lambda x: x[row], steps.moments),
        )
        return row, moves

    def run(
        state: OnPolicyState, steps: Steps, key: Array
    ) -> tuple[OnPolicyState, Metrics]:
        rates = optimizers.rates(state.iteration)
        shuffle_key, clone_key = jax.random.split(key)
        shape = (
            num_chunks,
            num_envs // parallel.num_shards(),
            policy.num_tuned_steps // moves_each,
        )
        index = jax.vmap(
            lambda key: grouped_batches(
                key, shape, num_items, num_groups=config.shuffle_groups
            )
        )(jax.random.split(shuffle_key, config.epochs))
        index = index.reshape(-1, index.shape[-1])

        def learn(
            state: OnPolicyState, batch: tuple[Array, Array]
        ) -> tuple[OnPolicyState, Metrics]:
            index, key = batch
            row, moves = minibatch(steps, index)
            grads, metrics = gradients.actor(state.params, moves, key)
            critic_grads, value_loss = gradients.critic(state.critic_params, steps, row)
            state = optimizers.descend(state, grads, critic_grads, rates)
            metrics |= on_policy_updates.skipped(grads, critic_grads)
            return state, metrics | {"value_loss": value_loss}

        state, metrics = on_policy_updates.run_updates(
            learn,
            state,
            (index, jax.random.split(clone_key, index.shape[0])),
            target_kl=config.get("target_kl"),
        )
        return state, metrics | {"actor_lr": rates[0], "critic_lr": rates[1]}

    def check_devices(num_devices: int) -> None:
        minibatch_sizes(config, policy, num_devices)

    return Updates(optimizers.init, run, check_devices, gradients)
