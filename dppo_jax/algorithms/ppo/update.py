"""The second phase of an iteration of PPO: updates of policy and critic."""

import functools
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
from dppo_jax.algorithms.ppo.settings import learning_rates
from dppo_jax.learning import optimizers, returns
from dppo_jax.learning.minibatch import grouped_batches
from dppo_jax.policies import ChainPolicy, PolicyParams
from dppo_jax.training import parallel
from dppo_jax.types import Array, Metrics, PyTree


class PPOState(NamedTuple):
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


class Updates(NamedTuple):
    """The functions of the second phase.

    init: (tuned parameters, critic parameters) -> optimizer states of both.
    run: (state, steps [N, ...], key) -> (state, metrics), all epochs of an iteration.
    check_devices: (number of devices) -> None; raises SettingsError if micro-batches do
        not divide a device's part of a minibatch.
    gradients: the gradients of one minibatch.
    """

    init: Callable[[PyTree, PyTree], tuple[Any, Any]]
    run: Callable[[PPOState, Steps, Array], tuple[PPOState, Metrics]]
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

    Args:
        critic: a module, `apply(params, obs) -> [B]`.
        config: `default_config` with changes, already checked.
        mean: averages the log-probabilities of a move, [..., Ta, Da] -> [...].

    Raises:
        SettingsError: the size of a micro-batch does not divide that of a minibatch.
    """
    moves_each, num_items, _ = minibatch_sizes(config, policy)
    gradients = make_gradients(policy, critic, config, mean=mean)
    actor_optimizer, critic_optimizer = (
        optimizers.adamw(
            weight_decay=c.weight_decay, max_grad_norm=c.get("max_grad_norm")
        )
        for c in (config.actor, config.critic)
    )

    def init(tuned: PyTree, critic_params: PyTree) -> tuple[Any, Any]:
        return actor_optimizer.init(tuned), critic_optimizer.init(critic_params)

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
        )
        return row, moves

    def run(state: PPOState, steps: Steps, key: Array) -> tuple[PPOState, Metrics]:
        it = state.iteration
        actor_rate, critic_rate = learning_rates(config, it)
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

        def learn(state: PPOState, index: Array, key: Array) -> Any:
            row, moves = minibatch(steps, index)
            grads, metrics = gradients.actor(state.params, moves, key)
            critic_grads, value_loss = gradients.critic(state.critic_params, steps, row)
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
                warm = it >= config.critic_warmup
                tuned, actor_state = jax.tree.map(
                    functools.partial(jnp.where, warm), (tuned, actor_state), before
                )
            state = state._replace(
                params=state.params._replace(tuned=tuned),
                critic_params=critic_params,
                actor_optimizer=actor_state,
                critic_optimizer=critic_state,
            )
            return state, metrics | {"value_loss": value_loss}

        keys = jax.random.split(clone_key, index.shape[0])
        shapes = jax.eval_shape(learn, state, index[0], keys[0])[1]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        num_updates = jnp.zeros((), jnp.int32)
        last_kl = zeros["approx_kl"]

        def go_on(carry: Any) -> Array:
            # The KL estimate is known only after the update that exceeds target_kl.
            # The remaining updates are then skipped, as in the reference.
            count, _, _, last_kl = carry
            left = count < index.shape[0]
            target = config.get("target_kl")
            return left if target is None else left & ~(last_kl > target)

        def one_more(carry: Any) -> Any:
            count, state, totals, _ = carry
            state, metrics = learn(state, index[count], keys[count])
            totals = jax.tree.map(jnp.add, totals, metrics)
            return count + 1, state, totals, metrics["approx_kl"]

        num_updates, state, totals, last_kl = jax.lax.while_loop(
            go_on, one_more, (num_updates, state, zeros, last_kl)
        )
        # Means over the updates that ran; a NaN in any of them makes the mean NaN.
        metrics = {name: x / num_updates for name, x in totals.items()}
        metrics |= {
            "approx_kl_last": last_kl,
            "num_updates": num_updates,
            "actor_lr": actor_rate,
            "critic_lr": critic_rate,
        }
        return state, metrics

    def check_devices(num_devices: int) -> None:
        minibatch_sizes(config, policy, num_devices)

    return Updates(init, run, check_devices, gradients)
