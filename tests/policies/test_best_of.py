"""Exploring by the best of several proposals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.policies import BestOfParams, PolicyParams, best_of_policy
from dppo_jax.policies.candidates import propose
from tests import tiny

KEYS = jax.random.split(jax.random.key(0), 500)
OBS = {"state": jnp.zeros((500, 1, 2))}
PARAMS = PolicyParams(jnp.float32(0.5), jnp.float32(0.5))


class Linear:
    """Q_m(s, a) = c_m a."""

    def __init__(self, num_critics):
        self.num_critics = num_critics

    def init(self, key, obs, action):
        return jnp.ones(self.num_critics)

    def apply(self, params, obs, action):
        return params[:, None] * action[:, 0, 0]


def uniform_policy():
    """Exploring draws from [0, 1); the deterministic action is the parameter."""

    def act(params, keys, obs, *, deterministic=False):
        draws = jax.vmap(jax.random.uniform)(keys)
        action = jnp.full(len(keys), params.tuned) if deterministic else draws
        return action[:, None, None], {}

    return tiny.tiny_diffusion_policy()._replace(act=act)


def explored(costs, num_samples=4, **choice):
    """The chosen actions, and all proposals, [500, num_samples]."""
    policy = uniform_policy()
    subject = best_of_policy(
        policy, Linear(len(costs)), num_samples=num_samples, **choice
    )
    params = BestOfParams(PARAMS, jnp.array(costs))
    action, extras = jax.jit(subject.act)(params, KEYS, OBS)
    assert extras == {}
    _, _, proposed = propose(policy, PARAMS, KEYS, OBS, num_samples=num_samples)
    return action[:, 0, 0], proposed.reshape(500, num_samples)


def test_the_least_value_of_all_judges_counts():
    """The least of a, 3 a and -a is -a, so the least proposal is the best."""
    action, proposed = explored([1.0, 3.0, -1.0], judges=3)
    np.testing.assert_array_equal(action, proposed.min(1))


def test_judges_are_drawn_once_for_an_observation():
    """One judge of two opposed critics prefers the highest or the lowest proposal."""
    action, proposed = explored([1.0, -1.0], judges=1)
    highest, lowest = action == proposed.max(1), action == proposed.min(1)
    assert (highest ^ lowest).all()
    np.testing.assert_allclose(highest.mean(), 0.5, atol=0.1)


def test_own_judges_are_drawn_for_each_proposal():
    """A judge that likes a proposal scores it above all with the other judge."""
    action, proposed = explored([1.0, -1.0], judges=1, own_judges=True)
    between = (action < proposed.max(1)) & (action > proposed.min(1))
    assert 0.2 < between.mean() < 0.5


def test_two_of_three_judges_are_different_ones():
    """Of the critics 2 a, a and -a, two without the last one prefer the highest."""
    action, proposed = explored([2.0, 1.0, -1.0], judges=2)
    np.testing.assert_allclose((action == proposed.max(1)).mean(), 1 / 3, atol=0.08)


def test_deterministic_actions_and_single_proposals_are_those_of_the_policy():
    policy = uniform_policy()
    subject = best_of_policy(policy, Linear(2), num_samples=4, judges=1)
    params = BestOfParams(PARAMS, jnp.ones(2))
    action, _ = subject.act(params, KEYS, OBS, deterministic=True)
    np.testing.assert_array_equal(action, 0.5)
    single = best_of_policy(policy, Linear(2), num_samples=1, judges=1)
    action, _ = single.act(params, KEYS, OBS)
    np.testing.assert_array_equal(action, policy.act(PARAMS, KEYS, OBS)[0])


@pytest.mark.parametrize(
    "choice, message",
    [
        (dict(num_samples=0, judges=1), "num_samples=0 must be at least 1"),
        (dict(num_samples=2, judges=3), "judges=3 must be between 1 and num_critics=2"),
        (dict(num_samples=2, judges=0), "judges=0"),
    ],
)
def test_choices_that_cannot_be_made_are_refused(choice, message):
    with pytest.raises(ValueError, match=message):
        best_of_policy(uniform_policy(), Linear(2), **choice)
