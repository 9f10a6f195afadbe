"""Laws of the image encoder.

Its numbers are those of the published code, see tests/test_reference.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.diffusion import denoising
from dppo_jax.networks import (
    DiffusionMLP,
    GaussianMLP,
    StateActionCritic,
    StateCritic,
    ViTEncoder,
)
from dppo_jax.networks.vision import (
    SpatialEmbedding,
    TransformerLayer,
    ViT,
    camera_images,
)
from dppo_jax.policies import diffusion_policy
from tests import tiny

KEY = jax.random.key(0)
SIZES = dict(image_size=(16, 20), patch_size=4, embed_dim=8, num_heads=2, features=6)
STATE = np.random.default_rng(0).normal(size=(3, 2, 5)).astype(np.float32)  # To = 2


def images(seed, frames=1, cameras=1, size=(16, 20)):
    shape = (3, frames, *size, 3 * cameras)  # B = 3
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def side_by_side(*cameras):
    return np.concatenate(cameras, axis=-1)


def observe(rgb):
    return {"state": STATE, "rgb": rgb}


@functools.partial(jax.jit, static_argnums=0)
def apply(module, params, *inputs):
    return module.apply(params, *inputs)


def normal(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def initialised(encoder, rgb):
    """Outputs and parameters of an encoder."""
    params = tiny.random_params(encoder, observe(rgb))
    return apply(encoder, params, observe(rgb)), params


@pytest.mark.parametrize("pooling", ["spatial", "flat"])
def test_features_are_those_of_each_camera_and_then_the_state(pooling):
    encoder = ViTEncoder(num_cameras=2, pooling=pooling, **SIZES)
    first, second = images(1), images(2)
    features, params = initialised(encoder, side_by_side(first, second))
    assert features.shape == (3, 2 * 6 + 2 * 5) and features.dtype == jnp.float32
    np.testing.assert_array_equal(features[:, 12:], STATE.reshape(3, 10))
    changed = apply(encoder, params, observe(side_by_side(first, second + 9)))
    np.testing.assert_allclose(changed[:, :6], features[:, :6], rtol=1e-5, atol=1e-6)
    assert np.abs(changed[:, 6:12] - features[:, 6:12]).max() > 1e-3


def test_cameras_share_a_transformer_and_have_embeddings_of_their_own():
    encoder = ViTEncoder(num_cameras=2, **SIZES)
    first, second = images(1), images(2)
    features, params = initialised(encoder, side_by_side(first, second))
    assert set(params["params"]) == {"vit", "camera_0", "camera_1"}
    crossed = {
        "vit": params["params"]["vit"],
        "camera_0": params["params"]["camera_1"],
        "camera_1": params["params"]["camera_0"],
    }
    swapped = observe(side_by_side(second, first))
    swapped = apply(encoder, {"params": crossed}, swapped)
    np.testing.assert_allclose(swapped[:, :6], features[:, 6:12], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(swapped[:, 6:12], features[:, :6], rtol=1e-4, atol=1e-5)
    alone = apply(
        ViTEncoder(**SIZES),
        {"params": {name: params["params"][name] for name in ("vit", "camera_0")}},
        observe(first),
    )
    np.testing.assert_allclose(alone[:, :6], features[:, :6], rtol=1e-4, atol=1e-5)


def test_only_the_most_recent_frames_are_read_and_all_of_them():
    encoder = ViTEncoder(image_history=2, **SIZES)
    rgb = images(1, frames=3)
    features, params = initialised(encoder, rgb)
    for frame in (0, 1, 2):
        other = rgb.copy()
        other[:, frame] += 9
        change = np.abs(apply(encoder, params, observe(other)) - features).max()
        assert change > 1e-3 if frame else change == 0
    recent = apply(encoder, params, observe(rgb[:, 1:]))
    np.testing.assert_allclose(recent, features, rtol=1e-5, atol=1e-6)


def test_channels_are_frames_of_one_camera_the_oldest_first():
    rgb = images(1, frames=3, cameras=2)
    found = camera_images(rgb, 2)
    assert found.shape == (2, 3, 16, 20, 6) and found.dtype == jnp.float32
    for camera in (0, 1):
        colors = rgb[..., 3 * camera : 3 * camera + 3].astype(np.float32) / 255
        colors -= np.float32(0.5)
        frames = np.moveaxis(colors[:, 1:], 1, -2).reshape(3, 16, 20, 6)
        np.testing.assert_allclose(found[camera], frames, atol=1e-6)


def test_bytes_and_floats_agree():
    encoder, rgb = ViTEncoder(**SIZES), images(1)
    features, params = initialised(encoder, rgb)
    as_floats = apply(encoder, params, observe(rgb.astype(np.float32)))
    np.testing.assert_allclose(as_floats, features, rtol=1e-6, atol=1e-6)


def test_jit_changes_nothing():
    encoder, rgb = ViTEncoder(patch_norm=True, **SIZES), images(1)
    features, params = initialised(encoder, rgb)
    plain = encoder.apply(params, observe(rgb))
    np.testing.assert_allclose(plain, features, rtol=1e-4, atol=1e-5)


def test_layers_in_bfloat16_are_near_those_in_float32():
    encoder, rgb = ViTEncoder(**SIZES), images(1)
    features, params = initialised(encoder, rgb)
    rough = apply(encoder.clone(compute_dtype="bfloat16"), params, observe(rgb))
    assert rough.dtype == jnp.float32
    worst = np.abs(rough - features).max()
    assert 0 < worst < 0.05 * np.abs(features[:, :6]).max()


@pytest.mark.parametrize(
    "size, layers, patch_size, num_patches",
    [
        ((96, 96), 1, 8, 12 * 12),
        ((96, 96), 2, 8, 11 * 11),  # 23 x 23 places of the first, every second of them
        ((96, 64), 2, 8, 11 * 7),
        ((84, 84), 2, 8, 9 * 9),
        ((20, 23), 1, 8, 2 * 2),  # what fills no patch is left out
        ((16, 16), 2, 8, 1),  # the smallest image
    ],
)
def test_the_number_of_patches(size, layers, patch_size, num_patches):
    encoder = ViTEncoder(image_size=size, patch_layers=layers, patch_size=patch_size)
    rgb = jax.ShapeDtypeStruct((1, 1, *size, 3), jnp.uint8)
    state = jax.ShapeDtypeStruct((1, 1, 4), jnp.float32)
    params = jax.eval_shape(encoder.init, KEY, {"state": state, "rgb": rgb})["params"]
    assert params["vit"]["position"].shape == (num_patches, 128)
    assert params["camera_0"]["linear"]["kernel"].shape == (num_patches + 4, 128)


def test_the_position_code_alone_tells_places_apart():
    """All patches of a grey image are equal."""
    vit = ViT(
        patch_layers=1,
        patch_size=4,
        patch_norm=False,
        depth=1,
        num_heads=2,
        embed_dim=8,
        compute_dtype="float32",
    )
    grey = np.full((1, 8, 12, 3), 0.25, np.float32)
    params = tiny.random_params(vit, grey)
    assert np.ptp(apply(vit, params, grey), axis=1).max() > 0.01
    params["params"]["position"] = np.zeros((6, 8), np.float32)
    assert np.ptp(apply(vit, params, grey), axis=1).max() < 1e-5


def test_a_transformer_layer_treats_all_places_alike():
    """Without a position code, other places of the patches are other places of the
    result; and a patch does attend to others."""
    layer = TransformerLayer(num_heads=2, compute_dtype="float32")
    x, order = normal(2, 5, 8), np.array([3, 0, 4, 1, 2])
    params = tiny.random_params(layer, x)
    found = apply(layer, params, x)
    moved = apply(layer, params, x[:, order])
    np.testing.assert_allclose(moved, found[:, order], rtol=1e-4, atol=1e-5)
    x[:, 0] += normal(8)
    changed = apply(layer, params, x)
    assert np.abs(changed[:, 1:] - found[:, 1:]).max() > 1e-3


def test_attention_without_preferences_is_the_mean_of_all_patches():
    """With queries of zero, x + mean(norm(x)) remains if values pass unchanged."""
    layer = TransformerLayer(num_heads=2, compute_dtype="float32")
    x = normal(2, 5, 4)
    params = jax.tree.map(np.zeros_like, tiny.random_params(layer, x))
    inner = params["params"]
    inner["norm_1"]["scale"] = np.ones(4, np.float32)
    inner["qkv"]["kernel"] = np.hstack(
        [np.zeros((4, 4)), np.ones((4, 4)), np.eye(4)]
    ).astype(np.float32)
    inner["output"]["kernel"] = np.eye(4, dtype=np.float32)
    mean, std = x.mean(-1, keepdims=True), x.std(-1, keepdims=True)
    normed = (x - mean) / np.sqrt(std**2 + 1e-5)
    expected = x + normed.mean(1, keepdims=True)
    np.testing.assert_allclose(apply(layer, params, x), expected, rtol=1e-4, atol=1e-5)


def test_a_spatial_embedding_weighs_the_entries_of_patches():
    """Entry by entry: relu(norm(linear(values at all places, state))), weighed."""
    patches, state = normal(2, 3, 4), normal(2, 5)
    module = SpatialEmbedding(6, "float32")
    params = tiny.random_params(module, patches, state)
    inner, expected = params["params"], 0
    for entry in range(4):
        seen = np.hstack([patches[:, :, entry], state])
        y = seen @ inner["linear"]["kernel"] + inner["linear"]["bias"]
        y = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-5)
        y = y * inner["norm"]["scale"] + inner["norm"]["bias"]
        expected = expected + inner["weight"][entry] * np.maximum(y, 0)
    found = apply(module, params, patches, state)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def primitives(jaxpr, in_loop=False):
    """(name of primitive, whether it is inside of a loop) of all equations."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        yield name, in_loop
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from primitives(inner, in_loop or name in ("scan", "while"))


@pytest.mark.parametrize("num_tuned", [2, 4])
def test_a_chain_encodes_its_observation_once(num_tuned):
    """Each of the two networks has its own encoder, which runs before the K steps and
    not in them."""
    network = DiffusionMLP(
        tiny.ACTION_DIM,
        tiny.CHUNK,
        time_dim=4,
        hidden_sizes=(8,),
        encoder=ViTEncoder(**SIZES),
    )
    policy = diffusion_policy(
        network,
        denoising.make_diffusion(num_denoising_steps=4),
        chunk=tiny.CHUNK,
        action_dim=tiny.ACTION_DIM,
        num_tuned_steps=num_tuned,
    )
    obs = observe(images(1))
    params = jax.eval_shape(policy.init, KEY, obs)

    def count(function, *args):
        """Products before loops, and inside of them."""
        found = list(primitives(jax.make_jaxpr(function)(*args).jaxpr))
        return [found.count(("dot_general", in_loop)) for in_loop in (False, True)]

    encode, denoise = (
        functools.partial(network.apply, method=name) for name in ("encode", "denoise")
    )
    condition = jax.eval_shape(encode, params.base, obs)
    x, time = np.zeros((3, tiny.CHUNK, tiny.ACTION_DIM)), np.zeros(1)
    encoding, _ = count(encode, params.base, obs)
    step, _ = count(denoise, params.base, x, time, condition)
    num_loops = 1 if num_tuned == 4 else 2
    found = count(policy.sample, params, jax.random.split(KEY, 3), obs)
    assert found == [2 * encoding, num_loops * step]


@pytest.mark.parametrize("action", [None, np.ones((3, 2, 1), np.float32)])
def test_heads_and_critics_read_images_as_well(action):
    encoder, obs = ViTEncoder(**SIZES), observe(images(1))
    networks = (
        [GaussianMLP(1, 2, (8,), fixed_std=0.1, encoder=encoder)]
        + [StateCritic((8,), encoder=encoder)]
        if action is None
        else [StateActionCritic((8,), encoder=encoder)]
    )
    inputs = (obs,) if action is None else (obs, action)
    for network in networks:
        params = tiny.random_params(network, *inputs)

        def first(params, obs, network=network):
            return jax.tree.leaves(apply(network, params, obs, *inputs[1:]))[0]

        changed = observe(images(2))
        assert np.abs(first(params, obs) - first(params, changed)).max() > 0
        gradient = jax.jit(jax.grad(lambda p: (first(p, obs) ** 2).sum()))(params)
        for leaf in jax.tree.leaves(gradient["params"]["encoder"]["vit"]["patches"]):
            assert np.abs(leaf).max() > 0


@pytest.mark.parametrize(
    "chunk, action_dim, state_dim, cameras, width, count",
    [
        (4, 7, 9, 1, 512, 1_064_956),  # Can, Square: 1.06 M in table A10
        (8, 14, 18, 2, 768, 2_048_720),  # Transport: 2.05 M
    ],
)
def test_sizes_are_those_of_the_paper(
    chunk, action_dim, state_dim, cameras, width, count
):
    network = DiffusionMLP(
        action_dim,
        chunk,
        time_dim=32,
        hidden_sizes=(width,) * 3,
        residual=True,
        encoder=ViTEncoder(num_cameras=cameras),
    )
    obs = {
        "state": jax.ShapeDtypeStruct((1, 1, state_dim), jnp.float32),
        "rgb": jax.ShapeDtypeStruct((1, 1, 96, 96, 3 * cameras), jnp.uint8),
    }
    x = jax.ShapeDtypeStruct((1, chunk, action_dim), jnp.float32)
    time = jax.ShapeDtypeStruct((1,), jnp.float32)
    params = jax.eval_shape(network.init, KEY, x, time, obs)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(num_heads=3), "num_heads=3 must divide embed_dim=8"),
        (dict(pooling="mean"), "pooling='mean' is unknown; use one of spatial, flat"),
        (dict(patch_layers=3), "patch_layers=3 must be 1 or 2"),
        (dict(patch_layers=1, patch_norm=True), "patch_norm=True.*patch_layers=1"),
        (dict(patch_size=5), "patch_size=5 must be even"),
        (
            dict(image_size=(16, 7)),
            r"image_size=\(16, 7\) must be .* at least 8 pixels",
        ),
        (dict(depth=0), "depth=0 must be at least 1"),
        (dict(num_cameras=0), "num_cameras=0 must be at least 1"),
        (dict(compute_dtype="half"), "compute_dtype='half'"),
    ],
)
def test_settings_without_an_encoder_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ViTEncoder(**{**SIZES, **changes})


@pytest.mark.parametrize(
    "obs, message",
    [
        ({"state": STATE}, r"the observation has \['state'\]"),
        ({"rgb": images(1)}, r"the observation has \['rgb'\]"),
        (observe(images(1, size=(16, 16))), r"shape \(3, 1, 16, 16, 3\).*16, 20, 3\]"),
        (observe(images(1, cameras=2)), "num_cameras=1"),
    ],
)
def test_observations_without_the_images_are_refused(obs, message):
    with pytest.raises(ValueError, match=message):
        ViTEncoder(**SIZES).init(KEY, obs)
    with pytest.raises(ValueError, match="at least 2, 16, 20, 3"):
        ViTEncoder(image_history=2, **SIZES).init(KEY, observe(images(1)))
