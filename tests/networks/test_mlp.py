"""Properties of the perceptrons; tests/test_reference.py compares their outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.networks import MLP, DiffusionMLP, ResidualMLP, SinusoidalEmbedding
from dppo_jax.networks.mlp import ACTIVATIONS, Linear, activation_function

KEY = jax.random.key(0)
OBS = {"state": jnp.arange(12.0).reshape(2, 2, 3)}
X, TIME = jnp.ones((2, 4, 1)), jnp.array([0, 7])


@pytest.mark.parametrize(
    "name, at_one",
    [
        ("ReLU", 1.0),
        ("ELU", 1.0),
        ("gelu", 0.841345),  # x times the normal distribution function
        ("TANH", 0.761594),
        ("Mish", 0.865098),  # x tanh(softplus(x))
        ("identity", 1.0),
        ("Softplus", 1.313262),
    ],
)
def test_activations_are_known_in_any_capitalisation(name, at_one):
    np.testing.assert_allclose(activation_function(name)(jnp.float32(1)), at_one, 1e-5)


def test_unknown_activation_lists_the_known_ones():
    with pytest.raises(ValueError, match="'swish'.*elu, gelu, identity, mish"):
        DiffusionMLP(1, 4, activation="swish")
    assert len(ACTIVATIONS) == 7


def test_layers_start_uniform_within_one_over_root_of_inputs():
    kernel, bias = jax.tree.leaves(
        Linear(400).init(KEY, jnp.zeros((1, 25))),
        is_leaf=lambda x: isinstance(x, jax.Array),
    )[::-1]
    for values in (kernel, bias):
        assert np.abs(values).max() <= 1 / 5
        np.testing.assert_allclose(np.std(values), 1 / 5 / np.sqrt(3), rtol=0.1)


def test_time_embedding_of_zero_is_sines_then_cosines():
    embedding = SinusoidalEmbedding(4).apply({}, jnp.array([0, 1]))
    np.testing.assert_allclose(embedding[0], [0, 0, 1, 1])
    expected = [np.sin(1), np.sin(1e-4), np.cos(1), np.cos(1e-4)]
    np.testing.assert_allclose(embedding[1], expected, rtol=1e-6)


@pytest.mark.parametrize("dim", [2, 5])
def test_time_embedding_refuses_sizes_without_frequencies(dim):
    with pytest.raises(ValueError, match=f"time_dim={dim}"):
        SinusoidalEmbedding(dim)


def test_residual_blocks_with_zero_weights_return_their_input():
    network = ResidualMLP(3, (8, 8, 8), layer_norm=True)
    x = jax.random.normal(KEY, (5, 2))
    params = network.init(KEY, x)
    params["params"]["block_1"]["linear_2"] = jax.tree.map(
        jnp.zeros_like, params["params"]["block_1"]["linear_2"]
    )
    plain = MLP(3, (8,), activation="identity")
    same = {"layer_0": "linear_0", "layer_1": "linear_2"}
    plain_params = {k: {"linear": params["params"][v]} for k, v in same.items()}
    np.testing.assert_allclose(
        network.apply(params, x),
        plain.apply({"params": plain_params}, x),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("sizes", [(8, 8), (8, 8, 8, 8), (8, 16, 8)])
def test_residual_networks_need_an_odd_number_of_equal_sizes(sizes):
    with pytest.raises(ValueError, match="1, 3, 5, ... equal sizes"):
        DiffusionMLP(1, 4, hidden_sizes=sizes, residual=True)


@pytest.mark.parametrize("option", ["hidden_sizes", "condition_sizes"])
@pytest.mark.parametrize(
    "sizes", [(), (8, 0), 8, "8", ("8",), (8, True), (8.5,), (8, None), {8: 8}]
)
def test_sizes_must_be_positive_integers(option, sizes):
    with pytest.raises(ValueError, match=f"{option}="):
        DiffusionMLP(1, 4, **{option: sizes})


@pytest.mark.parametrize(
    "options", [{}, {"residual": True}, {"condition_sizes": (5,), "layer_norm": True}]
)
def test_denoiser_keeps_the_shape_of_the_action_and_jit_changes_nothing(options):
    network = DiffusionMLP(1, 4, hidden_sizes=(8, 8, 8), **options)
    out, params = network.init_with_output(KEY, X, TIME, OBS)
    assert out.shape == X.shape
    jitted = jax.jit(network.apply)(params, X, TIME.astype(jnp.float32), OBS)
    np.testing.assert_allclose(jitted, out, rtol=1e-5, atol=1e-6)


def test_denoiser_treats_every_sample_on_its_own():
    network = DiffusionMLP(1, 4, hidden_sizes=(8,))
    out, params = network.init_with_output(KEY, X, TIME, OBS)
    second = {"state": OBS["state"][1:]}
    alone = network.apply(params, X[1:], TIME[1:], second)
    np.testing.assert_allclose(out[1:], alone, rtol=1e-5, atol=1e-6)


def test_denoiser_reads_the_time_and_the_whole_history():
    network = DiffusionMLP(1, 4, hidden_sizes=(8,))
    out, params = network.init_with_output(KEY, X, TIME, OBS)
    older = {"state": OBS["state"].at[:, 0].add(1.0)}
    assert np.abs(network.apply(params, X, TIME + 1, OBS) - out).min() > 0
    assert np.abs(network.apply(params, X, TIME, older) - out).min() > 0
