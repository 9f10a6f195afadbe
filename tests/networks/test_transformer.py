"""Laws of attention and of the transformer over the actions of a chunk."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.networks import GaussianTransformer
from dppo_jax.networks.transformer import Attention
from tests import tiny

KEY = jax.random.key(0)
B, T, S, E = 2, 3, 5, 8
OBS = {"state": jax.random.normal(KEY, (B, 2, 3))}
SMALL = dict(embed_dim=E, num_heads=2, num_layers=2)


def start(network, *inputs):
    return jax.jit(network.init)(KEY, *inputs)


@functools.partial(jax.jit, static_argnums=0)
def apply(network, params, *inputs):
    """Compiled once for all tests of equal networks."""
    return network.apply(params, *inputs)


def tokens(count, seed=1):
    draws = np.random.default_rng(seed).normal(size=(B, count, E))
    return draws.astype(np.float32)


def attention(num_heads=2, scale=20.0):
    """Weights large enough that tokens are told apart."""
    module = Attention(num_heads, 0.0, "float32")
    params = start(module, tokens(T))
    return module, jax.tree.map(lambda x: scale * np.asarray(x), params)


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_attention_is_a_mean_of_values_weighted_by_the_products_of_keys(num_heads):
    """Against sums over heads and tokens, one number after another."""
    module, params = attention(num_heads)
    x, memory = tokens(T), tokens(S, seed=2)
    output = apply(module, params, x, memory)
    weights = jax.tree.map(np.asarray, params["params"])
    x, memory = np.asarray(x), np.asarray(memory)
    kernels = np.split(weights["in_kernel"], 3, axis=1)
    query, key, value = x @ kernels[0], memory @ kernels[1], memory @ kernels[2]
    size = E // num_heads
    for b in range(B):
        for t in range(T):
            heads = []
            for h in range(num_heads):
                of_head = slice(h * size, (h + 1) * size)
                score = key[b, :, of_head] @ query[b, t, of_head] / np.sqrt(size)
                share = np.exp(score) / np.exp(score).sum()
                heads.append(share @ value[b, :, of_head])
            expected = np.concatenate(heads) @ weights["out"]["kernel"]
            np.testing.assert_allclose(output[b, t], expected, rtol=1e-3, atol=1e-4)


def test_attention_among_tokens_reads_the_tokens_themselves():
    module, params = attention()
    x = tokens(T)
    np.testing.assert_allclose(
        apply(module, params, x), apply(module, params, x, x), rtol=1e-4, atol=1e-5
    )


def test_what_a_mask_hides_has_no_influence():
    module, params = attention()
    x, memory = tokens(T), tokens(S, seed=2)
    mask = np.arange(S) < np.array([[5], [3], [1]])
    output = apply(module, params, x, memory, mask)
    changed = np.concatenate([memory[:, :3], memory[:, 3:] + 1], axis=1)
    other = apply(module, params, x, changed, mask)
    assert (output[:, 0] != other[:, 0]).any()
    np.testing.assert_array_equal(output[:, 1:], other[:, 1:])
    one = apply(module, params, x, memory[:, :1])
    np.testing.assert_allclose(output[:, 2], one[:, 2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_a_causal_action_knows_nothing_of_later_ones(causal):
    network = GaussianTransformer(2, 4, causal=causal, fixed_std=0.1, **SMALL)
    params = tiny.random_params(network, OBS)
    mean, _ = apply(network, params, OBS)
    inner = dict(params["params"]["transformer"])
    inner["position"] = inner["position"].copy()
    inner["position"][:, 2] += np.arange(E)
    changed, _ = apply(network, {"params": {"transformer": inner}}, OBS)
    assert (mean[:, 2:] != changed[:, 2:]).any(-1).all()
    assert (mean[:, :2] == changed[:, :2]).all() == causal


def test_every_action_depends_on_the_observation_and_on_its_position():
    network = GaussianTransformer(2, 4, fixed_std=0.1, **SMALL)
    params = tiny.random_params(network, OBS)
    mean, _ = apply(network, params, OBS)
    other, _ = apply(network, params, {"state": OBS["state"] + 1})
    assert (mean != other).any(-1).all()
    assert len({tuple(row) for row in np.asarray(mean[0])}) == 4


def test_weights_start_normal_and_biases_zero():
    network = GaussianTransformer(2, 4, embed_dim=128, num_heads=2, num_layers=1)
    params = start(network, OBS)["params"]["transformer"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path[-1].key
        if name.endswith("bias"):
            assert not leaf.any()
        elif name == "scale":
            assert (leaf == 1).all()
        elif leaf.size > 10_000:
            assert leaf.std() == pytest.approx(0.02, rel=0.05)
            assert abs(leaf.mean()) < 1e-3


def test_kinds_of_std():
    def std(**options):
        network = GaussianTransformer(2, 4, **SMALL | options)
        params = start(network, OBS)
        return network, apply(network, params, OBS), params

    _, (_, fixed), params = std(fixed_std=0.3)
    np.testing.assert_allclose(fixed, np.full((B, 4, 2), 0.3), rtol=1e-6)
    assert set(params["params"]) == {"transformer"}
    network, (_, learned), params = std(fixed_std=0.3, learn_fixed_std=True)
    np.testing.assert_allclose(learned, np.full((B, 4, 2), 0.3), rtol=1e-6)
    params["params"]["fixed_log_variance"] = 2 * jnp.log(jnp.array([0.2, 9.0]))
    _, learned = apply(network, params, OBS)
    np.testing.assert_allclose(learned[..., 0], 0.2, rtol=1e-5)
    np.testing.assert_allclose(learned[..., 1], 1.0)
    # Log-variances near zero are clamped, and beyond the bounds have no gradient.
    network, (_, predicted), params = std(std_max=2.0)
    assert 0.5 < predicted.min() < predicted.max() < 1.5
    low, (_, clamped), params = std(std_max=0.5)
    np.testing.assert_allclose(clamped, 0.5)
    gradient = jax.jit(jax.grad(lambda p: low.apply(p, OBS)[1].sum()))(params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_the_mean_is_squashed_unless_told_otherwise():
    squashed, free = (
        GaussianTransformer(2, 4, fixed_std=0.1, tanh_output=tanh, **SMALL)
        for tanh in (True, False)
    )
    params = jax.tree.map(lambda x: 5 * x, start(squashed, OBS))
    mean, _ = apply(free, params, OBS)
    assert jnp.abs(mean).max() > 1
    np.testing.assert_allclose(
        apply(squashed, params, OBS)[0], np.tanh(mean), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(num_heads=3), "embed_dim=8 must be a multiple of num_heads=3"),
        (dict(num_layers=0), "num_layers=0 must be at least 1"),
        (dict(attention_dropout=1.0), r"attention_dropout=1.0 must lie in \[0, 1\)"),
        (dict(embedding_dropout=-0.1), "embedding_dropout=-0.1"),
        (dict(learn_fixed_std=True), "learn_fixed_std=True"),
        (dict(activation="sine"), "activation='sine'"),
        (dict(compute_dtype="int8"), "compute_dtype='int8'"),
    ],
)
def test_settings_without_a_network_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GaussianTransformer(2, 4, **SMALL | options)


@pytest.mark.parametrize(
    "size, obs, action_dim, chunk, millions",
    [(96, 23, 7, 4, 0.675), (160, 23, 7, 4, 1.86), (160, 59, 14, 8, 1.87)],
)
def test_sizes_are_those_of_the_paper(size, obs, action_dim, chunk, millions):
    """Robomimic's Can, Square and Transport, tables A9 and A10 of arXiv 2409.00588."""
    network = GaussianTransformer(
        action_dim, chunk, embed_dim=size, num_heads=4, num_layers=4, fixed_std=0.1
    )
    obs = {"state": jnp.zeros((1, 1, obs))}
    shapes = jax.tree.leaves(jax.eval_shape(network.init, KEY, obs))
    assert sum(x.size for x in shapes) / 1e6 == pytest.approx(millions, abs=0.005)
