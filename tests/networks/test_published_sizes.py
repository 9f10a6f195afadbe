"""Networks of the published configurations have as many parameters as in the paper.

Millions of parameters are those of tables A9 to A11 of the DPPO paper, and sizes those
of the configurations of its code, v0.8. Nothing is compiled.
"""

import jax
import jax.numpy as jnp
import pytest

from dppo_jax.networks.build import default_config, make_network

FIXED = dict(fixed_std=0.1)
MODES = dict(fixed_std=0.1, num_modes=5)
# Task -> To x Do of one observation, Da.
SIZES = {
    "can": (23, 7),
    "square": (23, 7),
    "transport": (59, 14),
    "one_leg": (58, 10),
    "lamp": (44, 10),
}


def mlp(width, **settings):
    return dict(hidden_sizes=(width,) * 3, **settings)


def transformer(width):
    return dict(embed_dim=width, num_heads=4, num_layers=4)


def unet(width, *mults):
    return dict(dim=width, dim_mults=mults)


CONDITIONED = mlp(1024, time_dim=32, condition_sizes=(512, 64))
ROWS = [
    # task, chunk, role and head, kind and settings of the network, millions
    ("can", 4, "denoiser", None, "mlp", mlp(512), "0.576"),
    ("square", 4, "denoiser", None, "mlp", CONDITIONED, "2.31"),
    ("transport", 8, "denoiser", None, "mlp", mlp(1024, time_dim=32), "2.43"),
    ("can", 4, "denoiser", None, "unet", unet(40, 1, 2), "0.652"),
    ("square", 4, "denoiser", None, "unet", unet(64, 1, 2), "1.62"),
    ("transport", 16, "denoiser", None, "unet", unet(64, 1, 2), "1.68"),
    ("one_leg", 16, "denoiser", None, "unet", unet(64, 1, 2, 4), "6.86"),
    ("lamp", 16, "denoiser", None, "unet", unet(64, 1, 2, 4), "6.81"),
    ("can", 4, "gaussian", FIXED, "mlp", mlp(512), "0.552"),
    ("square", 4, "gaussian", FIXED, "mlp", mlp(1024), "2.15"),
    ("one_leg", 8, "gaussian", FIXED, "mlp", dict(hidden_sizes=(1024,) * 11), "10.6"),
    ("can", 4, "gaussian", FIXED, "transformer", transformer(96), "0.675"),
    ("square", 4, "gaussian", FIXED, "transformer", transformer(160), "1.86"),
    ("transport", 8, "gaussian", FIXED, "transformer", transformer(160), "1.87"),
    ("can", 4, "gmm", MODES, "mlp", mlp(512), "1.15"),
    ("square", 4, "gmm", MODES, "mlp", mlp(1024), "4.40"),
    ("transport", 8, "gmm", MODES, "mlp", mlp(1024), "4.90"),
    ("can", 4, "gmm", MODES, "transformer", transformer(96), "0.68"),
    ("square", 4, "gmm", MODES, "transformer", transformer(160), "1.87"),
    ("transport", 8, "gmm", MODES, "transformer", transformer(160), "1.89"),
]


@pytest.mark.parametrize(
    "task, chunk, role, head, kind, settings, millions",
    ROWS,
    ids=["-".join((row[0], row[2], row[4])) for row in ROWS],
)
def test_networks_have_as_many_parameters_as_published(
    task, chunk, role, head, kind, settings, millions
):
    obs_size, action_dim = SIZES[task]
    config = default_config(kind)
    config.update(settings)
    network = make_network(
        config, role=role, action_dim=action_dim, chunk=chunk, head=head
    )
    obs = {"state": jnp.zeros((1, 1, obs_size))}
    x = jnp.zeros((1, chunk, action_dim))
    inputs = (x, jnp.zeros(1), obs) if role == "denoiser" else (obs,)
    params = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    digits = len(millions.partition(".")[2])
    assert f"{count / 1e6:.{digits}f}" == millions


@pytest.mark.parametrize(
    "state_size, action_dim, chunk, width, num_cameras, millions",
    [(9, 7, 4, 512, 1, "1.06"), (18, 14, 8, 768, 2, "2.05")],
    ids=["can", "transport"],
)
def test_policies_on_pixels_have_as_many_parameters_as_published(
    state_size, action_dim, chunk, width, num_cameras, millions
):
    config = default_config("mlp")
    config.update(mlp(width, time_dim=32))
    config.encoder.kind = "vit"
    config.encoder.vit.num_cameras = num_cameras
    network = make_network(config, role="denoiser", action_dim=action_dim, chunk=chunk)
    obs = {
        "state": jnp.zeros((1, 1, state_size)),
        "rgb": jnp.zeros((1, 1, 96, 96, 3 * num_cameras), jnp.uint8),
    }
    x = jnp.zeros((1, chunk, action_dim))
    params = jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(1), obs)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert f"{count / 1e6:.2f}" == millions
