"""Properties of encoders, and of networks that read through one."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.networks import (
    DiffusionMLP,
    GaussianMLP,
    StateActionCritic,
    StateCritic,
    StateEncoder,
)
from tests import tiny

KEY = jax.random.key(0)
OBS = {"state": jnp.arange(12.0).reshape(2, 2, 3)}
X = jnp.ones((2, 4, 1))


class PixelEncoder(nn.Module):
    """Encodes the mean of the image times one weight; ignores the state."""

    @nn.compact
    def __call__(self, obs):
        scale = self.param("scale", nn.initializers.constant(0.5), (1,))
        return scale * obs["rgb"].astype(jnp.float32).mean((1, 2, 3))


NETWORKS = {
    "denoiser": (DiffusionMLP, dict(action_dim=1, chunk=4), (X, jnp.zeros(2))),
    "conditioned denoiser": (
        DiffusionMLP,
        dict(action_dim=1, chunk=4, condition_sizes=(5,)),
        (X, jnp.zeros(2)),
    ),
    "fixed Gaussian": (GaussianMLP, dict(action_dim=1, chunk=4, fixed_std=0.1), ()),
    "Gaussian": (GaussianMLP, dict(action_dim=1, chunk=4, hidden_sizes=(8, 8)), ()),
    "V": (StateCritic, {}, ()),
}


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def apply(network, params, *inputs, method=None):
    """Compiled once for all tests of equal networks."""
    return network.apply(params, *inputs, method=method)


def make(name, **options):
    network, settings, inputs = NETWORKS[name]
    return network(**{"hidden_sizes": (8,), **settings, **options}), inputs


def test_a_state_is_its_features_with_the_most_recent_entry_last():
    features, params = StateEncoder().init_with_output(KEY, OBS)
    np.testing.assert_array_equal(features[0], [0, 1, 2, 3, 4, 5])
    assert features.shape == (2, 6) and not params


def test_a_state_encoder_reads_the_state_alone():
    obs = {**OBS, "rgb": jnp.zeros((2, 1, 4, 4, 3), jnp.uint8)}
    features = StateEncoder().apply({}, obs)
    np.testing.assert_array_equal(features, StateEncoder().apply({}, OBS))
    with pytest.raises(ValueError, match=r"the observation has \['rgb'\]"):
        StateEncoder().apply({}, {"rgb": obs["rgb"]})


@pytest.mark.parametrize("name", NETWORKS)
def test_the_default_encoder_reads_states_and_has_no_parameters(name):
    network, inputs = make(name)
    explicit, _ = make(name, encoder=StateEncoder())
    params = tiny.random_params(network, *inputs, OBS)
    assert "encoder" not in params["params"]
    same = apply(explicit, params, *inputs, OBS)
    jax.tree.map(
        np.testing.assert_array_equal, apply(network, params, *inputs, OBS), same
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_reads_and_trains_through_its_encoder(name):
    network, inputs = make(name, encoder=PixelEncoder())
    dark, bright = (
        {"rgb": np.full((2, 1, 4, 4, 3), shade, np.uint8)} for shade in (0, 2)
    )
    params = tiny.random_params(network, *inputs, dark)
    params["params"]["encoder"]["scale"] = np.full(1, 0.5, np.float32)

    def first(params, obs):
        return jax.tree.leaves(apply(network, params, *inputs, obs))[0]

    # A brightness of 2 at a scale of 0.5 is one of 1 at a scale of 1.
    middle = {"rgb": np.asarray(dark["rgb"]) + 1}
    doubled = jax.tree.map(lambda x: x, params)
    doubled["params"]["encoder"]["scale"] = jnp.ones(1)
    np.testing.assert_allclose(first(params, bright), first(doubled, middle), rtol=1e-6)
    assert np.abs(first(params, bright) - first(params, dark)).min() > 0
    gradient = jax.jit(jax.grad(lambda p: (first(p, bright) ** 2).sum()))(params)
    assert gradient["params"]["encoder"]["scale"] != 0


def test_the_parameters_of_a_q_network_do_not_depend_on_a_state_encoder():
    critic = StateActionCritic((8,))
    params = jax.eval_shape(critic.init, KEY, OBS, X)
    assert "encoder" not in params["params"]
    pixels = StateActionCritic((8,), encoder=PixelEncoder())
    obs = {"rgb": jnp.ones((2, 1, 4, 4, 3), jnp.uint8)}
    assert "encoder" in jax.eval_shape(pixels.init, KEY, obs, X)["params"]


@pytest.mark.parametrize("name", ["denoiser", "conditioned denoiser"])
def test_a_denoiser_encodes_before_the_first_step(name):
    """Only `encode` reads the observation: `denoise` works on its result."""
    network, (x, time) = make(name, encoder=PixelEncoder())
    obs = {"rgb": jnp.ones((2, 1, 4, 4, 3), jnp.uint8)}
    params = tiny.random_params(network, x, time, obs)
    whole = apply(network, params, x, time, obs)
    condition = apply(network, params, obs, method="encode")
    assert condition.shape == (2, 3 if name == "denoiser" else 5)
    halves = apply(network, params, x, time, condition, method="denoise")
    np.testing.assert_allclose(halves, whole, rtol=1e-5, atol=1e-6)
