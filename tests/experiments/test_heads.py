"""Configurations of Gaussians and mixtures, and how other networks are chosen."""

import jax
import jax.numpy as jnp
import pytest

from dppo_jax.algorithms.ppo.settings import check_config, log_prob_mean
from dppo_jax.policies import make_policy
from experiments import directories
from experiments.configs import avoid, halfcheetah, hopper, walker2d
from experiments.defaults import default_config
from experiments.settings import override, settings_of

AVOID = [v for v in avoid.VARIANTS if v.endswith(("_gaussian", "_gmm"))]
RUNNERS = [
    (task, variant)
    for task in (hopper, walker2d, halfcheetah)
    for variant in ("gaussian", "gmm")
]


def parameters(config, obs_size, action_dim):
    """Of the policy, [count] and by name."""
    policy = make_policy(config.model, action_dim=action_dim)
    obs = {"state": jnp.zeros((1, 1, obs_size))}
    params = jax.eval_shape(policy.init, jax.random.key(0), obs).tuned["params"]
    return sum(x.size for x in jax.tree.leaves(params)), params


@pytest.mark.parametrize("variant", AVOID)
def test_avoid_compares_policies_on_the_same_data_and_steps(variant):
    """Sizes: 256 x 3 residual, and 256 x 2 twice for means and logits."""
    config = avoid.get_config(variant)
    subset, head = variant.split("_")
    diffusion = avoid.get_config(subset)
    assert config.name == f"avoid_{variant}" and config.model.kind == head
    assert config.collect.modes == diffusion.collect.modes
    assert config.rollout == diffusion.rollout
    ppo = config.algorithm.ppo
    chunks = config.rollout.num_envs * config.rollout.num_chunks
    assert ppo.batch_size == chunks // 2 == 625
    policy = make_policy(config.model, action_dim=2)
    check_config(ppo, policy)
    log_prob_mean(ppo, policy, executed=4)
    count, params = parameters(config, 4, 2)
    layers = 5 * 256 + 257 * 256
    if head == "gaussian":
        assert count == layers + 257 * 256 + 257 * 8
    else:
        assert set(params) == {"mean", "logits"}
        assert count == 2 * layers + 257 * (5 * 8 + 5)
    assert config.pretrain.batch_size == (32 if variant == "m3_gmm" else 16)


@pytest.mark.parametrize("task, variant", RUNNERS)
def test_runners_start_from_nothing_with_a_std_of_a_tenth(task, variant):
    config = task.get_config(variant)
    assert config.policy == "none" and config.model.chunk == 1
    iterations = 501 if task is halfcheetah else 301
    assert config.loop.finetune.num_iterations == iterations
    ppo = config.algorithm.ppo
    assert (ppo.batch_size, ppo.epochs, ppo.clip_top) == (500, 10, 0.1)
    policy = make_policy(config.model, action_dim=3)
    check_config(ppo, policy)
    obs = {"state": jnp.zeros((1, 1, 11))}
    params = policy.init(jax.random.key(0), obs)
    action = policy.sample(params, jax.random.split(jax.random.key(1), 1), obs)
    assert action.chain.shape == (1, 2, 1, 3)
    names = {"base", "mean", "log_variance"}
    if variant == "gmm":
        names = {"mean", "logits", "fixed_log_variance"}
        std = jnp.exp(0.5 * params.tuned["params"]["fixed_log_variance"])
        assert std.shape == (5 * 3,) and jnp.allclose(std, 0.1)
    assert set(params.tuned["params"]) == names


def test_another_network_is_chosen_by_its_kind():
    config = default_config()
    kind = "model.network.kind=transformer"
    override(config, ["model.kind=gmm", kind, "model.network.embed_dim=16"])
    override(config, ["model.network.num_layers=1", kind])  # the same kind again
    assert (config.model.network.embed_dim, config.model.network.num_layers) == (16, 1)
    _, params = parameters(config, 3, 2)
    assert set(params) == {"transformer", "logits"}
    with pytest.raises(ValueError, match="unknown setting model.network.hidden_sizes"):
        override(config, ["model.network.hidden_sizes=8"])
    override(config, ["model.network.kind=mlp", "model.network.hidden_sizes=8"])
    assert config.model.network.hidden_sizes == (8,)


def test_a_network_from_outside_keeps_the_settings():
    config = default_config()
    override(config, ["model.network.hidden_sizes=8"])
    override(config, ["model.network.kind=mine.py:make", "model.network.kind=mlp"])
    assert config.model.network.hidden_sizes == (8,)


def test_a_run_keeps_the_settings_of_its_network():
    config = default_config()
    override(config, ["model.kind=gaussian", "model.network.kind=transformer"])
    override(config, ["model.network.num_heads=2", "model.network.causal=true"])
    again = settings_of(directories.as_json(config))
    assert directories.as_json(again) == directories.as_json(config)
    assert again.model.network.num_heads == 2 and again.model.network.causal
