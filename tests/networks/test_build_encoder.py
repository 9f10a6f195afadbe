"""A configuration becomes what a network reads an observation by."""

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from dppo_jax.networks import (
    StateActionCritic,
    StateCritic,
    StateEncoder,
    ViTEncoder,
    build,
)
from dppo_jax.networks.build_encoder import (
    default_config,
    image_shape,
    make_encoder,
    make_state_action_critic,
    make_state_critic,
)
from tests import tiny

SETTINGS = dict(
    image_size=(16, 20),
    num_cameras=2,
    image_history=3,
    patch_layers=1,
    patch_size=4,
    patch_norm=False,
    depth=2,
    num_heads=2,
    embed_dim=8,
    pooling="flat",
    features=6,
)


def of_images():
    config = default_config()
    config.kind = "vit"
    config.vit.update(SETTINGS)
    return config


def test_by_default_networks_read_the_state():
    assert make_encoder(None) == make_encoder(default_config()) == StateEncoder()
    assert image_shape(None) is image_shape(default_config()) is None
    config, head = build.default_config(), dict(fixed_std=0.1)
    for role in build.ROLES:
        network = build.make_network(
            config, role=role, action_dim=1, chunk=2, head=head
        )
        assert network.encoder == StateEncoder()


def test_a_transformer_gets_every_setting():
    assert set(SETTINGS) == set(default_config().vit)
    encoder = make_encoder(of_images(), compute_dtype="bfloat16")
    assert encoder == ViTEncoder(**SETTINGS, compute_dtype="bfloat16")
    assert image_shape(of_images()) == (3, 16, 20, 6)


def test_settings_may_come_from_a_file():
    """Where tuples have become lists, and nothing is a ConfigDict."""
    config = of_images().to_dict()
    config["vit"]["image_size"] = [16, 20]
    assert make_encoder(config) == make_encoder(of_images())
    assert hash(make_encoder(config)) == hash(make_encoder(of_images()))


@pytest.mark.parametrize("role", build.ROLES)
def test_the_network_of_a_policy_reads_by_its_encoder(role):
    config = build.default_config()
    config.update(hidden_sizes=(8, 8) if role == "gaussian" else (8,))
    config.update(encoder=of_images(), compute_dtype="bfloat16", residual=False)
    sizes = dict(role=role, action_dim=tiny.ACTION_DIM, chunk=tiny.CHUNK)
    network = build.make_network(config, **sizes)
    assert network.encoder == ViTEncoder(**SETTINGS, compute_dtype="bfloat16")
    obs = {**tiny.OBS, "rgb": jnp.zeros((3, 3, 16, 20, 6), jnp.uint8)}
    build.check_outputs(network, obs, **sizes)
    given = build.make_network(config, **sizes, encoder=StateEncoder())
    assert given.encoder == StateEncoder()


def test_critics_read_by_their_encoder():
    config = ConfigDict(dict(hidden_sizes=(8,), compute_dtype="bfloat16"))
    value = make_state_critic(config)
    assert value == StateCritic((8,), compute_dtype="bfloat16")
    config.encoder = of_images()
    encoder = ViTEncoder(**SETTINGS, compute_dtype="bfloat16")
    value = make_state_critic(config)
    assert value == StateCritic((8,), compute_dtype="bfloat16", encoder=encoder)
    members = make_state_action_critic(config, num_critics=3)
    assert isinstance(members, StateActionCritic) and members.num_critics == 3
    assert members.encoder == encoder
    obs = {**tiny.OBS, "rgb": jnp.zeros((3, 3, 16, 20, 6), jnp.uint8)}
    assert jax.eval_shape(value.init_with_output, jax.random.key(0), obs)[0].shape == (
        3,
    )


def test_an_unknown_kind_is_refused():
    config = default_config()
    config.kind = "resnet"
    for function in (make_encoder, image_shape):
        with pytest.raises(ValueError, match="'resnet' is unknown; use one of state"):
            function(config)
