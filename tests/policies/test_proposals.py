"""The policy of IBRL chooses between two proposals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.policies.proposals import ProposalParams, proposal_policy, propose
from tests import tiny

OBS = {"state": jnp.zeros((4000, 1, 2))}
KEYS = jax.random.split(jax.random.key(0), 4000)


class LinearCritic:
    """Two critics, params times the sum of a chunk and twice that plus one."""

    def init(self, key, obs, action):
        return jnp.float32(1.0)

    def apply(self, params, obs, action):
        value = params * action.sum((1, 2))
        return jnp.stack([value, 2 * value + 1])


def params_with(slope):
    """The cloned network and the actor differ by what they start from."""
    policy = tiny.jitted(tiny.tiny_gaussian_policy(fixed_std=0.05))
    networks = [policy.init(jax.random.key(i), OBS).tuned for i in (3, 4)]
    cloned, actor = (
        propose(policy, network, KEYS[:1], OBS, deterministic=True)
        for network in networks
    )
    assert abs((cloned - actor)[0].sum()) > 0.1
    return policy, ProposalParams(networks[0], networks[1], jnp.float32(slope))


@pytest.mark.parametrize("slope", [1.0, -1.0])
@pytest.mark.parametrize("deterministic", [True, False])
def test_without_beta_the_better_proposal_is_executed(slope, deterministic):
    policy, params = params_with(slope)
    act = proposal_policy(policy, LinearCritic(), beta=None).act
    act = jax.jit(act, static_argnames="deterministic")
    action, extras = act(params, KEYS, OBS, deterministic=deterministic)
    proposals = [
        propose(policy, network, KEYS, OBS, deterministic=True)
        for network in (params.cloned, params.actor)
    ]
    value = [LinearCritic().apply(slope, OBS, x).min(0)[0] for x in proposals]
    assert bool(extras["is_cloned"].all()) == bool(value[0] > value[1])
    # The actor explores with its standard deviation, the cloned policy does not.
    spread = float(np.asarray(action).std(0).max())
    is_noisy = not deterministic and value[1] > value[0]
    assert spread == pytest.approx(0.05 if is_noisy else 1e-4, rel=0.3)


@pytest.mark.parametrize("exponent_twice", [False, True])
def test_exploring_draws_by_a_softmax_of_the_values(exponent_twice):
    policy, params = params_with(1.0)
    settings = dict(beta=3.0, exponent_twice=exponent_twice)
    act = proposal_policy(policy, LinearCritic(), **settings).act
    act = jax.jit(act)
    _, extras = act(params, KEYS, OBS)
    cloned, actor = (
        propose(policy, network, KEYS, OBS, deterministic=True)
        for network in (params.cloned, params.actor)
    )
    logits = 3.0 * np.stack(
        [LinearCritic().apply(1.0, OBS, x).min(0)[0] for x in (cloned, actor)]
    )
    logits = np.exp(logits) if exponent_twice else logits
    probability = np.exp(logits[0]) / np.exp(logits).sum()
    np.testing.assert_allclose(extras["is_cloned"].mean(), probability, atol=0.03)


def test_a_row_does_not_depend_on_the_others():
    policy, params = params_with(1.0)
    act = proposal_policy(policy, LinearCritic(), beta=3.0).act
    act = jax.jit(act)
    whole, _ = act(params, KEYS[:6], {"state": OBS["state"][:6]})
    part, _ = act(params, KEYS[2:4], {"state": OBS["state"][2:4]})
    np.testing.assert_allclose(whole[2:4], part, rtol=1e-6)
