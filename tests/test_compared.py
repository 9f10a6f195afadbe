"""A program that was made of a policy is compared with the policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax import compared
from tests.test_controller import BOUNDS, counter


def compare(chunks):
    """The actions of the policy lie in [10, 20]."""
    return compared.compare(counter(), chunks, what="the file")


def test_the_largest_difference_is_in_units_and_in_shares_of_the_range():
    def chunks(seed, obs):
        wanted = np.zeros((3, 1))
        found = wanted.copy()
        found[seed % 3] = 0.005 if seed == compared.NUM_COMPARED - 1 else -0.001
        return found, wanted

    difference = compare(chunks)
    assert difference.largest == pytest.approx(0.005)
    assert difference.share == pytest.approx(0.005 / 10)


@pytest.mark.parametrize("wrong", [0.011, -0.011, np.nan, np.inf])
def test_one_chunk_that_differs_is_enough_to_refuse(wrong):
    def chunks(seed, obs):
        found = np.full((3, 1), wrong if seed == 7 else 0.0)
        return found, np.zeros((3, 1))

    with pytest.raises(RuntimeError, match="the file differs from the policy by"):
        compare(chunks)


def test_entries_without_a_range_count_in_their_units():
    """All demonstrations have the same action, so there is no range to divide by."""
    fixed = BOUNDS._replace(action_max=BOUNDS.action_min)
    policy = counter()._replace(normalizer=fixed)
    difference = compared.compare(
        policy, lambda seed, obs: (np.full((1, 1), 5e-4), np.zeros((1, 1))), what=""
    )
    assert difference.share == difference.largest == pytest.approx(5e-4)


def test_observations_lie_within_the_bounds_and_have_the_types_of_the_policy():
    reads = {
        "state": jax.ShapeDtypeStruct((1, 2), jnp.float32),
        "rgb": jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.uint8),
        "task": jax.ShapeDtypeStruct((1, 4), jnp.float32),
    }
    policy = counter()._replace(reads=reads)
    first, second = compared.random_observations(policy, 2)
    for name, like in reads.items():
        assert first[name].shape == like.shape and first[name].dtype == like.dtype
        assert np.any(first[name] != second[name])
    many = np.array([x["state"] for x in compared.random_observations(policy, 200)])
    assert np.all((many >= BOUNDS.obs_min) & (many <= BOUNDS.obs_max))
    np.testing.assert_allclose(many.min((0, 1)), BOUNDS.obs_min, atol=0.1)
    np.testing.assert_allclose(many.max((0, 1)), BOUNDS.obs_max, atol=0.1)
    assert np.all(np.abs(first["task"]) <= 1)
    again = next(compared.random_observations(policy, 1))
    np.testing.assert_array_equal(again["rgb"], first["rgb"])
