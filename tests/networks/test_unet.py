"""Laws of the U-Net; its numbers are held by tests/test_reference.py."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.networks import DiffusionUNet
from dppo_jax.networks.unet import ConditionalBlock, Conv, ConvBlock, FiLM, Upsample
from tests import tiny

KEY = jax.random.key(0)
OBS = {"state": jnp.linspace(-1, 1, 12).reshape(2, 2, 3)}
X, TIME = jax.random.normal(KEY, (2, 4, 1)), jnp.array([0.0, 7.0])
TINY = dict(action_dim=1, chunk=4, time_dim=4, dim=4, kernel_size=3, num_groups=2)
BLOCK = dict(
    features=4,
    kernel_size=3,
    num_groups=2,
    group_norm_eps=1e-5,
    predict_scale=True,
    larger_encoder=True,
    activation="mish",
    compute_dtype="float32",
)
CONV_BLOCK = {
    name: BLOCK[name]
    for name in BLOCK
    if name not in ("predict_scale", "larger_encoder")
}


def tiny_unet(**settings):
    return DiffusionUNet(**TINY | settings)


convolved = jax.jit(
    jax.lax.conv_general_dilated,
    static_argnames=("window_strides", "padding", "dimension_numbers"),
)


@functools.partial(jax.jit, static_argnums=0)
def apply(network, params, *inputs):
    """Compiled once for all tests of equal networks."""
    return network.apply(params, *inputs)


def drawn(network, x=X, time=TIME, obs=OBS):
    """The output of a network, and its parameters, drawn without compiling."""
    params = tiny.random_params(network, x, time, obs)
    return apply(network, params, x, time, obs), params


def size_of(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("size, stride", [(1, 1), (3, 1), (5, 1), (3, 2)])
@pytest.mark.parametrize("length", [1, 4, 5])
def test_a_convolution_is_that_of_jax(size, stride, length):
    x = jax.random.normal(KEY, (2, length, 3))
    params = tiny.random_params(Conv(5, size, stride), x)
    out = apply(Conv(5, size, stride), params, x)
    expected = convolved(
        x,
        params["params"]["kernel"],
        window_strides=(stride,),
        padding=((size // 2, size // 2),),
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
    assert out.shape == (2, -(-length // stride), 5)
    np.testing.assert_allclose(
        out, expected + params["params"]["bias"], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("length", [1, 4, 5])
def test_upsampling_is_the_adjoint_of_a_convolution_of_stride_2(length):
    """<upsample(x), y> = <x, conv(y)> with the same kernel, both without bias."""
    x, y = (
        jax.random.normal(key, (1, n, 3))
        for key, n in zip(jax.random.split(KEY), (length, 2 * length))
    )
    module = Upsample()
    params = tiny.random_params(module, x)
    params["params"]["bias"] *= 0
    # [4, outputs, inputs] of the one is [4, inputs, outputs] of the other.
    conv_of_y = convolved(
        y,
        params["params"]["kernel"],
        window_strides=(2,),
        padding=((1, 1),),
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
    up = apply(module, params, x)
    assert up.shape == y.shape
    np.testing.assert_allclose((up * y).sum(), (x * conv_of_y).sum(), rtol=1e-4)


@pytest.mark.parametrize(
    "module, inputs", [(Conv(50, 3), 3 * 20), (Upsample(), 4 * 20)]
)
def test_layers_start_uniform_within_one_over_root_of_inputs(module, inputs):
    params = jax.jit(module.init)(KEY, jnp.zeros((1, 2, 20)))["params"]
    for values in params.values():
        assert np.abs(values).max() <= 1 / np.sqrt(inputs)
    std = np.std(params["kernel"])
    np.testing.assert_allclose(std, 1 / np.sqrt(3 * inputs), rtol=0.1)


def test_an_impulse_reaches_as_far_as_half_a_kernel():
    block = ConvBlock(**CONV_BLOCK | dict(kernel_size=5, num_groups=None))
    x = jnp.zeros((1, 9, 1))
    params = tiny.random_params(block, x)
    out = apply(block, params, x)
    other = apply(block, params, x.at[0, 4].set(1.0))
    changed = (other != out).any((0, 2))
    np.testing.assert_array_equal(np.flatnonzero(changed), [2, 3, 4, 5, 6])


def test_group_normalisation_forgets_shift_and_scale_of_each_group():
    """Of the outputs of a convolution, over all places and the channels of a group."""
    block = ConvBlock(**CONV_BLOCK | dict(activation="identity"))
    x = jax.random.normal(KEY, (2, 6, 3))
    out, params = jax.jit(block.init_with_output)(KEY, x)
    groups = np.asarray(out).reshape(2, 6, 2, 2)
    np.testing.assert_allclose(groups.mean((1, 3)), 0.0, atol=1e-5)
    np.testing.assert_allclose(groups.std((1, 3)), 1.0, rtol=1e-3)
    scaled = jax.tree.map(lambda leaf: leaf, params)
    scaled["params"]["conv"] = jax.tree.map(lambda w: 7 * w, params["params"]["conv"])
    np.testing.assert_allclose(apply(block, scaled, x), out, rtol=1e-3, atol=1e-4)
    free = ConvBlock(**CONV_BLOCK | dict(activation="identity", num_groups=None))
    only = {"params": {"conv": params["params"]["conv"]}}
    seven = {"params": {"conv": scaled["params"]["conv"]}}
    np.testing.assert_allclose(
        apply(free, seven, x), 7 * apply(free, only, x), rtol=1e-5, atol=1e-6
    )


def test_a_large_epsilon_of_group_normalisation_shrinks_its_output():
    x = jax.random.normal(KEY, (2, 6, 3))
    small, large = (
        ConvBlock(**CONV_BLOCK | dict(activation="identity", group_norm_eps=epsilon))
        for epsilon in (1e-5, 1e4)
    )
    out, params = jax.jit(small.init_with_output)(KEY, x)
    assert np.abs(apply(large, params, x)).max() < 0.1 * np.abs(out).max()


@pytest.mark.parametrize("larger_encoder", [True, False])
@pytest.mark.parametrize("predict_scale", [True, False])
def test_film_scales_and_shifts_every_channel(predict_scale, larger_encoder):
    """With weights of zero the last bias is what it predicts, scales first."""
    film = FiLM(predict_scale, larger_encoder, "mish", "float32")
    x, condition = jnp.ones((1, 3, 2)), jnp.ones((1, 5))
    params = tiny.random_params(film, x, condition)
    last = "linear_3" if larger_encoder else "linear"
    bias = jnp.array([2.0, 3.0, 10.0, 20.0] if predict_scale else [10.0, 20.0])
    params["params"][last] = {
        "kernel": np.zeros_like(params["params"][last]["kernel"]),
        "bias": bias,
    }
    expected = [12.0, 23.0] if predict_scale else [11.0, 21.0]
    out = apply(film, params, x, condition)
    np.testing.assert_allclose(out, np.broadcast_to(expected, (1, 3, 2)))


@pytest.mark.parametrize("predict_scale", [True, False])
def test_encoders_of_film_have_one_layer_or_three(predict_scale):
    x, condition = jnp.ones((1, 3, 2)), jnp.ones((1, 5))
    outputs = 4 if predict_scale else 2
    one, three = (
        tiny.random_params(FiLM(predict_scale, larger, "mish", "float32"), x, condition)
        for larger in (False, True)
    )
    assert size_of(one) == 5 * outputs + outputs
    assert size_of(three) == size_of(one) + 2 * (outputs * outputs + outputs)


@pytest.mark.parametrize("num_groups", [2, None])
def test_a_block_whose_second_convolution_is_zero_passes_its_input_on(num_groups):
    block = ConditionalBlock(**BLOCK | dict(num_groups=num_groups))
    x, condition = jax.random.normal(KEY, (2, 6, 4)), jnp.ones((2, 5))
    params = jax.jit(block.init)(KEY, x, condition)
    assert "shortcut" not in params["params"]
    zero = jax.tree.map(np.zeros_like, params["params"]["block_2"]["conv"])
    params["params"]["block_2"]["conv"] = zero
    np.testing.assert_allclose(apply(block, params, x, condition), x, atol=1e-6)


OPTIONS = [
    {},
    dict(num_groups=None, predict_scale=False, activation="ReLU"),
    dict(larger_encoder=False, condition_sizes=(6, 5)),
    dict(dim_mults=(1, 2, 4), condition_sizes=(6, 6, 6, 3)),
    dict(dim_mults=(2,), kernel_size=1),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_output_is_like_the_action(options):
    out, _ = drawn(tiny_unet(**options))
    assert out.shape == X.shape and np.isfinite(out).all()


def test_jit_changes_nothing():
    network = tiny_unet(dim_mults=(1,), larger_encoder=False)
    out, params = drawn(network)
    eager = network.apply(params, X, TIME, OBS)
    np.testing.assert_allclose(eager, out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS[:3])
def test_every_sample_is_treated_on_its_own(options):
    network = tiny_unet(**options)
    out, params = drawn(network)
    second = {"state": OBS["state"][1:]}
    alone = apply(network, params, X[1:], TIME[1:], second)
    np.testing.assert_allclose(out[1:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS[:3])
def test_time_whole_history_and_every_action_reach_the_output(options):
    network = tiny_unet(**options)
    _, params = drawn(network)

    def output(x, time, state):
        return network.apply(params, x, time, {"state": state})

    jacobian = jax.jit(jax.jacobian(output, (0, 1, 2)))
    for gradient in jacobian(X, TIME, OBS["state"]):
        for row in range(2):  # [B, Ta, Da, B, ...]
            assert (gradient[row, :, :, row] != 0).any((0, 1)).all()


def test_the_condition_is_computed_before_the_first_step():
    network = tiny_unet(condition_sizes=(6, 5))
    whole, params = drawn(network)
    condition = network.apply(params, OBS, method="encode")
    assert condition.shape == (2, 5)
    denoise = jax.jit(functools.partial(network.apply, method="denoise"))
    halves = denoise(params, X, TIME, condition)
    np.testing.assert_allclose(halves, whole, rtol=1e-5, atol=1e-6)


class PixelEncoder(nn.Module):
    """The mean image, and one weight for it; a state is not read."""

    @nn.compact
    def __call__(self, obs):
        scale = self.param("scale", nn.initializers.constant(0.5), (1,))
        return scale * obs["rgb"].astype(jnp.float32).mean((1, 2, 3))


def test_another_encoder_reads_images():
    network = tiny_unet(encoder=PixelEncoder())
    obs = {"rgb": jnp.ones((2, 1, 4, 4, 3), jnp.uint8)}
    out, params = drawn(network, obs=obs)
    assert "encoder" in params["params"]
    brighter = apply(network, params, X, TIME, {"rgb": 2 * obs["rgb"]})
    assert (brighter != out).any()


def is_sine(equation):
    return equation.primitive.name == "sin"


def test_a_time_of_all_rows_is_embedded_once():
    network = tiny_unet()
    _, params = drawn(network)
    shared, time = jnp.full(1, 7.0), jnp.full(2, 7.0)
    np.testing.assert_allclose(
        apply(network, params, X, shared, OBS),
        apply(network, params, X, time, OBS),
        rtol=1e-5,
        atol=1e-6,
    )
    for time in (shared, time):
        equations = jax.make_jaxpr(network.apply)(params, X, time, OBS).jaxpr.eqns
        sines = [eqn.outvars[0].aval.shape for eqn in equations if is_sine(eqn)]
        assert sines == [(len(time), 2)]


def test_parameters_may_have_an_axis_of_seeds():
    network = tiny_unet()
    each = [tiny.random_params(network, X, TIME, OBS, seed=seed) for seed in range(2)]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    of_seeds = jax.jit(jax.vmap(network.apply, (0, None, None, None)))
    together = of_seeds(params, X, TIME, OBS)
    for params, out in zip(each, together):
        alone = apply(network, params, X, TIME, OBS)
        np.testing.assert_allclose(out, alone, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_for_hidden_layers_alone():
    network = tiny_unet(compute_dtype="bfloat16")
    out, params = drawn(network)
    exact = apply(tiny_unet(), params, X, TIME, OBS)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert out.dtype == jnp.float32
    assert 0 < np.abs(out - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            dict(chunk=6, dim_mults=(1, 2, 4)),
            "chunk=6 actions cannot be halved 2 times.*a multiple of 4 actions",
        ),
        (dict(chunk=3), "chunk=3 actions cannot be halved 1 times"),
        (dict(dim_mults=()), r"dim_mults=\(\) must be a non-empty"),
        (dict(dim_mults=(1, 0)), r"dim_mults=\(1, 0\) must be"),
        (dict(dim_mults=2), "dim_mults=2 must be"),
        (dict(dim=0), "dim=0 must be positive"),
        (dict(kernel_size=4), "kernel_size=4 must be odd"),
        (dict(kernel_size=-1), "kernel_size=-1 must be odd and positive"),
        (dict(num_groups=3), "num_groups=3 must divide the 4 channels"),
        (dict(num_groups=0), "num_groups=0 must divide"),
        (dict(num_out_groups=3), "num_out_groups=3 must divide the 4 channels"),
        (dict(group_norm_eps=0.0), "group_norm_eps=0.0 must be positive"),
        (dict(condition_sizes=(8,)), r"condition_sizes=\(8,\) do not suit"),
        (dict(condition_sizes=(8, 6, 4, 4)), "equal hidden sizes and the size of"),
        (dict(condition_sizes=(8, 8, 4)), "equal hidden sizes and the size of"),
        (dict(condition_sizes=()), r"condition_sizes=\(\)"),
        (dict(activation="swish"), "activation='swish'"),
        (dict(compute_dtype="float16"), "compute_dtype='float16'"),
    ],
)
def test_settings_without_a_network_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_unet(**settings)


def test_a_chunk_of_one_level_may_have_any_length():
    network = tiny_unet(chunk=3, dim_mults=(1,))
    out, _ = drawn(network, X[:, :3])
    assert out.shape == (2, 3, 1)


def test_the_last_block_may_have_other_groups():
    """With one group per channel a channel forgets the scale of its own convolution."""
    plain, other = tiny_unet(), tiny_unet(num_out_groups=4)
    out, params = drawn(plain, X)
    np.testing.assert_array_equal(drawn(tiny_unet(num_out_groups=2), X)[0], out)
    assert (apply(other, params, X, TIME, OBS) != out).any()
    conv = params["params"]["out_block"]["conv"]
    scale = np.array([2.0, 3.0, 4.0, 5.0], np.float32)
    scaled = jax.tree.map(lambda leaf: leaf, params)
    scaled["params"]["out_block"]["conv"] = {k: x * scale for k, x in conv.items()}
    found, wanted = (apply(other, x, X, TIME, OBS) for x in (scaled, params))
    np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=1e-3)
    assert np.abs(apply(plain, scaled, X, TIME, OBS) - out).max() > 1e-2
