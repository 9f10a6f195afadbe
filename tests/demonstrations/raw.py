"""Two tiny episodes in task units, and a comparison of data sets."""

import numpy as np

from dppo_jax.demonstrations import Episodes, unnormalize_episodes

# Episodes of 3 and 2 steps; the task ended the first one, a time limit the second.
STATE = np.arange(10, dtype=np.float32).reshape(5, 2) / 4
ACTIONS = np.array([[0.0], [1.0], [-2.0], [3.0], [4.0]], np.float32)
LENGTHS = np.array([3, 2])
REWARDS = np.arange(5, dtype=np.float32)
TERMINALS = np.arange(5) == 2
RAW = Episodes({"state": STATE}, ACTIONS, LENGTHS, REWARDS, TERMINALS)


def assert_same(first: Episodes, second: Episodes, atol: float = 1e-6) -> None:
    """Assert that both hold the same episodes in task units, up to rounding."""
    a, b = unnormalize_episodes(first), unnormalize_episodes(second)
    assert a.episode_lengths.tolist() == b.episode_lengths.tolist()
    np.testing.assert_allclose(
        a.observations["state"], b.observations["state"], atol=atol
    )
    np.testing.assert_allclose(a.actions, b.actions, atol=atol)
    for name in ("rewards", "terminals"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    arrays = [a.observations["state"], a.actions]
    arrays += [] if a.rewards is None else [a.rewards]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}
