"""Image encoders under torch names and ours correspond one to one."""

import jax
import numpy as np
import pytest

from dppo_jax.interop import (
    ReferenceCheckpoint,
    infer_settings,
    load_reference_checkpoint,
    params_from_reference,
    params_to_reference,
    save_reference_checkpoint,
)
from dppo_jax.networks import DiffusionMLP, StateActionCritic, StateCritic, ViTEncoder
from dppo_jax.normalize import Normalizer
from dppo_jax.policies import PolicyParams
from tests import tiny

SIZES = dict(image_size=(16, 20), patch_size=4, embed_dim=8, num_heads=2, features=6)


def observation(encoder):
    height, width = encoder.image_size
    shape = (1, encoder.image_history, height, width, 3 * encoder.num_cameras)
    return {"state": np.zeros((1, 2, 3)), "rgb": np.zeros(shape, np.uint8)}


def denoiser(encoder, seed=0):
    """Parameters of a denoiser of Ta = 4 actions of 2 numbers."""
    network = DiffusionMLP(2, 4, hidden_sizes=(5,), encoder=encoder)
    x, time = np.zeros((1, 4, 2)), np.zeros(1)
    return tiny.random_params(network, x, time, observation(encoder), seed=seed)


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(num_cameras=2),
        dict(patch_norm=True, depth=2),
        dict(patch_layers=1, pooling="flat"),
        dict(image_history=2, pooling="flat"),
    ],
)
def test_a_round_trip_changes_nothing_and_tells_the_settings(tmp_path, options):
    encoder = ViTEncoder(**SIZES, **options)
    base, tuned = (denoiser(encoder, seed) for seed in (0, 1))
    weights = params_to_reference(base)
    assert len(weights) == len(jax.tree.leaves(base))
    assert tiny.same(params_from_reference(weights), base)
    critic = StateCritic((7,), encoder=encoder)
    critic = tiny.random_params(critic, observation(encoder))
    params = PolicyParams(base, tuned)
    checkpoint = ReferenceCheckpoint("finetune", params, critic, None, 7)
    save_reference_checkpoint(tmp_path / "a.pt", checkpoint)
    again = load_reference_checkpoint(tmp_path / "a.pt")
    assert tiny.same(again.params, params) and tiny.same(again.critic, critic)
    bounds = Normalizer(np.zeros(3), np.ones(3), np.zeros(2), np.ones(2))
    told = infer_settings(again, bounds)
    assert told["model.chunk"] == 4 and told["env.history"] == 2
    untold = ("num_heads", "image_size", "compute_dtype", "parent", "name")
    expected = {
        f"vit.{name}": getattr(encoder, name)
        for name in encoder.__dataclass_fields__
        if name not in untold
    }
    for section in ("model.network.encoder.", "critic.encoder."):
        found = {
            name.removeprefix(section): value
            for name, value in told.items()
            if name.startswith(section)
        }
        assert found == {"kind": "vit"} | expected


def test_names_and_layout_are_those_of_torch():
    weights = params_to_reference(denoiser(ViTEncoder(**SIZES)))
    encoder = denoiser(ViTEncoder(**SIZES))["params"]["encoder"]
    patches, layer = encoder["vit"]["patches"], encoder["vit"]["layer_0"]
    convolution = weights["backbone.vit.patch_embed.embed.0.weight"]
    assert convolution.shape == (8, 3, 4, 4)  # out, in, height, width
    kernel = np.asarray(patches["conv_1"]["kernel"])
    for out, channel, row, column in [(0, 0, 0, 0), (7, 2, 3, 1), (3, 1, 0, 2)]:
        expected = kernel[row, column, channel, out]
        assert convolution[out, channel, row, column] == expected
    np.testing.assert_array_equal(
        weights["backbone.vit.net.0.mha.qkv_proj.weight"],
        np.asarray(layer["qkv"]["kernel"]).T,
    )
    assert weights["backbone.vit.pos_embed"].shape == (1, 3 * 4, 8)
    assert weights["compress.weight"].shape == (1, 8, 6)
    assert weights["compress.input_proj.0.weight"].shape == (6, 12 + 2 * 3)


@pytest.mark.parametrize(
    "options, names",
    [
        (dict(patch_layers=1), {"backbone.vit.patch_embed.conv.weight"}),
        (
            dict(patch_norm=True),
            {f"backbone.vit.patch_embed.embed.{i}.weight" for i in (0, 1, 3)},
        ),
        (dict(num_cameras=2), {"compress1.weight", "compress2.input_proj.1.bias"}),
        (dict(pooling="flat"), {"compress.0.weight", "compress.1.bias"}),
    ],
)
def test_names_follow_the_settings(options, names):
    weights = params_to_reference(denoiser(ViTEncoder(**SIZES, **options)))
    assert names <= set(weights)


def test_encoders_that_the_reference_does_not_have_are_refused():
    with pytest.raises(ValueError, match="parameters encoder/camera_0/linear/bias, "):
        params_to_reference(denoiser(ViTEncoder(num_cameras=3, **SIZES)))
    encoder = ViTEncoder(**SIZES)
    critic = StateActionCritic((5,), encoder=encoder)
    params = tiny.random_params(critic, observation(encoder), np.zeros((1, 4, 2)))
    with pytest.raises(ValueError, match="No torch name for the parameters members/"):
        params_to_reference(params)
    value = StateCritic((5,), encoder=encoder)
    weights = params_to_reference(tiny.random_params(value, observation(encoder)))
    second = {f"Q2{k[2:]}": v for k, v in weights.items() if k.startswith("Q1")}
    with pytest.raises(ValueError, match="only V.s. has one"):
        params_from_reference(weights | second)


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("backbone.vit.patch_embed.embed.0.weight", (8, 48), "should have 4 axes"),
        ("backbone.vit.norm.weight", (8, 8), "should have 1 axes"),
        ("backbone.vit.pos_embed", (2, 12, 8), r"should be \[1, \., \.\]"),
    ],
)
def test_a_weight_of_another_rank_is_refused(name, shape, message):
    weights = params_to_reference(denoiser(ViTEncoder(**SIZES)))
    with pytest.raises(ValueError, match=f"{name} has shape.*{message}"):
        params_from_reference(weights | {name: np.zeros(shape)})


def test_weights_of_another_encoder_are_listed():
    weights = params_to_reference(denoiser(ViTEncoder(**SIZES)))
    with pytest.raises(ValueError, match="named backbone.resnet.weight; known"):
        params_from_reference(weights | {"backbone.resnet.weight": np.zeros((2, 2))})
