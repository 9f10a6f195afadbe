"""On-policy algorithms with minibatches of whole chunks, each from its objective."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from dppo_jax.learning import losses, on_policy, on_policy_settings, on_policy_updates
from dppo_jax.learning.minibatch import (
    grouped_batches,
    mean_over_micro_batches,
    micro_batch_size,
)
from dppo_jax.learning.on_policy import OnPolicyState, Steps
from dppo_jax.policies import ChainPolicy, PolicyParams
from dppo_jax.rollout import BoundAct
from dppo_jax.training import parallel
from dppo_jax.types import Algorithm, Array, Metrics, Obs, PyTree, VecEnv


class ChunkObjective(NamedTuple):
    """The extras that roll-outs store, and the loss that is computed from them.

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
        objective: what roll-outs store, and the loss of the actor.
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
    both = on_policy_updates.make_optimizers(config)

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
            critic_grads, value_loss = on_policy_updates.value_gradient(
                critic,
                state.critic_params,
                (steps.obs, steps.target, steps.value),
                row,
                value_coef=config.value_coef,
                value_clip=config.get("value_clip"),
            )
            state = both.descend(state, grads, critic_grads, rates)
            metrics |= on_policy_updates.skipped(grads, critic_grads)
            return state, metrics | {"value_loss": value_loss}

        state, metrics = on_policy_updates.run_updates(
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
