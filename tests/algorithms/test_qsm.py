"""The actor's loss of QSM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.algorithms import qsm
from dppo_jax.diffusion import denoising
from dppo_jax.learning.diffusion_q_losses import value_gradient
from dppo_jax.learning.optimizers import Trained
from dppo_jax.networks import DiffusionMLP, StateActionCritic
from dppo_jax.policies import diffusion_policy
from tests import tiny
from tests.algorithms.test_diffusion_q import batch, learner, start

KEY = jax.random.key(1)
ROW = jax.tree.map(lambda x: x[0], batch())
# Smooth, for finite differences.
CRITIC = StateActionCritic((8,), activation="tanh")
DIFFUSION = denoising.make_diffusion(num_denoising_steps=tiny.NUM_STEPS)


class Constant(DiffusionMLP):
    """Predicts the noise `params`, whatever it reads."""

    def apply(self, params, *inputs, method=None, **options):
        return inputs[0] if method == "encode" else jnp.full_like(inputs[0], params)


def policy():
    return diffusion_policy(
        Constant(action_dim=1, chunk=2),
        DIFFUSION,
        chunk=2,
        action_dim=1,
        num_tuned_steps=tiny.NUM_STEPS,
    )


def smooth_start():
    params = tiny.random_params(CRITIC, ROW.obs, ROW.action)
    return start(learner("qsm"))._replace(critic=Trained(params, None))


def inputs():
    """The stored actions with the noise that `clone_loss` draws for this key."""
    seen = []

    def target_of(x):
        seen.append(x)
        return x

    keys = jax.random.split(KEY, 3)
    policy().clone_loss(0.0, keys, ROW.obs, ROW.action, target_of=target_of)
    return seen[0]


@pytest.mark.parametrize("at", qsm.GRADIENTS)
def test_the_score_is_matched_to_the_scaled_gradient_of_the_mean_critic(at):
    """The score is minus the predicted noise; "noisy" and "clean" differ in where the
    critics are differentiated."""
    state = smooth_start()
    loss = qsm.actor_loss(policy(), CRITIC, gradient_scale=3.0, gradient_at=at)
    where = inputs() if at == "noisy" else ROW.action
    slope = np.zeros(where.shape)
    for i, j in np.ndindex(*where.shape[:2]):
        one = np.zeros(where.shape, np.float32)
        one[i, j] = 1e-2
        high, low = (
            CRITIC.apply(state.critic.params, ROW.obs, where + s * one).mean(0).sum()
            for s in (1, -1)
        )
        slope[i, j] = (high - low) / 2e-2
    expected = ((-0.4 - 3.0 * slope) ** 2).mean()
    found, grads = jax.jit(jax.value_and_grad(loss))(jnp.float32(0.4), state, ROW, KEY)
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    np.testing.assert_allclose(grads, 2 * (0.4 + 3.0 * slope).mean(), rtol=1e-2)


def test_noise_against_the_gradient_of_q_has_no_loss():
    """A policy that predicts -scale dQ/da has converged."""
    state = smooth_start()
    x = inputs()
    slope = value_gradient(
        lambda action: CRITIC.apply(state.critic.params, ROW.obs, action), x
    )
    loss = qsm.actor_loss(policy(), CRITIC, gradient_scale=3.0)
    assert loss(-3.0 * slope, state, ROW, KEY) < 1e-10 < loss(slope, state, ROW, KEY)
    assert not np.allclose(x, ROW.action)
