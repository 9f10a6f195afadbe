"""Convolutions as matrix products, and the patches that they make."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.networks.patches import Convolution, PatchEmbedding, windows
from tests import tiny

KEY = jax.random.key(0)


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    "size, stride, shape",
    [
        (8, 4, (16, 20, 3)),  # of the first layer of two
        (3, 2, (7, 5, 6)),  # of the second
        (3, 2, (8, 6, 2)),  # the last row and column are left out
        (4, 4, (10, 13, 3)),  # without overlap
        (5, 2, (9, 12, 1)),
        (2, 3, (8, 9, 2)),  # places between windows are skipped
    ],
)
def test_a_convolution_and_its_gradients_are_those_of_lax(size, stride, shape):
    x, module = normal(2, *shape), Convolution(4, size, stride)
    params = tiny.random_params(module, x)

    def convolve(params, x):
        inner = params["params"]
        out = jax.lax.conv_general_dilated(
            x,
            inner["kernel"],
            window_strides=(stride, stride),
            padding="VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return out + inner["bias"]

    weights = normal(*jax.eval_shape(convolve, params, x).shape, seed=2)

    def values_and_gradients(function):
        out, pull_back = jax.vjp(function, params, x)
        return out, *jax.tree.leaves(pull_back(weights))

    expected, found = (
        jax.jit(values_and_gradients, static_argnums=0)(function)
        for function in (convolve, module.apply)
    )
    for leaf, expected_leaf in zip(found, expected, strict=True):
        scale = np.abs(expected_leaf).max()
        np.testing.assert_allclose(leaf, expected_leaf, atol=1e-6 * scale, rtol=1e-5)


def test_windows_are_cut_out_where_the_stride_says():
    x = normal(2, 9, 7, 3)
    found = jax.jit(lambda x: windows(x, size=3, stride=2))(x)
    assert found.shape == (2, 4, 3, 27)
    np.testing.assert_array_equal(found[1, 2, 1], x[1, 4:7, 2:5].ravel())


def test_a_convolution_computes_in_its_type_and_keeps_float32_parameters():
    x, module = normal(2, 8, 8, 3), Convolution(4, 3, 2)
    params = tiny.random_params(module, x)
    exact = module.apply(params, x)
    rough = module.clone(compute_dtype="bfloat16").apply(params, x)
    assert rough.dtype == jnp.bfloat16
    assert 0 < np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()
    fresh = jax.eval_shape(module.clone(compute_dtype="bfloat16").init, KEY, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}


@functools.partial(jax.jit, static_argnums=0)
def apply(module, params, x):
    return module.apply(params, x)


def patch_embedding(**options):
    defaults = dict(layers=1, size=4, norm=False, embed_dim=5, compute_dtype="float32")
    return PatchEmbedding(**{**defaults, **options})


def test_one_layer_of_patches_is_a_linear_map_of_each_row_by_row():
    x, module = normal(2, 8, 12, 3), patch_embedding()
    params = tiny.random_params(module, x)
    kernel, bias = (params["params"]["conv_1"][name] for name in ("kernel", "bias"))
    patches = x.reshape(2, 2, 4, 3, 4, 3).swapaxes(2, 3).reshape(2, 6, -1)
    expected = patches @ kernel.reshape(-1, 5) + bias
    np.testing.assert_allclose(apply(module, params, x), expected, rtol=1e-4, atol=1e-5)


def test_convolutions_start_uniform_within_one_over_root_of_inputs():
    x = jnp.zeros((1, 16, 16, 6))
    module = patch_embedding(layers=2, embed_dim=64)
    params = jax.jit(module.init)(KEY, x)["params"]
    for name, inputs in (("conv_1", 4 * 4 * 6), ("conv_2", 3 * 3 * 64)):
        bound = 1 / np.sqrt(inputs)
        for values in params[name].values():
            assert np.abs(values).max() <= bound
            np.testing.assert_allclose(np.std(values), bound / np.sqrt(3), rtol=0.2)


def test_the_norm_of_patches_makes_their_contrast_and_brightness_irrelevant():
    """Every channel of every image is normalised by itself."""
    x, module = 20 * normal(2, 16, 16, 3), patch_embedding(layers=2, norm=True)
    params = tiny.random_params(module, x)
    scale = np.array([2.0, 3.0], np.float32)[:, None, None, None]
    found, other = (apply(module, params, y) for y in (x, scale * x + 9))
    np.testing.assert_allclose(other, found, rtol=1e-3, atol=1e-3)
    del params["params"]["norm_1"]
    plain = patch_embedding(layers=2)
    found, other = (apply(plain, params, y) for y in (x, scale * x + 9))
    assert np.abs(other - found).max() > 1
