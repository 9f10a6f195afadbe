"""Choosing among several chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.networks import StateActionCritic, StateCritic
from dppo_jax.policies.candidates import (
    CHOICES,
    CandidateParams,
    candidate_policy,
    choose,
)
from tests import tiny

ADVANTAGE = jnp.array([-0.2, 0.1, 0.3, -0.1])


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("argmax", [0, 0, 1, 0]),
        ("first", [1, 0, 0, 0]),
        # Weights 0.25, 0.75, 0.75, 0.25.
        ("expectile", [0.125, 0.375, 0.375, 0.125]),
        ("boltzmann", jax.nn.softmax(ADVANTAGE / 0.2)),
    ],
)
def test_candidates_are_chosen_with_these_frequencies(kind, expected):
    keys = jax.random.split(jax.random.key(0), 4000)
    choices = jax.vmap(
        lambda key: choose(kind, key, ADVANTAGE, expectile=0.75, temperature=0.2)
    )
    chosen = jax.jit(choices)(keys)
    found = np.bincount(chosen, minlength=4) / 4000
    np.testing.assert_allclose(found, expected, atol=0.03)
    assert {"argmax", "first", "expectile", "boltzmann"} == set(CHOICES)


def make(**changes):
    settings = dict(
        num_samples=3,
        explore="expectile",
        evaluate="argmax",
        expectile=0.7,
        temperature=1.0,
    )
    policy = candidate_policy(
        tiny.tiny_diffusion_policy(tiny.NUM_STEPS),
        StateActionCritic((8,), activation="tanh"),
        StateCritic((8,), activation="tanh"),
        **(settings | changes),
    )
    return tiny.jitted(policy._replace(init=jax.jit(policy.init)))


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_action_of_a_row_does_not_depend_on_the_other_rows(deterministic):
    policy = make()
    params = policy.init(jax.random.key(0), tiny.OBS)
    assert isinstance(params, CandidateParams)
    keys = jax.random.split(jax.random.key(1), 3)
    together, _ = policy.act(params, keys, tiny.OBS, deterministic=deterministic)
    last = {name: x[2:] for name, x in tiny.OBS.items()}
    alone, _ = policy.act(params, keys[2:], last, deterministic=deterministic)
    np.testing.assert_allclose(together[2:], alone, atol=1e-5)


@pytest.mark.parametrize("changes", [dict(num_samples=1), dict(evaluate="first")])
def test_without_a_choice_it_acts_as_the_policy_that_proposes(changes):
    policy = make(**changes)
    proposing = tiny.jitted(tiny.tiny_diffusion_policy(tiny.NUM_STEPS))
    params = policy.init(jax.random.key(0), tiny.OBS)
    keys = jax.random.split(jax.random.key(1), 3)
    ours, _ = policy.act(params, keys, tiny.OBS, deterministic=True)
    theirs, _ = proposing.act(params.policy, keys, tiny.OBS, deterministic=True)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
