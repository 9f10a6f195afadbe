"""Behaviour cloning of a policy, with an exponential moving average of its network."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from dppo_jax.demonstrations.dataset import Windows, gather
from dppo_jax.errors import SettingsError
from dppo_jax.learning import optimizers
from dppo_jax.learning.minibatch import covering_batches
from dppo_jax.networks.augmentation import random_shifts
from dppo_jax.policies import ChainPolicy, PolicyParams
from dppo_jax.types import Algorithm, Array, Metrics, Obs, PyTree


class PretrainState(NamedTuple):
    """The training state between two epochs.

    params: the network parameters that are trained.
    ema: their exponential moving average, which is the policy.
    epoch, updates: how many have been completed.
    """

    params: PyTree
    ema: PyTree
    optimizer: Any
    key: Array
    epoch: Array
    updates: Array


def default_config() -> ConfigDict:
    """Settings of the DPPO paper's pre-training (appendix), for state policies."""
    config = ConfigDict()
    config.batch_size = 128  # windows of one update
    config.learning_rate = 1e-3  # the highest one
    config.min_learning_rate = 1e-4  # at the end of a cycle
    config.cycle_epochs = 1000  # epochs of a cosine cycle, warm-up included
    config.warmup_epochs = 1  # epochs in which the rate rises
    config.weight_decay = 1e-6  # of AdamW, times the learning rate
    config.ema_decay = 0.995  # of the average of the weights, which is saved
    config.ema_every = 10  # updates
    # Averaging starts in this epoch, counted from 1; before it, ema copies params.
    config.ema_start = 20
    # The decay of average n is at most (1 + n) / (10 + n), so that few updates suffice
    # for the average to forget where it started. False: the reference's rule.
    config.ema_warmup = True
    # Demonstrations to clone from, evenly spaced among all; None: all of them.
    config.num_episodes = placeholder(int)
    config.clone_entropy_coef = 0.0  # Gaussians and mixtures only
    # Pixels that images are shifted by at most, at random; 4 in the paper, 0: none.
    config.random_shift = 0
    return config


def make_pretrain(
    policy: ChainPolicy, dataset: Windows, config: ConfigDict
) -> Algorithm:
    """Make behaviour cloning an Algorithm; one `step` is one epoch.

    Args:
        policy: the loss is its `clone_loss` minus `clone_entropy_coef` times its
            entropy.
        dataset: windows of demonstrations, on the device.

    Returns:
        An Algorithm. Each epoch uses every window, in minibatches of equal size; the
        last one is filled up with samples from the beginning of the epoch.

    Raises:
        SettingsError: an invalid setting, which the message names.
    """
    if not isinstance(policy, ChainPolicy):
        raise SettingsError(
            f"a {type(policy).__name__} cannot be cloned; set model.kind='diffusion', "
            "'gaussian' or 'gmm'."
        )
    for name in ("batch_size", "ema_every"):
        if config[name] < 1:
            raise SettingsError(f"pretrain.{name}={config[name]} must be at least 1.")
    for name in ("ema_start", "weight_decay", "random_shift"):
        if config[name] < 0:
            raise SettingsError(f"pretrain.{name}={config[name]} must not be negative.")
    if not 0 <= config.ema_decay < 1:
        raise SettingsError(
            f"pretrain.ema_decay={config.ema_decay} must lie in [0, 1)."
        )
    rate = dict(
        peak=config.learning_rate,
        floor=config.min_learning_rate,
        cycle_steps=config.cycle_epochs,
        warmup_steps=config.warmup_epochs,
    )
    optimizers.check_cosine_restarts("pretrain", **rate)
    optimizer = optimizers.adamw(weight_decay=config.weight_decay)

    obs, _ = gather(dataset, jnp.zeros(1, jnp.int32))
    # The first update of epoch `ema_start` or after it that averages.
    num_batches = -(-dataset.size // config.batch_size)
    before = max(config.ema_start - 1, 0) * num_batches
    first_average = -(-before // config.ema_every) * config.ema_every

    def init(key: Array) -> PretrainState:
        params_key, key = jax.random.split(key)
        params = policy.init(params_key, obs).tuned
        return PretrainState(
            params=params,
            ema=params,
            optimizer=optimizer.init(params),
            key=key,
            epoch=jnp.zeros((), jnp.int32),
            updates=jnp.zeros((), jnp.int32),
        )

    def average(ema: PyTree, params: PyTree, epoch: Array, updates: Array) -> PyTree:
        """The average after update number `updates`, counted from 0, of this epoch."""
        decay: Array | float = config.ema_decay
        if config.ema_warmup:
            num_averages = jnp.maximum(updates - first_average, 0) / config.ema_every
            decay = jnp.minimum(decay, (1 + num_averages) / (10 + num_averages))
        decay = jnp.where(epoch + 1 < config.ema_start, 0.0, decay)
        return jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, params)

    def clone_loss(params: PyTree, key: Array, obs: Obs, action: Array) -> Array:
        keys = jax.random.split(key, len(action))
        if config.random_shift:
            shift_keys, keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
            obs = random_shifts(shift_keys, obs, max_shift=config.random_shift)
        loss = policy.clone_loss(params, keys, obs, action).mean()
        if config.clone_entropy_coef:
            loss -= config.clone_entropy_coef * policy.entropy(params, obs).mean()
        return loss

    def step(state: PretrainState) -> tuple[PretrainState, Metrics]:
        key, shuffle_key, loss_key = jax.random.split(state.key, 3)
        learning_rate = optimizers.cosine_restarts(state.epoch, **rate)
        batches = covering_batches(shuffle_key, dataset.size, config.batch_size)

        def learn(state: PretrainState, inputs: Any) -> tuple[PretrainState, Any]:
            index, key = inputs
            obs, action = gather(dataset, index)
            loss, grads = jax.value_and_grad(clone_loss)(state.params, key, obs, action)
            params, optimizer_state = optimizers.update(
                optimizer, grads, state.optimizer, state.params, learning_rate
            )
            ema = jax.lax.cond(
                state.updates % config.ema_every == 0,
                lambda: average(state.ema, params, state.epoch, state.updates),
                lambda: state.ema,
            )
            state = state._replace(
                params=params,
                ema=ema,
                optimizer=optimizer_state,
                updates=state.updates + 1,
            )
            return state, (loss, optimizers.are_finite(grads))

        keys = jax.random.split(loss_key, batches.shape[0])
        state, (loss, made) = jax.lax.scan(learn, state, (batches, keys))
        state = state._replace(key=key, epoch=state.epoch + 1)
        # One minibatch suffices to see whether the average lags behind.
        of_average = clone_loss(state.ema, keys[-1], *gather(dataset, batches[-1]))
        metrics = {
            "loss": optimizers.mean_of_made(loss, made),
            "average_loss": of_average,
            "learning_rate": learning_rate,
            "num_updates": made.size,
            "skipped_updates": made.size - made.sum(),
        }
        return state, jax.tree.map(jnp.asarray, metrics)

    def params(state: PretrainState) -> PolicyParams:
        """Use the averaged network as the base network and as the tuned network."""
        return PolicyParams(base=state.ema, tuned=state.ema)

    return Algorithm(
        init=jax.jit(init), step=step, params=params, act=policy.act, finite=("loss",)
    )
