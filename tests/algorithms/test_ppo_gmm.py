"""PPO of a mixture: its ratios are those of joint log-probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.algorithms.ppo.settings import log_prob_mean
from tests import tiny

LOG_PROB = jnp.array([[[3.0, -9.0], [1.0, 0.5]]])  # [B, Ta, Da]


def reduced(policy=None, executed=2, **changes):
    config = tiny.tiny_ppo_config(**changes)
    policy = tiny.tiny_gmm_policy() if policy is None else policy
    return log_prob_mean(config, policy, executed=executed)(LOG_PROB)


def test_entries_are_added_up_and_not_clamped():
    np.testing.assert_allclose(reduced(), [-4.5])
    np.testing.assert_allclose(reduced(executed=1), [-6.0])
    np.testing.assert_allclose(reduced(reward_horizon=1), [-6.0])
    np.testing.assert_allclose(reduced(log_prob_bounds=None), [-4.5])
    gaussian = tiny.tiny_gaussian_policy()
    np.testing.assert_allclose(reduced(gaussian), [-4.5 / 4])


def test_the_clamp_of_the_reference_is_an_option():
    np.testing.assert_allclose(reduced(executed=1, bound_entries=False), [-5.0])
    bounds = dict(bound_entries=False, log_prob_bounds=(-1.0, 1.0))
    np.testing.assert_allclose(reduced(**bounds), [-1.0])
    bounds["log_prob_bounds"] = None
    np.testing.assert_allclose(reduced(**bounds), [-4.5])
    with pytest.raises(ValueError, match="bound_entries=True .* mixture .* None"):
        reduced(bound_entries=True)


def test_nearly_nothing_is_learnt_where_the_reference_clamps():
    """Narrow modes have joint log-probabilities above the upper bound."""

    def change(**changes):
        policy = tiny.tiny_gmm_policy(fixed_std=0.001)
        algorithm = tiny.make_tiny_ppo(policy, epochs=1, batch_size=16, **changes)
        return tiny.run(algorithm, 1)[1][0]["params_change"]

    assert change(bound_entries=False) == 0 < change()


def test_penalties_are_of_whole_chunks():
    policy = tiny.tiny_gmm_policy()
    changes = dict(clone_coef=1.0, entropy_coef=0.5, epochs=1, batch_size=16)
    _, (row,) = tiny.run(tiny.make_tiny_ppo(policy, **changes), 1)
    # Two entries with a standard deviation of 0.5, and what the modes add.
    least = tiny.CHUNK * np.log(0.5 * np.sqrt(2 * np.pi * np.e))
    assert least - 1e-4 < row["entropy"] < least + np.log(3)
    # Minus the log-probability of the teacher's chunks is near their entropy.
    assert row["cloning_penalty"] == pytest.approx(row["entropy"], abs=1.0)


@pytest.mark.parametrize("minibatch", ["pair", "chain"])
def test_a_mixture_learns_where_the_reward_is(minibatch):
    """One-step episodes with reward -(a - 0.5)^2."""
    policy = tiny.tiny_gmm_policy(fixed_std=0.2)
    changes = dict(num_envs=64, batch_size=128, epochs=4, clip_top=0.2, clip_base=0.2)
    algorithm = tiny.make_tiny_ppo(policy, minibatch=minibatch, **changes)
    _, rows = tiny.run(algorithm, 15)
    before, after = (
        np.mean([row["reward"] for row in r]) for r in (rows[:2], rows[-2:])
    )
    assert after > 0.6 * before and after > before + 0.05


def test_micro_batches_change_nothing():
    """A minibatch in parts is the minibatch."""
    one, other = (
        tiny.make_tiny_ppo(
            tiny.tiny_gmm_policy(), batch_size=16, epochs=1, micro_batch_size=size
        )
        for size in (16, 4)
    )
    (state, _), (again, _) = (tiny.run(algorithm, 1) for algorithm in (one, other))
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(again.params)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
