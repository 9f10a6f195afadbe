"""The network behind the standard deviation of a flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.networks.noise import NoiseMLP

CONDITION = {"state": jnp.ones((3, 5)), "rgb": jnp.ones((3, 2, 2))}
NETWORK = NoiseMLP(action_dim=2, chunk=4, hidden_sizes=(6, 7), time_dim=4)


def init(time=1):
    return NETWORK.init(jax.random.key(0), jnp.zeros(time), CONDITION)


def stirred():
    """Parameters with an output layer that is not zero."""
    leaves, tree = jax.tree.flatten(init())
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])


def test_it_says_nothing_at_first():
    output = NETWORK.apply(init(), jnp.array([0.0, 0.5, 1.0]), CONDITION)
    np.testing.assert_array_equal(output, np.zeros((3, 4, 2)))


def test_it_reads_the_time_and_everything_in_the_condition():
    """Five and four numbers of the condition, four of the time."""
    sizes = {x.shape for x in jax.tree.leaves(init())}
    assert sizes == {(13, 6), (6,), (6, 7), (7,), (7, 8), (8,)}
    params, time = stirred(), jnp.array([0.25])
    output = NETWORK.apply(params, time, CONDITION)
    for other in (CONDITION | {"rgb": 0 * CONDITION["rgb"]}, CONDITION):
        for moment in (time, 3 * time):
            same = other is CONDITION and moment is time
            again = NETWORK.apply(params, moment, other)
            assert bool((again == output).all()) == same


def test_one_time_is_that_of_all_rows():
    params = stirred()
    each = NETWORK.apply(params, jnp.full(3, 0.25), CONDITION)
    shared = NETWORK.apply(params, jnp.array([0.25]), CONDITION)
    np.testing.assert_allclose(each, shared, rtol=1e-6)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(hidden_sizes=()), r"noise.hidden_sizes=\(\)"),
        (dict(activation="thanh"), "activation='thanh'"),
    ],
)
def test_settings_that_make_no_network_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        NoiseMLP(action_dim=2, chunk=4, **settings)
