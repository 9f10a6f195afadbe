"""A configuration makes a policy of any kind of network."""

import functools

import jax
import numpy as np
import pytest

from dppo_jax import policies
from dppo_jax.networks import build as networks
from dppo_jax.policies import make_policy
from dppo_jax.rollout import rollout
from experiments.defaults import default_config
from experiments.settings import override
from tests import tiny

KEY = jax.random.key(0)


def unet_model(**changes):
    """K = 4, K' = 2, and a U-Net of two levels for four actions."""
    model = policies.default_config()
    model.network = networks.default_config("unet")
    model.network.update(dim=4, kernel_size=3, num_groups=2, time_dim=4)
    model.chunk = 2 * tiny.CHUNK
    model.diffusion.num_denoising_steps = tiny.NUM_STEPS
    model.sampling.num_tuned_steps = tiny.NUM_TUNED
    model.update_from_flattened_dict(changes)
    return model


@pytest.fixture(scope="module")
def policy():
    return make_policy(unet_model(), action_dim=tiny.ACTION_DIM)


def test_the_first_actions_of_a_longer_chunk_are_executed(policy):
    env = tiny.point_env(4, lengths=(9,))
    params = jax.jit(policy.init)(KEY, tiny.OBS)
    _, transition, metrics = rollout(
        env,
        functools.partial(policy.act, params),
        tiny.start(env, KEY),
        jax.random.split(KEY, 4),
        3,
    )
    chunk = transition.extras.chain[:, :, -1]
    assert chunk.shape == (3, 4, 4, 1)
    np.testing.assert_array_equal(transition.action, chunk[:, :, : tiny.CHUNK])
    np.testing.assert_array_equal(metrics["steps"][:, 0], [2, 4, 6])


@pytest.mark.parametrize("kind", ["mlp", pytest.param("unet", marks=pytest.mark.slow)])
def test_ppo_tunes_a_policy_that_predicts_more_than_is_executed(kind):
    model = unet_model()
    if kind == "mlp":
        model.network = networks.default_config(kind)
        model.network.update(hidden_sizes=(8,), residual=False, time_dim=4)
    policy = make_policy(model, action_dim=tiny.ACTION_DIM)
    algorithm = tiny.make_tiny_ppo(policy)
    state, (row,) = tiny.run(algorithm, 1)
    assert np.isfinite([row[name] for name in algorithm.finite]).all()
    params = algorithm.params(state)
    for base, tuned in zip(jax.tree.leaves(params.base), jax.tree.leaves(params.tuned)):
        assert (base != tuned).any()


def test_a_chunk_that_cannot_be_halved_is_refused_by_name():
    model = unet_model(**{"chunk": 6, "network.dim_mults": (1, 2, 4)})
    with pytest.raises(ValueError, match="chunk=6 actions cannot be halved 2 times"):
        make_policy(model, action_dim=1)


@pytest.mark.parametrize(
    "steps, spacing, level",
    [
        (None, "leading", None),
        (1, "leading", "noise level of 0.09"),
        (5, "leading", None),
        (1, "trailing", None),
        (20, "leading", None),
    ],
)
def test_chains_that_start_without_enough_noise_are_warned_of(steps, spacing, level):
    model = policies.default_config()
    model.sampling.update(ddim_steps=steps, ddim_spacing=spacing)
    note = policies.sampling_note(model)
    assert (note is None) == (level is None)
    assert level is None or level in note


def test_the_advice_about_few_steps_is_a_setting_and_helps():
    model = policies.default_config()
    model.sampling.ddim_steps = 1
    config = default_config()
    config.model.sampling.ddim_steps = 1
    flag = policies.sampling_note(model).split()[-1]
    override(config, [flag.removeprefix("--config.")])
    assert policies.sampling_note(config.model) is None
