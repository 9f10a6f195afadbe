"""U-Nets of the reference: names and layout of weights, and what they tell."""

import jax
import jax.numpy as jnp
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
from dppo_jax.networks import DiffusionUNet
from dppo_jax.normalize import Normalizer
from dppo_jax.policies import PolicyParams
from tests import tiny

# To = 2 observations of 3 numbers, Ta = 4 actions of 2 numbers.
INPUTS = jnp.zeros((1, 4, 2)), jnp.zeros(1), {"state": jnp.zeros((1, 2, 3))}
BOUNDS = Normalizer(np.zeros(3), np.ones(3), np.zeros(2), np.ones(2))
VARIANTS = [
    dict(),
    dict(predict_scale=False, num_groups=None),
    dict(larger_encoder=False, dim_mults=(1, 3, 2), time_dim=6),
    dict(larger_encoder=False, condition_sizes=(6, 6, 6, 5), kernel_size=5),
    dict(dim_mults=(1,), predict_scale=False),
]


def unet(seed=0, **settings):
    """A small network and its parameters."""
    sizes = dict(time_dim=4, dim=4, kernel_size=3, num_groups=2) | settings
    network = DiffusionUNet(2, 4, **sizes)
    return network, tiny.random_params(network, *INPUTS, seed=seed)


def checkpoint_of(stage="pretrain", **settings):
    base, tuned = (unet(seed, **settings)[1] for seed in (0, 1))
    params = PolicyParams(base, base if stage == "pretrain" else tuned)
    return ReferenceCheckpoint(stage, params, None, None, 7)


@pytest.mark.parametrize("settings", VARIANTS)
def test_a_round_trip_changes_nothing(settings):
    _, params = unet(**settings)
    weights = params_to_reference(params)
    assert len(weights) == len(jax.tree.leaves(params))
    again = params_from_reference(weights)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_names_and_layout_of_convolutions():
    """[out, in, size], and [in, out, size] where the length doubles."""
    _, params = unet()
    weights = params_to_reference(params)
    assert weights["down_modules.0.0.blocks.0.block.0.weight"].shape == (4, 2, 3)
    assert weights["down_modules.1.0.residual_conv.weight"].shape == (8, 4, 1)
    assert weights["down_modules.0.2.conv.weight"].shape == (4, 4, 3)
    assert weights["mid_modules.1.cond_encoder.4.bias"].shape == (16,)
    assert weights["up_modules.0.0.blocks.1.block.2.weight"].shape == (4,)
    assert weights["final_conv.1.weight"].shape == (2, 4, 1)
    assert weights["time_mlp.1.weight"].shape == (16, 4)
    up = params["params"]["upsample_0"]["kernel"]  # [size, out, in]
    theirs = weights["up_modules.0.2.conv.weight"]
    np.testing.assert_array_equal(theirs[1, 3], up[:, 3, 1])


def test_a_weight_of_another_rank_is_refused():
    weights = params_to_reference(unet()[1])
    name = "down_modules.0.0.blocks.0.block.0.weight"
    wrong = weights | {name: weights[name][:, :, 0]}
    message = r"block.0.weight has shape \(4, 2\), .* suit a convolutional layer"
    with pytest.raises(ValueError, match=message):
        params_from_reference(wrong)


def test_layers_that_no_unet_has_are_named():
    weights = params_to_reference(unet()[1])
    other = {"down_modules.0.3.conv.weight": np.zeros((4, 4, 3))}
    with pytest.raises(ValueError, match="named down_modules.0.3.conv.weight; known"):
        params_from_reference(weights | other)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_checkpoints_come_back_unchanged(tmp_path, stage):
    checkpoint = checkpoint_of(stage)
    save_reference_checkpoint(tmp_path / "a.pt", checkpoint)
    again = load_reference_checkpoint(tmp_path / "a.pt")
    assert tiny.same(again.params, checkpoint.params)
    assert again.stage == stage


@pytest.mark.parametrize("settings", VARIANTS)
def test_weights_tell_the_architecture_but_not_the_number_of_actions(settings):
    network, _ = unet(**settings)
    names = ("dim", "dim_mults", "kernel_size", "predict_scale", "larger_encoder")
    told = {
        f"model.network.{name}": getattr(network, name)
        for name in (*names, "time_dim", "condition_sizes")
    }
    kind = {"model.kind": "diffusion", "model.network.kind": "unet"}
    found = infer_settings(checkpoint_of(**settings), BOUNDS)
    assert found == told | kind | {"env.history": 2}


@pytest.mark.parametrize(
    "bounds, message",
    [
        (BOUNDS._replace(action_min=np.zeros(3)), "actions of 2 numbers, .* of 3;"),
        (BOUNDS._replace(obs_min=np.zeros(4)), "6 inputs, .* multiple of the 4"),
    ],
)
def test_bounds_of_other_sizes_are_refused(bounds, message):
    with pytest.raises(ValueError, match=f"{message}.*pass the --normalization"):
        infer_settings(checkpoint_of(), bounds)


def test_a_missing_layer_is_named():
    checkpoint = checkpoint_of()
    del checkpoint.params.base["params"]["out_block"]
    with pytest.raises(ValueError, match="lacks the weights 'out_block'"):
        infer_settings(checkpoint, BOUNDS)
