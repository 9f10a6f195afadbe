"""Checks of the losses of weighted regression."""

import jax
import numpy as np

from dppo_jax.diffusion import denoising
from dppo_jax.learning.regression import value_regression_loss, weighted_clone_loss
from dppo_jax.policies import diffusion_policy
from tests.reference_cases import (
    LOSS,
    assert_close,
    assert_gradients_close,
    diffusion_mlp,
    read_case,
    state_critic,
)
from tests.reference_losses import diffusion_settings


def check_weighted_cloning(path, tmp_path):
    """Compare the weighted loss of a policy that draws what was recorded."""
    case = read_case(path)
    network = diffusion_mlp(case.config["net"])
    settings = diffusion_settings(case.config["model"])
    diffusion = denoising.make_diffusion(**settings)
    time, noise = case.group("draw/").values()
    cloning = denoising.diffusion_cloning(diffusion)
    policy = diffusion_policy(
        network,
        diffusion,
        chunk=network.chunk,
        action_dim=network.action_dim,
        num_tuned_steps=1,
    )

    def recorded(params, keys, obs, action):
        return denoising.cloning_loss(
            cloning,
            lambda params, x, time, obs: network.apply(params, x, time, obs),
            params,
            action,
            obs,
            time=time,
            noise=noise,
        )

    policy = policy._replace(clone_loss=recorded)
    keys = jax.random.split(jax.random.key(0), len(noise))

    def loss_of(params):
        return weighted_clone_loss(
            policy.clone_loss,
            params,
            keys,
            case.obs(),
            case.arrays["in/actions"],
            case.arrays["in/weights"],
        )

    loss, gradients = jax.jit(jax.value_and_grad(loss_of))(case.params("net"))
    assert_close(loss, case.arrays["out/loss"], LOSS, "loss")
    assert_gradients_close(case, "grad/", gradients)


def check_value_regression(path, tmp_path):
    """Compare the loss of V, which the reference does not halve.

    Where the targets of a case have no second axis, the reference broadcasts.
    """
    case = read_case(path)
    critic = state_critic(case.config["critic"])
    target = case.arrays["in/targets"]
    broadcast = target.ndim == 1 and len(target) > 1

    def loss_of(params):
        value = critic.apply(params, case.obs())
        flat = np.reshape(target, -1)
        return 2 * value_regression_loss(value, flat, broadcast=broadcast)

    loss, gradients = jax.jit(jax.value_and_grad(loss_of))(case.params("critic"))
    assert_close(loss, case.arrays["out/loss"], LOSS, "loss")
    assert_gradients_close(case, "grad/", gradients)
