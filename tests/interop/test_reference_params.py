"""Parameter names of torch and of this project correspond one to one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.interop import (
    params_from_reference,
    params_to_reference,
    stack_critics,
)
from dppo_jax.networks import (
    DiffusionMLP,
    GaussianMLP,
    GaussianTransformer,
    MixtureMLP,
    MixtureTransformer,
    StateActionCritic,
    StateCritic,
)

OBS = {"state": jnp.zeros((1, 1, 3))}
LEAVES = ("weight", "bias")
DENOISER_INPUTS = (jnp.zeros((1, 4, 1)), jnp.zeros(1), OBS)
TRANSFORMER = dict(embed_dim=8, num_heads=2, num_layers=11)


@pytest.mark.parametrize(
    "network, inputs",
    [
        (DiffusionMLP(1, 4, hidden_sizes=(5,)), DENOISER_INPUTS),
        (DiffusionMLP(1, 4, hidden_sizes=(5,), residual=True), DENOISER_INPUTS),
        (
            DiffusionMLP(
                1,
                4,
                hidden_sizes=(5, 5, 5),
                condition_sizes=(6, 7),
                layer_norm=True,
                residual=True,
            ),
            DENOISER_INPUTS,
        ),
        (DiffusionMLP(1, 4, hidden_sizes=(5, 6), layer_norm=True), DENOISER_INPUTS),
        (GaussianMLP(1, 4, (5, 5), residual=True, layer_norm=True), (OBS,)),
        (GaussianMLP(1, 4, (5,), fixed_std=0.1, learn_fixed_std=True), (OBS,)),
        (StateCritic((5, 5)), (OBS,)),
        (MixtureMLP(1, 4, 3, (5,), layer_norm=True), (OBS,)),
        (MixtureMLP(1, 4, 3, (5,), residual=True, fixed_std=0.1), (OBS,)),
        (GaussianTransformer(1, 4, **TRANSFORMER), (OBS,)),
        (
            MixtureTransformer(
                1, 4, 3, fixed_std=0.1, learn_fixed_std=True, **TRANSFORMER
            ),
            (OBS,),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_round_trip_changes_nothing(network, inputs):
    params = network.init(jax.random.key(0), *inputs)
    weights = params_to_reference(params)
    assert len(weights) == len(jax.tree.leaves(params))
    again = params_from_reference(weights)
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize("num_critics", [1, 2, 3])
def test_members_of_an_ensemble_are_separate_networks(num_critics):
    """Two members are Q1 and Q2; three are a Q1 whose weights have a member axis."""
    critic = StateActionCritic((5,), layer_norm=True, num_critics=num_critics)
    params = critic.init(jax.random.key(0), OBS, jnp.zeros((1, 4, 1)))
    weights = params_to_reference(params)
    prefixes = {name.split(".")[0] for name in weights}
    assert prefixes == ({"Q1", "Q2"} if num_critics == 2 else {"Q1"})
    second = np.asarray(params["params"]["members"]["layer_1"]["linear"]["kernel"])[-1]
    name = f"Q{min(num_critics, 2) if num_critics < 3 else 1}"
    theirs = weights[f"{name}.moduleList.1.linear_1.weight"]
    np.testing.assert_array_equal(theirs[-1] if num_critics == 3 else theirs, second.T)
    again = params_from_reference(weights)
    if num_critics == 1:  # The names are those of V(s) as well.
        again = stack_critics([again])
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_names_and_layout_of_linear_weights():
    weight = np.arange(6.0).reshape(2, 3)  # two outputs, three inputs
    params = params_from_reference(
        {
            "actor.mlp_mean.moduleList.0.linear_1.weight": weight,
            "actor.mlp_mean.moduleList.0.linear_1.bias": np.ones(2),
            "actor.logvar_min": np.zeros(()),
            "critic.Q1.layers.0.weight": weight,
        },
        prefix="actor.",
    )
    linear = params["params"]["mean"]["layer_0"]["linear"]
    np.testing.assert_array_equal(linear["kernel"], weight.T)
    assert linear["kernel"].dtype == jnp.float32
    assert set(params["params"]) == {"mean"}


def test_names_of_a_transformer():
    """One of each kind; matrices are transposed, positions are not."""
    network = MixtureTransformer(1, 4, 3, embed_dim=8, num_heads=2, num_layers=2)
    params = network.init(jax.random.key(0), OBS)
    weights = params_to_reference(params)
    decoder, layer = "transformer.decoder.layers.1", params["params"]["transformer"]
    layer = layer["layer_1"]
    np.testing.assert_array_equal(
        weights[f"{decoder}.multihead_attn.in_proj_weight"],
        layer["cross_attention"]["in_kernel"].T,
    )
    assert weights[f"{decoder}.self_attn.in_proj_bias"].shape == (24,)
    assert weights[f"{decoder}.linear1.weight"].shape == (32, 8)
    assert weights[f"{decoder}.norm3.weight"].shape == (8,)
    assert weights["transformer.pos_emb"].shape == (1, 4, 8)
    assert weights["transformer.cond_pos_emb"].shape == (1, 1, 8)
    assert weights["modes_head.weight"].shape == (3, 4 * 8)
    masks = {"transformer.mask": np.zeros((4, 4)), "logvar_min": np.zeros(())}
    again = params_from_reference(weights | masks)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    with pytest.raises(ValueError, match="transformer.encoder.1.weight"):
        params_from_reference({"transformer.encoder.1.weight": np.zeros((2, 2))})


def test_a_single_critic_is_the_value_network():
    names = [
        f"{q}.moduleList.0.linear_1.{leaf}" for q in ("Q1", "Q2") for leaf in LEAVES
    ]
    both = {name: np.ones((1, 2) if "weight" in name else 1) for name in names}
    value = {name: array for name, array in both.items() if name.startswith("Q1")}
    assert set(params_from_reference(value)["params"]) == {"value"}
    assert "value" not in params_from_reference(both)["params"]
    assert set(params_to_reference(params_from_reference(value))) == set(value)


def test_unknown_names_are_listed_also_beside_critics():
    weights = {"mlp_mean.layers.0.weight": np.zeros((2, 2)), "encoder.weight": 0}
    with pytest.raises(ValueError, match="named encoder.weight;"):
        params_from_reference(weights)
    critics = {"Q1.layers.0.weight": np.zeros((2, 2)), "Q1.layers.0.bias": np.zeros(2)}
    critics |= {name.replace("Q1", "Q2"): array for name, array in critics.items()}
    with pytest.raises(ValueError, match="named encoder.weight;"):
        params_from_reference(critics | {"encoder.weight": np.zeros((2, 2))})
    with pytest.raises(ValueError, match="start with 'actor.'"):
        params_from_reference(weights, prefix="actor.")
    with pytest.raises(ValueError, match="parameters encoder/kernel"):
        params_to_reference({"params": {"encoder": {"kernel": np.zeros((2, 2))}}})


def test_a_weight_of_another_rank_is_refused():
    convolution = {"mlp_mean.moduleList.0.linear_1.weight": np.zeros((2, 2, 5))}
    with pytest.raises(ValueError, match=r"linear_1.weight has shape \(2, 2, 5\)"):
        params_from_reference(convolution)
