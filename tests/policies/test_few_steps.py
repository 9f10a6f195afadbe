"""Flow policies that are told the length of a step (shortcut models, MeanFlow)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from dppo_jax import algorithms, policies
from dppo_jax.errors import SettingsError
from dppo_jax.networks.build import default_config as network_config
from dppo_jax.policies.build import make_policy
from experiments.defaults import default_config
from tests import tiny

KINDS = ("shortcut", "mean_flow")
OBS, B = tiny.OBS, 3
KEYS = jax.random.split(jax.random.key(4), B)


def model_config(kind, num_steps=4, **changes) -> ConfigDict:
    model = policies.default_config()
    model.update(kind="flow", chunk=tiny.CHUNK)
    model.flow.cloning = kind
    model.network.update(hidden_sizes=(8,), residual=False)
    model.noise.hidden_sizes = (8,)
    model.sampling.update(flow_steps=num_steps, num_tuned_steps=num_steps)
    model.update_from_flattened_dict(changes)
    return model


def make(kind, num_steps=4, **changes):
    return make_policy(model_config(kind, num_steps, **changes), action_dim=1)


def test_networks_embed_the_length_as_they_embed_the_time():
    """Of both together there are twice as many numbers, and nothing else changes."""
    unet = network_config("unet")
    unet.update(dim=8, dim_mults=(1,), num_groups=4)
    for network in ({}, {"network": unet}):
        shapes = [
            jax.eval_shape(make(kind, **network).init, jax.random.key(0), OBS)
            for kind in ("flow", "shortcut", "mean_flow")
        ]
        flow, shortcut, mean_flow = (
            jax.tree_util.tree_flatten_with_path(x.tuned.velocity)[0] for x in shapes
        )
        assert shortcut == mean_flow
        different = [
            (jax.tree_util.keystr(path), a.shape, b.shape)
            for (path, a), (_, b) in zip(flow, shortcut, strict=True)
            if a.shape != b.shape
        ]
        ((name, few, many),) = different
        assert "time_embedding" in name and many == (2 * few[0], few[1])


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_a_chain_is_scored_as_it_was_sampled(num_steps):
    """One network serves any number of steps."""
    policy = make("shortcut", num_steps)
    params = make("shortcut", 4).init(jax.random.key(0), OBS)
    params = policy.prepare(jax.random.key(1), params, OBS)
    chain, log_prob = jax.jit(policy.sample)(params, KEYS, OBS)
    again = jax.jit(policy.chain_log_prob)(params.tuned, chain, OBS)
    np.testing.assert_allclose(log_prob, again, rtol=1e-4, atol=1e-4)
    first = policy.log_prob(
        params.tuned, chain[:, 0], chain[:, 1], OBS, jnp.zeros(B, int)
    )
    np.testing.assert_allclose(log_prob[:, 0], first, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_ppo_tunes_it_and_keeps_the_cloned_velocity(kind):
    config = default_config()
    config.model = model_config(kind, 2)
    config.critic.update(hidden_sizes=(16,), residual=False)
    config.rollout.update(num_envs=4, num_chunks=4)
    config.algorithm.ppo.update(batch_size=8, epochs=1, **tiny.FLOW_PPO)
    policy = make_policy(config.model, action_dim=1)
    algorithm = algorithms.make_algorithm(tiny.point_env(4), policy, config)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    after, metrics = jax.eval_shape(algorithm.step, state)
    assert "ratio" in metrics
    assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        ("straight", {}, "flow.cloning='straight' .* 'shortcut' or 'mean_flow'"),
        ("shortcut", {"sampling.flow_steps": 3}, "flow_steps=3 must be a power of two"),
        ("shortcut", {"flow.max_steps": 4}, "flow_steps=4 .* below flow.max_steps=4"),
        ("shortcut", {"flow.step_share": 0.0}, "flow.step_share=0.0"),
        ("mean_flow", {"flow.times": "beta"}, "flow.times='beta'"),
    ],
)
def test_settings_that_make_no_such_flow_are_refused_by_name(kind, changes, message):
    with pytest.raises(SettingsError, match=message):
        make(kind, **changes)


@pytest.mark.parametrize("kind", KINDS)
def test_fpo_has_no_loss_of_velocities_for_it(kind):
    assert make(kind).velocity_error is None
    config = default_config()
    config.model = model_config(kind)
    config.model.noise.update(std_min=0.1, std_max=0.1)
    config.algorithm.name = "fpo"
    policy = make_policy(config.model, action_dim=1)
    with pytest.raises(SettingsError, match="velocities; .*flow.cloning='flow'"):
        algorithms.make_algorithm(tiny.point_env(4), policy, config)
