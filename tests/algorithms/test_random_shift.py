"""Random shifts of images where a policy is trained: cloned, or fine-tuned by PPO."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.algorithms import clone
from dppo_jax.demonstrations.dataset import Episodes, windows
from dppo_jax.diffusion import denoising
from dppo_jax.envs.core import vectorize
from dppo_jax.envs.wrappers import chunk_actions, stack_observations, time_limit
from dppo_jax.learning.chain_losses import mean_log_prob
from dppo_jax.networks import DiffusionMLP, StateCritic
from dppo_jax.policies import PolicyParams, diffusion_policy
from tests import tiny

SIDE, MIDDLE = 9, 4
# Every pixel tells its row and column.
PICTURE = np.stack([*np.mgrid[:SIDE, :SIDE], np.zeros((SIDE, SIDE))], axis=-1).astype(
    np.uint8
)


class MiddleEncoder(nn.Module):
    """The pixel in the middle of the picture, and the state."""

    @nn.compact
    def __call__(self, obs):
        pixel = obs["rgb"][:, -1, MIDDLE, MIDDLE].astype(jnp.float32)
        return jnp.concatenate([pixel, obs["state"][:, -1]], axis=-1)


def image_env():
    """`tiny.point_task` that shows the picture besides."""
    plain, rgb = tiny.point_task((1, 2)), jnp.asarray(PICTURE)

    def reset(key):
        state = plain.reset(key)
        return state._replace(obs={**state.obs, "rgb": rgb})

    def step(state, action):
        state, outcome = plain.step(state, action)
        obs = {**outcome.obs, "rgb": rgb}
        return state._replace(obs=obs), outcome._replace(obs=obs)

    shape = {**plain.obs_shape, "rgb": rgb.shape}
    task = plain._replace(reset=reset, step=step, obs_shape=shape)
    env = stack_observations(time_limit(task, 8), 1)
    return vectorize(chunk_actions(env, tiny.CHUNK), 4)


def collect(random_shift):
    """The policy, and what the first half of an iteration of PPO hands to updates."""
    policy = diffusion_policy(
        DiffusionMLP(
            tiny.ACTION_DIM,
            tiny.CHUNK,
            time_dim=4,
            hidden_sizes=(8,),
            encoder=MiddleEncoder(),
        ),
        denoising.make_diffusion(num_denoising_steps=tiny.NUM_STEPS),
        chunk=tiny.CHUNK,
        action_dim=tiny.ACTION_DIM,
        num_tuned_steps=tiny.NUM_TUNED,
    )
    critic = StateCritic((8,), encoder=MiddleEncoder())
    algorithm = tiny.make_tiny_ppo(
        policy,
        image_env(),
        critic,
        random_shift=random_shift,
        minibatch="chain",
        chain_kl__coef=1.0,
    )
    state = algorithm.init(jax.random.key(0))
    _, steps, _ = jax.jit(algorithm.phases[0])(state)
    return policy, critic, state, steps


def test_ppo_learns_from_shifted_images_and_ratios_start_at_one():
    """Old log-probabilities, means and values are those of the images that updates
    see."""
    policy, critic, state, steps = collect(2)
    middles = np.asarray(steps.obs["rgb"][:, 0, MIDDLE, MIDDLE], np.int32)
    offsets = middles[:, :2] - MIDDLE
    assert np.abs(offsets).max() == 2 and len(np.unique(offsets, axis=0)) > 5
    tuned = state.params.tuned
    log_prob = mean_log_prob(policy.chain_log_prob(tuned, steps.chain, steps.obs))
    np.testing.assert_allclose(steps.log_prob, log_prob, rtol=1e-4, atol=1e-4)
    moments = policy.chain_moments(tuned, steps.chain, steps.obs)
    np.testing.assert_allclose(steps.moments.mean, moments.mean, rtol=1e-4, atol=1e-5)
    value = critic.apply(state.critic_params, steps.obs)
    np.testing.assert_allclose(steps.value, value, rtol=1e-4, atol=1e-5)
    # The roll-out saw the images as they are, so its log-probabilities differ.
    *_, still = collect(0)
    assert (still.obs["rgb"] == PICTURE).all()
    np.testing.assert_allclose(steps.chain, still.chain, rtol=1e-5, atol=1e-6)
    assert np.abs(steps.log_prob - still.log_prob).max() > 0.1


def cloned(random_shift):
    """The loss of one epoch of a policy that returns the row in the middle."""
    num = 40
    data = Episodes(
        observations={
            "state": np.zeros((num, 2), np.float32),
            "rgb": np.stack([PICTURE] * num),
        },
        actions=np.full((num, tiny.ACTION_DIM), 0.5, np.float32),
        episode_lengths=np.array([num]),
    )

    def init(key, obs):
        return PolicyParams(jnp.zeros(()), jnp.zeros(()))

    def clone_loss(params, keys, obs, action):
        row = obs["rgb"][:, 0, MIDDLE, MIDDLE, 0].astype(jnp.float32)
        return params * 0.0 + (row - MIDDLE) ** 2

    policy = tiny.tiny_gaussian_policy()._replace(init=init, clone_loss=clone_loss)
    config = clone.default_config()
    config.update(batch_size=39, warmup_epochs=0, random_shift=random_shift)
    dataset = windows(data, chunk=tiny.CHUNK)
    _, (row,) = tiny.run(clone.make_pretrain(policy, dataset, config), 1)
    return row["loss"]


def test_cloning_sees_shifted_images():
    """The variance of a uniform shift by -2 ... 2 is 2."""
    assert cloned(0) == 0
    assert cloned(2) == pytest.approx(2, abs=1)


def test_shifts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"random_shift=2 shifts images.*\['state'\]"):
        algorithm = tiny.make_tiny_ppo(random_shift=2)
        jax.eval_shape(
            algorithm.step, jax.eval_shape(algorithm.init, jax.random.key(0))
        )
    with pytest.raises(ValueError, match="random_shift=-1 must not be negative"):
        tiny.make_tiny_ppo(random_shift=-1)
