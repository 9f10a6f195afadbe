"""The average of an actor over iterations, of an algorithm that only counts."""

import jax
import jax.numpy as jnp
import pytest

from dppo_jax.errors import SettingsError
from dppo_jax.learning.averages import average_actor
from dppo_jax.learning.on_policy import OnPolicyState
from dppo_jax.policies import PolicyParams
from dppo_jax.types import Algorithm
from tests import tiny


def counting():
    """Its tuned parameter is the number of iterations squared."""

    def init(key, params=None, critic_params=None):
        params = PolicyParams(
            jnp.float32(7), jnp.float32(0) if params is None else params
        )
        return OnPolicyState(params, *[None] * 7, iteration=jnp.int32(0))

    def learn(state, steps, metrics):
        count = state.iteration + 1
        params = state.params._replace(tuned=jnp.float32(count**2))
        return state._replace(params=params, iteration=count), metrics

    def collect(state):
        return state, None, {"met": jnp.ones(())}

    return Algorithm(
        init=init,
        step=lambda state: learn(*collect(state)),
        params=lambda state: state.params,
        act=None,
        phases=(collect, learn),
    )


def test_an_average_starts_as_a_copy_and_forgets_exponentially():
    """1 and 4 are copied, then 9 and 16 count a quarter each."""
    algorithm = average_actor(counting(), 0.75, start=2)
    state = algorithm.init(jax.random.key(0))
    assert algorithm.params(state) == PolicyParams(7, 0)
    for i, expected in enumerate(
        (1, 4, 0.75 * 4 + 0.25 * 9, 0.5625 * 4 + 0.1875 * 9 + 4)
    ):
        state, metrics = algorithm.step(state)
        assert algorithm.params(state) == PolicyParams(7, expected)
        assert state.params == PolicyParams(7, (i + 1) ** 2)
        assert metrics == {"met": 1}
    collect, learn = algorithm.phases
    again, _ = learn(*collect(state))
    assert again == algorithm.step(state)[0]


def test_without_a_decay_nothing_changes():
    algorithm = counting()
    assert average_actor(algorithm, 0.0, start=5) is algorithm


def test_a_run_starts_from_given_parameters():
    algorithm = average_actor(counting(), 0.5, start=0)
    state = algorithm.init(jax.random.key(0), jnp.float32(3))
    assert algorithm.params(state).tuned == 3
    state, _ = algorithm.step(state)
    assert algorithm.params(state).tuned == 2


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(average_decay=1.0), "average_decay=1.0 must lie in"),
        (dict(average_decay=-0.1), "average_decay=-0.1 must lie in"),
        (dict(average_start=-1), "average_start=-1 must not be negative"),
    ],
)
def test_wrong_settings_are_refused_by_name(changes, message):
    with pytest.raises(SettingsError, match=message):
        tiny.make_tiny_fpo(**changes)


def test_fpo_acts_by_its_average_and_trains_without_it():
    plain, averaged = (
        tiny.make_tiny_fpo(average_decay=decay, average_start=0, shuffle_groups=2)
        for decay in (0.0, 0.9)
    )
    start = jax.eval_shape(averaged.init, jax.random.key(0))
    assert jax.eval_shape(plain.init, jax.random.key(0)).average is None
    after, _ = jax.eval_shape(averaged.step, start)
    assert jax.tree.structure(after) == jax.tree.structure(start)
    assert averaged.params(after).tuned is after.average
    assert not any(jax.tree.leaves(averaged.split(start, 2).average))
