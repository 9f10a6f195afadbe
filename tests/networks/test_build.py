"""Networks made from configurations, from this package or from a user's file."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.errors import SettingsError
from dppo_jax.networks import (
    DiffusionMLP,
    DiffusionUNet,
    GaussianMLP,
    GaussianTransformer,
    MixtureMLP,
    MixtureTransformer,
    StateEncoder,
    build,
)
from dppo_jax.networks.build import check_outputs, default_config, make_network
from tests import tiny

KEY = jax.random.key(0)
SIZES = dict(action_dim=tiny.ACTION_DIM, chunk=tiny.CHUNK)
HEAD = dict(fixed_std=0.2, tanh_output=False)
OBS = tiny.OBS  # B = 3

SOURCE = '''
import flax.linen as nn
import jax.numpy as jnp
from dppo_jax.networks import GaussianMLP


class Scale(nn.Module):
    """x / (1 + time), scaled by one weight and shifted by the observation."""

    width: float
    chunk: int = 0

    def setup(self):
        self.weight = self.param("weight", nn.initializers.constant(self.width), ())

    def __call__(self, x, time, obs):
        return self.denoise(x, time, self.encode(obs))

    def encode(self, obs):
        return obs["state"].mean((1, 2))

    def denoise(self, x, time, condition):
        x = self.weight * x / (1 + time[:, None, None])
        return x + condition[:, None, None]


class Flat(Scale):
    def denoise(self, x, time, condition):
        return super().denoise(x, time, condition).reshape(x.shape[0], -1)


class OfRows(Scale):
    def denoise(self, x, time, condition):
        return super().denoise(x, time.reshape(len(x)), condition)


class Rounded(Scale):
    def denoise(self, x, time, condition):
        return super().denoise(x, time, condition).round().astype(int)


class Whole(nn.Module):
    def __call__(self, x, time, obs):
        return x


def make_network(*, chunk, width=1.0):
    return Scale(width, chunk)


def make_flat():
    return Flat(1.0)


def make_of_rows():
    return OfRows(1.0)


def make_rounded():
    return Rounded(1.0)


def make_whole():
    return Whole()


def make_gaussian(*, role, action_dim, chunk, fixed_std, hidden_sizes):
    assert role == "gaussian"
    return GaussianMLP(action_dim, chunk, hidden_sizes, fixed_std=fixed_std)


def make_three():
    return 3
'''


@pytest.fixture
def file(tmp_path, monkeypatch):
    """`own.py` in the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(SOURCE)
    return "own.py"


def test_a_denoising_perceptron_gets_every_setting():
    config = default_config()
    config.update(hidden_sizes=(8, 8), residual=False, layer_norm=True, time_dim=4)
    config.update(activation="elu", compute_dtype="bfloat16", condition_sizes=(5,))
    assert make_network(config, role="denoiser", **SIZES, head=HEAD) == DiffusionMLP(
        action_dim=1,
        chunk=2,
        time_dim=4,
        hidden_sizes=(8, 8),
        condition_sizes=(5,),
        activation="elu",
        layer_norm=True,
        residual=False,
        compute_dtype="bfloat16",
    )


def test_a_unet_gets_every_setting():
    config = default_config("unet")
    config.update(dim=6, dim_mults=(1, 2), kernel_size=3, num_groups=None)
    config.update(group_norm_eps=1e-4, predict_scale=False, larger_encoder=False)
    config.update(activation="elu", time_dim=4, condition_sizes=(5, 4))
    config.compute_dtype = "bfloat16"
    assert make_network(config, role="denoiser", **SIZES, head=HEAD) == DiffusionUNet(
        action_dim=1,
        chunk=2,
        time_dim=4,
        dim=6,
        dim_mults=(1, 2),
        kernel_size=3,
        num_groups=None,
        group_norm_eps=1e-4,
        predict_scale=False,
        larger_encoder=False,
        condition_sizes=(5, 4),
        activation="elu",
        compute_dtype="bfloat16",
    )


def test_a_gaussian_perceptron_gets_every_setting_and_those_of_its_head():
    config = default_config()
    config.update(hidden_sizes=(8, 8), residual=False, layer_norm=True)
    config.update(activation="elu", compute_dtype="bfloat16")
    assert make_network(config, role="gaussian", **SIZES, head=HEAD) == GaussianMLP(
        action_dim=1,
        chunk=2,
        hidden_sizes=(8, 8),
        activation="elu",
        layer_norm=True,
        residual=False,
        compute_dtype="bfloat16",
        fixed_std=0.2,
        tanh_output=False,
    )


def test_a_mixture_gets_every_setting_and_those_of_its_head():
    config = default_config()
    config.update(hidden_sizes=(8,), residual=True, layer_norm=True)
    config.update(activation="elu", compute_dtype="bfloat16")
    head = HEAD | dict(num_modes=3)
    assert make_network(config, role="gmm", **SIZES, head=head) == MixtureMLP(
        action_dim=1,
        chunk=2,
        num_modes=3,
        hidden_sizes=(8,),
        activation="elu",
        layer_norm=True,
        residual=True,
        compute_dtype="bfloat16",
        fixed_std=0.2,
        tanh_output=False,
    )


def test_transformers_get_every_setting_and_those_of_their_heads():
    config = default_config("transformer")
    settings = dict(embed_dim=12, num_heads=3, num_layers=2, activation="elu")
    settings |= dict(causal=True, embedding_dropout=0.1, attention_dropout=0.2)
    settings |= dict(compute_dtype="bfloat16")
    config.update(settings)
    assert set(settings) == set(build.NETWORKS["transformer"].settings())
    sizes = dict(action_dim=1, chunk=2, fixed_std=0.2, tanh_output=False)
    network = make_network(config, role="gaussian", **SIZES, head=HEAD)
    assert network == GaussianTransformer(**sizes, **settings)
    head = HEAD | dict(num_modes=3)
    network = make_network(config, role="gmm", **SIZES, head=head)
    assert network == MixtureTransformer(**sizes, **settings, num_modes=3)
    message = "'transformer' cannot be a denoiser; use one of mlp"
    with pytest.raises(ValueError, match=message):
        make_network(config, role="denoiser", **SIZES)


@pytest.mark.parametrize("kind", build.NETWORKS)
def test_every_kind_does_what_its_roles_ask_for(kind):
    for role in build.NETWORKS[kind].roles:
        config = default_config(kind)
        network = make_network(config, role=role, **SIZES, head=HEAD)
        check_outputs(network, OBS, role=role, **SIZES)
        assert network.encoder == StateEncoder()


def test_an_encoder_reaches_the_network():
    class Constant(StateEncoder):
        pass

    for role in build.ROLES:
        network = make_network(
            default_config(), role=role, **SIZES, encoder=Constant(), head=HEAD
        )
        assert isinstance(network.encoder, Constant)


def test_a_denoiser_of_a_file_gets_its_options_and_sizes(file):
    config = default_config()
    config.kind, config.options.width = f"{file}:make_network", 3.0
    network = make_network(config, role="denoiser", **SIZES)
    assert network.chunk == tiny.CHUNK
    check_outputs(network, OBS, role="denoiser", **SIZES)
    x, obs = jnp.full((3, 2, 1), 2.0), {"state": jnp.full((3, 1, 2), 0.25)}
    output, _ = network.init_with_output(KEY, x, jnp.ones(3), obs)
    np.testing.assert_allclose(output, 3.0 * 2.0 / 2 + 0.25)


def test_a_gaussian_of_a_file_takes_settings_by_name(file):
    config = default_config()
    config.kind, config.hidden_sizes = f"{file}:make_gaussian", (7,)
    network = make_network(config, role="gaussian", **SIZES, head=HEAD)
    assert network == GaussianMLP(1, 2, (7,), fixed_std=0.2)


def test_the_section_of_an_outside_network_may_hold_its_options_alone(file):
    config = default_config(f"{file}:make_network")
    assert set(config) == {"kind", "options", "encoder"}
    assert make_network(config, role="denoiser", **SIZES).width == 1.0


@pytest.mark.parametrize(
    "name, role, options, message",
    [
        ("make_network", "denoiser", dict(widht=2), "own.py:make_network.*'widht'"),
        ("make_gaussian", "gaussian", dict(depth=2), "own.py:make_gaussian.*'depth'"),
        ("make_three", "gaussian", {}, "returned a int; it must return a flax"),
        ("make_whole", "denoiser", {}, "Whole without encode and denoise"),
        ("make_nothing", "denoiser", {}, "own.py has no 'make_nothing', but make"),
    ],
)
def test_an_outside_network_that_does_not_fit_is_refused(
    file, name, role, options, message
):
    config = default_config()
    config.kind = f"{file}:{name}"
    config.options.update(options)
    with pytest.raises(ValueError, match=message):
        make_network(config, role=role, **SIZES, head=HEAD)


def test_outputs_of_another_shape_are_refused(file):
    config = default_config(f"{file}:make_flat")
    network = make_network(config, role="denoiser", **SIZES)
    message = r"Flat returns outputs of shapes \[\(2, 2\)\].*here \(2, 2, 1\)"
    with pytest.raises(ValueError, match=message):
        check_outputs(network, OBS, role="denoiser", **SIZES)
    with pytest.raises(ValueError, match="must return mean and std.*here .2, 2, 9."):
        check_outputs(
            GaussianMLP(1, 2, (8,), fixed_std=0.1),
            OBS,
            role="gaussian",
            action_dim=9,
            chunk=2,
        )


@pytest.mark.parametrize(
    "network",
    [
        MixtureMLP(1, 3, hidden_sizes=(8,), fixed_std=0.1),
        GaussianMLP(1, 2, (8,), fixed_std=0.1),
    ],
    ids=["another chunk", "no mixture"],
)
def test_outputs_of_another_shape_are_no_mixture(network):
    message = r"means and stds of shape .B, M, Ta, Da. .* here \(2, M, 2, 1\)"
    with pytest.raises(ValueError, match=message):
        check_outputs(network, OBS, role="gmm", **SIZES)


def test_outputs_that_are_no_floats_are_refused(file):
    config = default_config(f"{file}:make_rounded")
    network = make_network(config, role="denoiser", **SIZES)
    with pytest.raises(SettingsError, match="Rounded .* type int32; .* floats"):
        check_outputs(network, OBS, role="denoiser", **SIZES)


@pytest.mark.parametrize(
    "role, outputs, message",
    [
        ("gaussian", [jnp.ones((2, 2, 1))] * 2, "Fixed .* type list; .* arrays"),
        ("gaussian", (jnp.ones((2, 2, 1)), jnp.ones((2, 2, 1), int)), "type int32"),
        (
            "gmm",
            (*(jnp.ones((2, 3, 2, 1)),) * 2, jnp.ones((2, 3), bool)),
            "type bool; .* floats",
        ),
    ],
)
def test_outputs_of_distributions_are_floats(role, outputs, message):
    class Fixed(nn.Module):
        def __call__(self, obs):
            return outputs

    with pytest.raises(SettingsError, match=message):
        check_outputs(Fixed(), OBS, role=role, **SIZES)


def test_a_denoiser_must_accept_one_time_for_all_rows(file):
    """Shapes are checked with two rows: with one, times [B] and [1] are the same."""
    network = make_network(
        default_config(f"{file}:make_of_rows"), role="denoiser", **SIZES
    )
    obs = {"state": OBS["state"][:1]}
    with pytest.raises(ValueError, match=r"time of shape \(1,\).*one time for all"):
        check_outputs(network, obs, role="denoiser", **SIZES)


@pytest.mark.parametrize(
    "changes, role, message",
    [
        (
            dict(kind="forest"),
            "denoiser",
            "network.kind='forest' is unknown; use one of mlp",
        ),
        (dict(options=dict(width=2)), "denoiser", "network.options=.*'width'.*'mlp'"),
        (dict(depth=2), "denoiser", r"network.kind='mlp' has no settings \['depth'\]"),
        ({}, "critic", "role='critic' is unknown; use one of denoiser, gaussian"),
    ],
)
def test_settings_without_a_network_are_refused(changes, role, message):
    config = default_config()
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        make_network(config, role=role, **SIZES)


def test_a_kind_without_a_role_names_those_that_have_it():
    with pytest.raises(ValueError, match="'unet' cannot be a gaussian; use one of mlp"):
        make_network(default_config("unet"), role="gaussian", **SIZES)


def test_default_config_refuses_an_unknown_kind():
    with pytest.raises(ValueError, match="network.kind='forest' is unknown"):
        default_config("forest")
