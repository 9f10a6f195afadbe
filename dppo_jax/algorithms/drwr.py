"""Reward-weighted regression of diffusion policies, DRWR (DPPO, arXiv 2409.00588).

On-policy and without a critic: the policy clones the chunks of its last roll-out, each
with the weight min(exp(beta R), max_weight) of its standardised return-to-go R, see
`learning/regression.py`. It clones at all denoising steps.

A chunk counts if its episode ended in the roll-out, wherever it began. Episodes that
the end of an iteration cuts have no complete return and are left out, so a roll-out
needs at least the chunks of an episode. If no episode ended, the iteration leaves the
parameters as they are, and `num_updates` and `finished_share` are zero. (The reference
fails or takes the episodes of an earlier iteration.)
"""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dppo_jax.errors import SettingsError
from dppo_jax.learning import losses, optimizer_settings, optimizers
from dppo_jax.learning.on_policy import flat
from dppo_jax.learning.optimizers import Trained, Trainer
from dppo_jax.learning.regression import (
    regression_weight,
    returns_to_go,
    weighted_clone_loss,
)
from dppo_jax.learning.regression_iteration import (
    Learner,
    RegressionState,
    Rows,
    check_numbers,
    weighted_regression,
)
from dppo_jax.policies import ChainPolicy
from dppo_jax.types import Algorithm, Array, Metrics, VecEnv

# Added to the standard deviation of returns.
_EPSILON = 1e-3


def default_config() -> ConfigDict:
    """The reference's settings for Hopper, Walker2d and HalfCheetah (v0.8)."""
    config = ConfigDict()
    config.discount = 0.99  # per chunk
    config.beta = 10.0  # weight = exp(beta return), of scaled returns
    config.max_weight = 100.0  # bound of a weight
    config.epochs = 16  # passes over the data of an iteration
    config.batch_size = 1000  # chunks; fewer make one minibatch
    config.actor = optimizer_settings.default_config(1e-4)
    return config


def make(
    env: VecEnv, policy: ChainPolicy, config: ConfigDict, data: Any = None
) -> Algorithm:
    """Make DRWR from a whole configuration.

    Args:
        env: its action is a chunk, [Ta, Da].
        policy: of any kind that can be cloned.
        config: its sections `algorithm.drwr` and `rollout` are read.
        data: not used.

    Returns:
        See `weighted_regression`.

    Raises:
        SettingsError: invalid or contradictory settings, which the message names.
    """
    del data
    settings, rollout = config.algorithm.drwr, config.rollout
    check_numbers(settings, name="drwr", positive=("epochs", "batch_size"))
    if (
        rollout.reset_at_iteration
        and env.max_steps is not None
        and rollout.num_chunks < env.max_steps
    ):
        raise SettingsError(
            f"rollout.reset_at_iteration=True with num_chunks={rollout.num_chunks} "
            f"cuts episodes before their time limit of {env.max_steps} chunks, and "
            f"drwr learns from whole ones; set num_chunks to at least {env.max_steps}."
        )
    trainer = optimizers.trainer(**settings.actor)
    return weighted_regression(
        env,
        policy,
        trainer,
        make_learner(policy, trainer, settings),
        num_chunks=rollout.num_chunks,
        reset_at_iteration=rollout.reset_at_iteration,
        name="drwr",
    )


def make_learner(policy: ChainPolicy, trainer: Trainer, config: ConfigDict) -> Learner:
    """Make the learner, which keeps nothing; `config` is that of `default_config`."""
    discount, epochs = config.discount, config.epochs

    def update(
        state: RegressionState, rows: Rows, key: Array
    ) -> tuple[RegressionState, Metrics]:
        total, finished = flat(
            returns_to_go(
                rows.reward, rows.terminated, rows.truncated, discount=discount
            )
        )
        standard = losses.normalize_advantage(total, finished, epsilon=_EPSILON)
        weight = regression_weight(
            standard, beta=config.beta, max_weight=config.max_weight
        )
        data = flat((rows.obs, rows.chunk)), weight
        num_rows = finished.sum().astype(jnp.int32)
        size = min(config.batch_size, len(total))
        # As long as there are fewer rows than fill a minibatch, it has them all.
        num_batches = jnp.where(num_rows > 0, jnp.maximum(num_rows // size, 1), 0)

        def descend(
            trained: Trained, row: Array, counted: Array, key: Array
        ) -> tuple[Trained, tuple[Array, Array]]:
            (obs, chunk), weight = jax.tree.map(lambda x: x[row], data)
            loss, grads = jax.value_and_grad(weighted_clone_loss, argnums=1)(
                policy.clone_loss,
                trained.params,
                jax.random.split(key, size),
                obs,
                chunk,
                weight,
                counted,
            )
            made = optimizers.are_finite(grads)
            return trainer.descend(trained, grads), (jnp.where(made, loss, 0.0), made)

        def epoch(carry: Any, key: Array) -> tuple[Any, None]:
            order_key, noise_key = jax.random.split(key)
            # A random order in which the rows that count come first.
            order = jnp.argsort(
                jax.random.uniform(order_key, finished.shape) - finished
            )

            def one(i: Array, carry: Any) -> Any:
                trained, sum_of_losses, num_made = carry
                place = i * size + jnp.arange(size)
                trained, (loss, made) = descend(
                    trained,
                    order[place],
                    1.0 * (place < num_rows),
                    jax.random.fold_in(noise_key, i),
                )
                return trained, sum_of_losses + loss, num_made + made

            return jax.lax.fori_loop(0, num_batches, one, carry), None

        start = (state.actor, jnp.zeros(()), jnp.int32(0))
        (actor, sum_of_losses, num_made), _ = jax.lax.scan(
            epoch, start, jax.random.split(key, epochs)
        )
        num_updates = epochs * num_batches
        return state._replace(actor=actor), {
            "policy_loss": sum_of_losses / jnp.maximum(num_made, 1),
            "weight": losses.weighted_mean(weight, finished),
            "finished_share": finished.mean(),
            "num_updates": num_updates,
            "skipped_updates": num_updates - num_made,
        }

    return Learner(
        init=lambda key, obs, row: (),
        store=lambda memory, rows, diverged: (memory, rows),
        update=update,
    )
