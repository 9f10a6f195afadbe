"""Checkpoints of the reference: round trips, and settings inferred from weights."""

import jax
import numpy as np
import pytest

from dppo_jax.interop import (
    ReferenceCheckpoint,
    infer_settings,
    load_reference_checkpoint,
    load_torch_file,
    save_reference_checkpoint,
    save_torch_file,
)
from dppo_jax.networks import (
    DiffusionMLP,
    GaussianMLP,
    GaussianTransformer,
    MixtureMLP,
    MixtureTransformer,
    StateCritic,
)
from dppo_jax.normalize import Normalizer
from dppo_jax.policies import PolicyParams
from tests import tiny

# To = 2 observations of 3 numbers, Ta = 4 actions of 2 numbers.
OBS = {"state": np.zeros((1, 2, 3), np.float32)}
BOUNDS = Normalizer(np.zeros(3), np.ones(3), np.zeros(2), np.ones(2))
SIZES = {"model.chunk": 4, "env.history": 2}


def checkpoint_of(network, stage="pretrain", critic=None, std_bounds=None):
    """Networks with random weights; after fine-tuning the two networks differ."""
    inputs = (OBS,)
    if isinstance(network, DiffusionMLP):
        inputs = (np.zeros((1, 4, 2)), np.zeros(1), OBS)
    base, tuned = (network.init(jax.random.key(i), *inputs) for i in (0, 1))
    params = PolicyParams(base, base if stage == "pretrain" else tuned)
    if critic is not None:
        critic = critic.init(jax.random.key(2), OBS)
    return ReferenceCheckpoint(stage, params, critic, std_bounds, 7)


SMALL = dict(embed_dim=8, num_heads=2, num_layers=2)


def denoiser(**settings):
    return DiffusionMLP(2, 4, **settings)


@pytest.mark.parametrize(
    "checkpoint",
    [
        checkpoint_of(denoiser(hidden_sizes=(5,))),
        checkpoint_of(denoiser(hidden_sizes=(5,)), "finetune"),
        checkpoint_of(denoiser(hidden_sizes=(5,)), "finetune", StateCritic((6, 7))),
        checkpoint_of(GaussianMLP(2, 4, (5,)), "finetune", None, (0.25, 0.5)),
        checkpoint_of(MixtureMLP(2, 4, 3, (5,)), std_bounds=(0.25, 0.5)),
        checkpoint_of(GaussianTransformer(2, 4, **SMALL), "finetune"),
    ],
    ids=[
        *("cloned", "without critic", "fine-tuned", "Gaussian", "mixture"),
        "transformer",
    ],
)
def test_a_round_trip_changes_nothing(tmp_path, checkpoint):
    save_reference_checkpoint(tmp_path / "a.pt", checkpoint)
    again = load_reference_checkpoint(tmp_path / "a.pt")
    assert tiny.same(again.params, checkpoint.params)
    assert again.stage == checkpoint.stage and again.iteration == 7
    assert (again.critic is None) == (checkpoint.critic is None)
    assert again.critic is None or tiny.same(again.critic, checkpoint.critic)
    if checkpoint.std_bounds is not None:
        assert again.std_bounds == pytest.approx(checkpoint.std_bounds)


def test_a_mixture_has_no_frozen_network(tmp_path):
    """The reference does not save any, and loads no names that it does not know."""
    checkpoint = checkpoint_of(MixtureMLP(2, 4, 3, (5,)), "finetune", StateCritic((5,)))
    save_reference_checkpoint(tmp_path / "a.pt", checkpoint)
    names = load_torch_file(tmp_path / "a.pt")["model"]
    tops = {name.split(".")[0] for name in names}
    assert tops == {"network", "actor_ft", "critic"}
    again = load_reference_checkpoint(tmp_path / "a.pt")
    assert again.stage == "finetune"
    assert tiny.same(again.params.tuned, checkpoint.params.tuned)
    assert tiny.same(again.params.base, checkpoint.params.tuned)


def test_keys_are_those_that_the_reference_saves(tmp_path):
    network, path = denoiser(hidden_sizes=(5,)), tmp_path / "a.pt"
    save_reference_checkpoint(path, checkpoint_of(network))
    cloned = load_torch_file(path)
    assert list(cloned) == ["epoch", "model", "ema"] and cloned["epoch"] == 7
    assert {name.split(".")[0] for name in cloned["ema"]} == {"network"}
    save_reference_checkpoint(
        path, checkpoint_of(network, "finetune", StateCritic((5,))), eta=1.0
    )
    tuned = load_torch_file(path)
    assert list(tuned) == ["itr", "model"] and tuned["itr"] == 7
    tops = {name.split(".")[0] for name in tuned["model"]}
    assert tops == {"network", "actor", "actor_ft", "critic", "eta"}
    name = "mlp_mean.moduleList.0.linear_1.weight"
    frozen, other = (tuned["model"][f"{top}.{name}"] for top in ("actor", "actor_ft"))
    assert frozen.shape == (5, 16 + 4 * 2 + 2 * 3) and (frozen != other).all()
    np.testing.assert_array_equal(tuned["model"][f"network.{name}"], frozen)


@pytest.mark.parametrize("eta, logit", [(1.0, np.inf), (0.55, 0.0), (0.1, -np.inf)])
def test_eta_is_kept_as_the_reference_keeps_it(tmp_path, eta, logit):
    """0.1 + 0.9 (tanh(logit) + 1) / 2"""
    checkpoint = checkpoint_of(denoiser(hidden_sizes=(5,)), "finetune")
    save_reference_checkpoint(tmp_path / "a.pt", checkpoint, eta=eta)
    stored = load_torch_file(tmp_path / "a.pt")["model"]["eta.eta_logit"]
    np.testing.assert_allclose(stored, [logit], atol=1e-6)
    with pytest.raises(ValueError, match="eta=0.0 lies outside"):
        save_reference_checkpoint(tmp_path / "a.pt", checkpoint, eta=0.0)


@pytest.mark.parametrize(
    "settings",
    [
        dict(hidden_sizes=(5, 6), residual=False, layer_norm=False),
        dict(hidden_sizes=(5,), residual=False, layer_norm=True),
        dict(hidden_sizes=(5, 5, 5, 5, 5), residual=True, layer_norm=True),
        dict(hidden_sizes=(5,), residual=True),
    ],
)
@pytest.mark.parametrize(
    "condition", [dict(condition_sizes=None), dict(condition_sizes=(9, 8), time_dim=4)]
)
def test_weights_show_the_architecture_of_a_denoiser(settings, condition):
    checkpoint = checkpoint_of(denoiser(**settings, **condition), critic=StateCritic())
    settings = {"kind": "mlp"} | settings
    settings = {f"model.network.{name}": value for name, value in settings.items()}
    condition = {"time_dim": 16} | condition
    condition = {f"model.network.{name}": value for name, value in condition.items()}
    critic = {"hidden_sizes": (256,) * 3, "residual": False, "layer_norm": False}
    critic = {f"critic.{name}": value for name, value in critic.items()}
    kind = {"model.kind": "diffusion", "model.network.kind": "mlp"}
    expected = SIZES | kind | settings | condition | critic
    assert infer_settings(checkpoint, BOUNDS) == expected


@pytest.mark.parametrize(
    "settings, told",
    [
        (dict(fixed_std=0.1), {}),
        (dict(fixed_std=0.1, learn_fixed_std=True), dict(std_min=0.25, std_max=0.5)),
        (dict(), dict(fixed_std=None, std_min=0.25, std_max=0.5)),
    ],
)
def test_weights_show_the_architecture_of_a_gaussian(settings, told):
    network = GaussianMLP(2, 4, (5, 6, 7), layer_norm=True, **settings)
    found = infer_settings(checkpoint_of(network, std_bounds=(0.25, 0.5)), BOUNDS)
    told = {"learn_fixed_std": settings.get("learn_fixed_std", False)} | told
    told = {f"model.gaussian.{name}": value for name, value in told.items()}
    trunk = {"hidden_sizes": (5, 6, 7), "residual": False, "layer_norm": True}
    trunk["kind"] = "mlp"
    trunk = {f"model.network.{name}": value for name, value in trunk.items()}
    assert found == SIZES | {"model.kind": "gaussian"} | told | trunk


KINDS_OF_STD = [
    (dict(fixed_std=0.1), {}),
    (dict(fixed_std=0.1, learn_fixed_std=True), dict(std_min=0.25, std_max=0.5)),
    (dict(), dict(fixed_std=None, std_min=0.25, std_max=0.5)),
]


@pytest.mark.parametrize("settings, told", KINDS_OF_STD)
@pytest.mark.parametrize("kind", [MixtureMLP, MixtureTransformer, GaussianTransformer])
def test_weights_tell_the_architecture_of_other_heads(kind, settings, told):
    name = "gaussian" if kind is GaussianTransformer else "gmm"
    if name == "gmm":
        settings = settings | dict(num_modes=3)
        told = told | dict(num_modes=3)
    if kind is MixtureMLP:
        trunk = dict(hidden_sizes=(6, 6, 6), residual=True, layer_norm=True)
        network = kind(2, 4, **trunk, **settings)
        trunk |= dict(kind="mlp")
    else:
        network = kind(2, 4, **SMALL, **settings)
        trunk = dict(kind="transformer", embed_dim=8, num_layers=2)
    found = infer_settings(checkpoint_of(network, std_bounds=(0.25, 0.5)), BOUNDS)
    told = {"learn_fixed_std": settings.get("learn_fixed_std", False)} | told
    told = {f"model.{name}.{key}": value for key, value in told.items()}
    trunk = {f"model.network.{key}": value for key, value in trunk.items()}
    assert found == SIZES | {"model.kind": name} | told | trunk


@pytest.mark.parametrize(
    "bounds, message",
    [
        (
            BOUNDS._replace(action_min=np.zeros(3)),
            "8 outputs, .* not a multiple of the 3",
        ),
        (BOUNDS._replace(obs_min=np.zeros(4)), "6 inputs, .* not a multiple of the 4"),
    ],
)
def test_bounds_of_other_sizes_are_refused(bounds, message):
    checkpoint = checkpoint_of(denoiser(hidden_sizes=(5,)))
    with pytest.raises(ValueError, match=f"{message}.*pass the --normalization"):
        infer_settings(checkpoint, bounds)


@pytest.mark.parametrize(
    "tree",
    [[], {}, {"model": {}}, {"epoch": 1, "ema": {}}, {"epoch": 1, "model": [1]}]
    + [{"itr": None, "model": {"network.logvar": np.zeros(1)}}]
    + [{"itr": 3, "model": {"network.logvar": 1}}],
)
def test_another_tree_is_not_a_checkpoint(tmp_path, tree):
    save_torch_file(tmp_path / "a.pt", tree)
    with pytest.raises(ValueError, match="a.pt is not a checkpoint of .*pass a state_"):
        load_reference_checkpoint(tmp_path / "a.pt")


def test_weights_that_are_unknown_or_missing_are_named(tmp_path):
    save_reference_checkpoint(tmp_path / "a.pt", checkpoint_of(denoiser()))
    tree = load_torch_file(tmp_path / "a.pt")
    other = {"network.backbone.weight": np.zeros((2, 2))}
    save_torch_file(tmp_path / "b.pt", {"epoch": 1, "ema": tree["ema"] | other})
    with pytest.raises(ValueError, match="b.pt: .*named network.backbone.weight"):
        load_reference_checkpoint(tmp_path / "b.pt")
    less = {k: v for k, v in tree["ema"].items() if "moduleList.1" not in k}
    save_torch_file(tmp_path / "c.pt", {"epoch": 1, "ema": less})
    with pytest.raises(ValueError, match="lacks the weights 'layer_"):
        infer_settings(load_reference_checkpoint(tmp_path / "c.pt"), BOUNDS)
