"""Random shifts of images where a policy is trained: cloned, or fine-tuned by PPO."""

import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.algorithms import clone
from dppo_jax.demonstrations.dataset import Episodes, windows
from dppo_jax.diffusion import denoising
from dppo_jax.envs.core import vectorize
from dppo_jax.envs.wrappers import chunk_actions, stack_observations, time_limit
from dppo_jax.networks import DiffusionMLP, GaussianMLP, StateCritic, ViTEncoder
from dppo_jax.policies import diffusion_policy, gaussian_policy
from tests import tiny

SIDE = 8
ENCODER = ViTEncoder(
    image_size=(SIDE, SIDE), patch_size=2, embed_dim=4, num_heads=1, features=4
)
# Shifts change the first picture, but not the second.
PICTURES = {
    "textured": np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8),
    "uniform": np.full((SIDE, SIDE, 3), 77, np.uint8),
}


def env_with(picture):
    """`tiny.point_task` that shows the picture besides."""
    task, rgb = tiny.point_task((1, 2)), jnp.asarray(PICTURES[picture])

    def reset(key):
        state = task.reset(key)
        return state._replace(obs={**state.obs, "rgb": rgb})

    def step(state, action):
        state, outcome = task.step(state, action)
        obs = {**outcome.obs, "rgb": rgb}
        return state._replace(obs=obs), outcome._replace(obs=obs)

    shape = {**task.obs_shape, "rgb": rgb.shape}
    task = task._replace(reset=reset, step=step, obs_shape=shape)
    env = stack_observations(time_limit(task, 8), 1)
    return vectorize(chunk_actions(env, tiny.CHUNK), 4)


def iteration(picture, random_shift):
    """The metrics of one iteration of PPO, whose updates hardly move anything."""
    network = DiffusionMLP(
        tiny.ACTION_DIM, tiny.CHUNK, time_dim=4, hidden_sizes=(8,), encoder=ENCODER
    )
    policy = diffusion_policy(
        network,
        denoising.make_diffusion(num_denoising_steps=tiny.NUM_STEPS),
        chunk=tiny.CHUNK,
        action_dim=tiny.ACTION_DIM,
        num_tuned_steps=tiny.NUM_TUNED,
    )
    rates = {
        f"{owner}__{name}": 1e-9
        for owner in ("actor", "critic")
        for name in ("learning_rate", "min_learning_rate")
    }
    algorithm = tiny.make_tiny_ppo(
        policy,
        env_with(picture),
        StateCritic((8,), encoder=ENCODER),
        random_shift=random_shift,
        epochs=1,
        **rates,
    )
    _, (row,) = tiny.run(algorithm, 1)
    return row


def test_ppo_learns_from_shifted_images_and_ratios_start_at_one():
    still, shifted = (iteration("textured", shift) for shift in (0, 2))
    for row in (still, shifted):
        assert abs(row["approx_kl"]) < 1e-6 and row["clip_fraction"] == 0
    assert shifted["value_loss"] != pytest.approx(still["value_loss"], rel=1e-3)
    # The roll-out saw the same images.
    assert shifted["reward"] == still["reward"]


def test_ppo_does_not_notice_shifts_that_change_nothing():
    still, shifted = (iteration("uniform", shift) for shift in (0, 2))
    assert shifted == pytest.approx(still, rel=1e-3, abs=1e-6)


def cloned(picture, random_shift):
    """The loss of one epoch of a Gaussian policy, which draws nothing else."""
    num = 6
    data = Episodes(
        observations={
            "state": np.zeros((num, 2), np.float32),
            "rgb": np.stack([PICTURES[picture]] * num),
        },
        actions=np.full((num, tiny.ACTION_DIM), 0.5, np.float32),
        episode_lengths=np.array([num]),
    )
    network = GaussianMLP(
        tiny.ACTION_DIM, tiny.CHUNK, (8,), fixed_std=0.2, encoder=ENCODER
    )
    config = clone.default_config()
    config.update(batch_size=5, warmup_epochs=0, random_shift=random_shift)
    algorithm = clone.make_pretrain(
        gaussian_policy(network), windows(data, chunk=tiny.CHUNK), config
    )
    _, (row,) = tiny.run(algorithm, 1)
    return row["loss"]


def test_cloning_sees_shifted_images():
    assert cloned("textured", 2) != pytest.approx(cloned("textured", 0), rel=1e-5)
    assert cloned("uniform", 2) == pytest.approx(cloned("uniform", 0), rel=1e-6)


def test_a_policy_of_states_cannot_be_trained_on_shifted_images():
    with pytest.raises(ValueError, match=r"random_shift=2 shifts images.*\['state'\]"):
        tiny.run(tiny.make_tiny_ppo(random_shift=2), 1)
    with pytest.raises(ValueError, match="random_shift=-1 must not be negative"):
        tiny.make_tiny_ppo(random_shift=-1)
