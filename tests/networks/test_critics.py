"""Properties of the value networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.networks import StateActionCritic, StateCritic, random_members

KEY = jax.random.key(0)
OBS = {"state": jnp.arange(12.0).reshape(2, 2, 3)}
ACTION = jnp.ones((2, 4, 1))


@pytest.mark.parametrize("options", [{}, {"residual": True, "layer_norm": True}])
def test_value_is_one_number_per_sample(options):
    critic = StateCritic((8, 8, 8), **options)
    value, params = jax.jit(critic.init_with_output)(KEY, OBS)
    assert value.shape == (2,)
    jitted = jax.jit(critic.apply)(params, OBS)
    np.testing.assert_allclose(jitted, value, rtol=1e-5, atol=1e-6)


def test_values_are_float32_whatever_the_layers_compute_in():
    critic, rough = (
        StateCritic((8, 8, 8), residual=True, compute_dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    value, params = jax.jit(critic.init_with_output)(KEY, OBS)
    rough_value = jax.jit(rough.apply)(params, OBS)
    assert rough_value.dtype == jnp.float32
    assert 0 < np.abs(rough_value - value).max() < 0.02 * np.abs(value).max()


@pytest.mark.parametrize("options", [{}, {"residual": True, "layer_norm": True}])
def test_every_member_is_a_separate_network(options):
    """Member i of three computes the same as a single critic with its parameters, and
    no two members have equal random initial layers."""
    critic = StateActionCritic((8, 8, 8), num_critics=3, **options)
    values, params = jax.jit(critic.init_with_output)(KEY, OBS, ACTION)
    params = jax.tree.map(np.asarray, params)
    assert values.shape == (3, 2)
    one_critic = jax.jit(critic.clone(num_critics=1).apply)
    for i in range(3):
        member = jax.tree.map(lambda leaf: leaf[i : i + 1], params)
        (alone,) = one_critic(member, OBS, ACTION)
        np.testing.assert_allclose(values[i], alone, rtol=1e-5)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    random = [leaf for path, leaf in leaves if path[-2].key.startswith("linear")]
    assert len(random) == 2 * 4
    for leaf in random:
        for one, other in [(0, 1), (0, 2), (1, 2)]:
            assert (leaf[one] != leaf[other]).all()


def test_critics_read_the_action():
    critic = StateActionCritic((8,))
    values, params = jax.jit(critic.init_with_output)(KEY, OBS, ACTION)
    assert np.abs(jax.jit(critic.apply)(params, OBS, 2 * ACTION) - values).min() > 0


def test_random_members_are_different_and_all_take_part():
    """An encoder, which all share, stays whole."""
    leaves = {"kernel": jnp.arange(5.0)[:, None], "bias": 10 * jnp.arange(5.0)}
    encoder = {"bias": jnp.arange(3.0)}
    params = {"params": {"encoder": encoder, "members": leaves}}
    each = [random_members(jax.random.key(i), params, 2)["params"] for i in range(40)]
    assert all(one["encoder"] is encoder for one in each)
    drawn = [one["members"] for one in each]
    pairs = {tuple(members["kernel"][:, 0].tolist()) for members in drawn}
    assert all(one != other for one, other in pairs)
    assert {member for pair in pairs for member in pair} == {0, 1, 2, 3, 4}
    for members in drawn:
        np.testing.assert_array_equal(members["bias"], 10 * members["kernel"][:, 0])
    whole = random_members(KEY, params, 5)
    assert whole is params


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="1, 3, 5, ... equal sizes"):
        StateCritic((8, 8), residual=True)
    with pytest.raises(ValueError, match="num_critics=0"):
        StateActionCritic((8,), num_critics=0)
    with pytest.raises(ValueError, match="compute_dtype='half'.*float32, bfloat16"):
        StateCritic((8,), compute_dtype="half")
