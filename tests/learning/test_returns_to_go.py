"""Returns-to-go belong to their transitions, whenever episodes end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.evaluate import make_evaluate
from dppo_jax.learning.returns_to_go import returns_to_go
from tests import demonstrated, tiny

DISCOUNT = 0.9


def expected(reward, ended):
    """Plain loops over [T] of one environment."""
    result = np.full(len(reward), -np.inf)
    for t in range(len(reward)):
        end = next((u for u in range(t, len(reward)) if ended[u]), None)
        if end is not None:
            powers = DISCOUNT ** np.arange(end - t + 1)
            result[t] = (powers * reward[t : end + 1]).sum()
    return result


def test_returns_are_sums_to_the_end_of_their_own_episode():
    """The last step has no end after it, so its return is unknown."""
    reward = jnp.array([[1.0], [2.0], [4.0], [8.0], [16.0]])
    ended = jnp.array([[0.0], [1.0], [0.0], [1.0], [0.0]])
    result = returns_to_go(reward, ended, discount=0.5)
    np.testing.assert_allclose(result[:, 0], [2.0, 2.0, 8.0, 8.0, -np.inf])
    # A discount of zero leaves the rewards.
    result = returns_to_go(reward, ended, discount=0.0)
    np.testing.assert_allclose(result[:, 0], [1.0, 2.0, 4.0, 8.0, -np.inf])


def stored(state):
    """(obs, reward, ended, return) of each ring, the oldest first."""
    replay = jax.tree.map(np.asarray, state.replay)
    items, length = replay.items, replay.items.reward.shape[1]
    for ring in range(len(replay.size)):
        size = replay.size[ring]
        slot = (replay.head - size + np.arange(size)) % length
        yield (
            items.obs["state"][ring, slot],
            items.reward[ring, slot],
            np.maximum(items.terminated, items.truncated)[ring, slot],
            items.extras["return_to_go"][ring, slot],
        )


@pytest.mark.parametrize("rollout", [{}, dict(num_chunks=8, reset_at_iteration=True)])
def test_stored_returns_stay_aligned_over_iterations_wraps_and_resets(
    rollout, monkeypatch
):
    """Episodes have 2 or 8 chunks, iterations 4 or 8, and rings 13."""
    demonstrated.without_learning("calql", monkeypatch)
    env = tiny.point_env(4, lengths=(3, 99), max_steps=16)
    algorithm = demonstrated.make(
        "calql",
        env,
        discount=DISCOUNT,
        offline_iterations=1,
        replay__capacity=52,
        rollout=rollout,
    )
    evaluate = make_evaluate(env, algorithm.act, num_episodes=4)
    state, programs = demonstrated.start("calql", algorithm), tiny.compiled(algorithm)
    for iteration in range(8):
        state, _ = tiny.iterate(programs, state)
        # An evaluation of the same environments between two iterations changes nothing.
        evaluate(algorithm.params(state), jax.random.key(iteration))
        for _, reward, ended, result in stored(state):
            np.testing.assert_allclose(result, expected(reward, ended), rtol=1e-5)
    known = np.concatenate([np.isfinite(row[3]) for row in stored(state)])
    assert known.any() and (rollout or not known.all())
    assert (state.replay.size == 13).all()


def test_demonstrations_bring_their_own_returns():
    algorithm = demonstrated.make("calql", discount=DISCOUNT)
    items = demonstrated.start("calql", algorithm).offline.items
    result = np.asarray(items.extras["return_to_go"][0])
    # Chunks of 2 from each of the 6 steps, with 0.5 for every step.
    first = [1 + 0.9 + 0.81, 1 + 0.9 + 0.81 * 0.5, 1.9, 1 + 0.45, 1.0, 0.5]
    np.testing.assert_allclose(result[:6], first, rtol=1e-6)
