"""The KL divergence of chains (arXiv 2606.15260), from the moments of their moves."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.diffusion.chain import Moments
from dppo_jax.diffusion.flow import flow_cloning, make_flow
from dppo_jax.learning.chain_losses import chain_kl
from dppo_jax.policies import flow_policy
from tests import tiny

POLICIES = {
    "DDPM": lambda: tiny.tiny_diffusion_policy(draw_clip=50.0),
    "DDIM": lambda: tiny.tiny_diffusion_policy(ddim_steps=2, draw_clip=50.0),
    "flow": lambda: tiny.tiny_flow_policy(2, draw_clip=50.0),
    "Gaussian": lambda: tiny.tiny_gaussian_policy(learn_fixed_std=True),
}


def moments(mean, std):
    """Of one chain of K' = 2 moves with one entry each."""
    mean, std = (jnp.asarray(x, jnp.float32) for x in (mean, std))
    return Moments(mean[None, :, None, None], std[None, :, None, None])


def test_the_divergence_is_that_of_gaussians_summed_over_moves():
    """By the integral of each density times the difference of the logarithms."""
    old, new = moments([0.2, -0.1], [0.3, 0.1]), moments([0.1, 0.1], [0.2, 0.15])
    x = np.linspace(-4, 4, 400_001)

    def log_density(mean, std):
        return -0.5 * ((x - mean) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))

    each = []
    for m, s, other_m, other_s in ((0.2, 0.3, 0.1, 0.2), (-0.1, 0.1, 0.1, 0.15)):
        density = np.exp(log_density(m, s))
        difference = log_density(m, s) - log_density(other_m, other_s)
        each.append((density * difference).sum() * (x[1] - x[0]))
    np.testing.assert_allclose(chain_kl(old, new), [sum(each)], rtol=1e-4)
    weight = jnp.array([[0.0, 1.0]])
    np.testing.assert_allclose(chain_kl(old, new, weight), [each[1]], rtol=1e-4)


def test_all_entries_count():
    old = Moments(jnp.zeros((3, 2, 4, 5)), jnp.full((3, 2, 4, 5), 0.5))
    new = old._replace(mean=old.mean + 0.1)
    np.testing.assert_allclose(chain_kl(old, new), 40 * 0.5 * 0.2**2, rtol=1e-5)


def sampled(policy, num_rows):
    """Parameters, observations, and chains with their entry-wise log-probabilities."""
    obs = {"state": jax.random.uniform(jax.random.key(3), (num_rows, 1, 2))}
    params = policy.init(jax.random.key(0), obs)
    params = policy.prepare(jax.random.key(1), params, obs)
    keys = jax.random.split(jax.random.key(2), num_rows)
    chain, log_prob = jax.jit(policy.sample)(params, keys, obs)
    return params, obs, chain, log_prob


def moved(params, distance):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    return tree.unflatten(
        [x + distance * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves)]
    )


@pytest.mark.parametrize("name", POLICIES)
def test_the_policy_that_sampled_has_no_divergence_and_no_gradient(name):
    policy = POLICIES[name]()
    params, obs, chain, log_prob = sampled(policy, 8)
    old = policy.chain_moments(params.tuned, chain, obs)
    # They are the moments of sampling.
    z = (chain[:, 1:] - old.mean) / old.std
    expected = -0.5 * z**2 - np.log(np.sqrt(2 * np.pi)) - jnp.log(old.std)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-4, atol=1e-4)

    def mean_kl(tuned):
        return chain_kl(old, policy.chain_moments(tuned, chain, obs)).mean()

    value, gradient = jax.jit(jax.value_and_grad(mean_kl))(params.tuned)
    assert value == pytest.approx(0, abs=1e-8)
    for x in jax.tree.leaves(gradient):
        np.testing.assert_allclose(x, 0, atol=1e-4)
    assert mean_kl(moved(params.tuned, 0.05)) > 1e-4


@pytest.mark.parametrize("name", POLICIES)
def test_it_is_the_mean_of_the_log_ratio_over_old_chains(name):
    """Given its chain, a log-ratio differs from the divergence by noise alone."""
    policy, num_rows = POLICIES[name](), 20_000
    params, obs, chain, log_prob = sampled(policy, num_rows)
    new = moved(params.tuned, 0.03)
    kl = chain_kl(
        policy.chain_moments(params.tuned, chain, obs),
        policy.chain_moments(new, chain, obs),
    )
    log_ratio = log_prob - policy.chain_log_prob(new, chain, obs)
    noise = np.asarray(log_ratio.sum((1, 2, 3)) - kl)
    error = noise.std() / np.sqrt(num_rows)
    assert kl.mean() > 10 * error
    assert noise.mean() == pytest.approx(0, abs=4 * error)


class Line(NamedTuple):
    """The velocity a x + b of one number, whatever the time and the observation."""

    def init(self, key, *inputs):
        return {"a": jnp.float32(0.4), "b": jnp.float32(0.2)}

    def apply(self, params, *inputs, method):
        if method == "encode":
            return inputs[0]["state"][:, 0]
        return params["a"] * inputs[0] + params["b"]


def test_chains_differ_at_least_as_much_as_their_actions():
    """x' = (1 + a / 2) x + b / 2 + 0.3 z twice, from N(0, 1): all marginals are normal,
    and a move from N(m, v) has the mean divergence (((a - A) m + b - B)^2 +
    (a - A)^2 v) / 4 / (2 0.3^2)."""
    std, steps = 0.3, 2
    flow = make_flow(
        num_steps=steps, std_min=std, std_max=std, mean_clip=None, draw_clip=50.0
    )
    policy = flow_policy(Line(), flow, flow_cloning(), chunk=1, action_dim=1)
    params, obs, chain, _ = sampled(policy, 100_000)
    old = {"a": 0.4, "b": 0.2}
    new = {"a": 0.1, "b": 0.5}

    def marginal(line):
        """Mean and variance of every entry of a chain."""
        entries, slope = [(0.0, 1.0)], 1 + line["a"] / steps
        for _ in range(steps):
            mean, variance = entries[-1]
            entries.append(
                (slope * mean + line["b"] / steps, slope**2 * variance + std**2)
            )
        return entries

    apart = {k: old[k] - new[k] for k in old}
    expected = sum(
        ((apart["a"] * m + apart["b"]) ** 2 + apart["a"] ** 2 * v) / steps**2
        for m, v in marginal(old)[:-1]
    ) / (2 * std**2)
    tuned = params.tuned._replace(velocity={k: jnp.float32(v) for k, v in new.items()})
    kl = chain_kl(
        policy.chain_moments(params.tuned, chain, obs),
        policy.chain_moments(tuned, chain, obs),
    )
    assert kl.mean() == pytest.approx(expected, rel=0.02)
    (mean, variance), (other, other_variance) = (marginal(x)[-1] for x in (old, new))
    of_actions = 0.5 * (
        np.log(other_variance / variance)
        + (variance + (mean - other) ** 2) / other_variance
        - 1
    )
    assert 0.05 < of_actions < expected
