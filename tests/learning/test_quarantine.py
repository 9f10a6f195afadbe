"""Steps in which a simulation broke are not learned from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.learning.quarantine import (
    cut_newest,
    sound_transitions,
    without_diverged,
)
from dppo_jax.learning.returns import gae
from dppo_jax.rollout import episode_means
from dppo_jax.types import Transition
from tests import breaking, tiny
from tests.tiny_regression import make_tiny_dawr


@pytest.mark.parametrize(
    "diverged, expected",
    [
        ([0, 0, 0, 0], [0, 1, 2, 3]),
        ([0, 1, 1, 0], [0, 0, 0, 3]),
        ([1, 1, 0, 1], [2, 2, 2, 2]),
        ([1, 1, 1, 1], [0, 1, 2, 3]),
    ],
)
def test_a_sound_row_stands_in_the_place_of_a_broken_one(diverged, expected):
    rows = {"x": jnp.arange(4), "y": jnp.arange(8.0).reshape(4, 2)}
    found = without_diverged(rows, jnp.array(diverged, jnp.float32))
    np.testing.assert_array_equal(found["x"], expected)
    np.testing.assert_array_equal(found["y"][:, 0], 2.0 * np.array(expected))
    assert without_diverged(rows, None) is rows


def test_a_buffer_gets_no_broken_transition_and_no_sum_across_it():
    """Environment 1 broke in step 1: it gets that of environment 0, on its own."""
    x = jnp.arange(6.0).reshape(3, 2)
    zero = jnp.zeros((3, 2))
    rows = Transition({"state": x}, x, x, {"state": x}, zero, zero, ())
    diverged = zero.at[1, 1].set(1.0)
    found = sound_transitions(rows._replace(truncated=diverged), diverged)
    np.testing.assert_array_equal(found.reward, [[0, 1], [2, 2], [4, 5]])
    np.testing.assert_array_equal(found.truncated, [[0, 1], [0, 1], [0, 0]])
    np.testing.assert_array_equal(found.terminated, zero)


@pytest.mark.parametrize(
    "make", [tiny.make_tiny_sac, make_tiny_dawr], ids=["sac", "dawr"]
)
def test_a_step_that_breaks_at_once_cuts_the_episode_that_is_stored(make):
    """Each iteration has one chunk, and the second chunk breaks."""
    algorithm = make(env=breaking.breaking_env(8), num_chunks=1)
    state = algorithm.init(jax.random.key(0))
    breaks = np.asarray(state.env.env.env.env.breaks)
    assert 0 < breaks.sum() < 8
    collect = tiny.compiled(algorithm)[0]
    state = collect(collect(state)[0])[0]
    replay = state.replay if hasattr(state, "replay") else state.memory.replay
    np.testing.assert_array_equal(replay.items.truncated[:, 0], breaks)
    np.testing.assert_array_equal(replay.items.truncated[:, 1], breaks)
    # Nothing is cut twice, and not where an episode has terminated.
    ended = replay._replace(items=replay.items._replace(terminated=replay.items.reward))
    assert cut_newest(ended, jnp.ones((1, 8))).items.truncated.sum() == 2 * breaks.sum()
    assert cut_newest(replay, None) is replay


def test_the_step_before_bootstraps_from_the_value_where_it_broke():
    """A_0 = r_0 + discount V(s_1) - V(s_0) and A_1 = 0, whatever is at step 1."""
    reward, value = jnp.array([[2.0], [jnp.nan]]), jnp.array([[3.0], [5.0]])
    flag = jnp.array([[0.0], [1.0]])
    advantage, target = gae(
        reward,
        value,
        jnp.array([[5.0], [jnp.nan]]),
        jnp.zeros((2, 1)),
        flag,
        diverged=flag,
        discount=0.9,
        gae_lambda=0.5,
    )
    np.testing.assert_allclose(advantage[:, 0], [2 + 0.9 * 5 - 3, 0.0], rtol=1e-6)
    np.testing.assert_allclose(target[:, 0], [2 + 0.9 * 5, 5.0], rtol=1e-6)


def test_the_value_of_a_terminal_observation_cannot_poison_advantages():
    value, end = jnp.array([[3.0]]), jnp.array([[1.0]])
    advantage, _ = gae(
        value, value, jnp.array([[jnp.nan]]), end, 0 * end, discount=0.9, gae_lambda=1
    )
    assert advantage == 0.0  # 3 - 3


def test_broken_episodes_are_counted_and_not_averaged():
    done = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    reward = jnp.array([[4.0, 8.0], [2.0, 3.0]])  # 8 before it broke.
    obs = {"state": jnp.ones((2, 2, 1, 1))}
    broken = jnp.array([[0.0, 1.0], [0.0, 0.0]])
    done = jnp.maximum(done, broken)

    def means(diverged):
        metrics = {"score": jnp.array([[5.0, 9.0], [9.0, 7.0]]), "diverged": diverged}
        metrics["contacts_full"] = jnp.array([[0.0, 0.0], [48.0, 0.0]])
        metrics["action_noise"] = jnp.full((2, 2), 0.25)
        metrics["bin_full"] = jnp.array([[1.0, 9.0], [9.0, 0.0]])  # Of a task.
        return episode_means(done, reward, obs, metrics)

    found = means(broken)
    assert found["diverged"] == 1 and found["num_episodes"] == 2
    # Also of an episode that goes on.
    assert found["contacts_full"] == 48
    assert found["bin_full"] == 0.5
    assert found["score"] == 6.0 and found["reward"] == 3.0
    np.testing.assert_allclose(found["reward_std"], np.std([4.0, 2.0, 3.0]), rtol=1e-6)
    nothing = means(jnp.ones((2, 2)))
    assert nothing["num_episodes"] == 0 and np.isnan(nothing["reward"])
    assert nothing["action_noise"] == 0.25 and np.isnan(nothing["bin_full"])


def is_sound(state):
    leaves = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return all(np.isfinite(x).all() for x in leaves)


@pytest.mark.parametrize(
    "make", [tiny.make_tiny_ppo, tiny.make_tiny_sac], ids=["ppo", "sac"]
)
def test_training_survives_environments_that_break_in_every_iteration(make):
    """Parameters, optimizers, reward scale, and the replay buffer stay finite.

    A chunk breaks after its first action, whose reward must not count.
    """
    algorithm = make(env=breaking.breaking_env(8, breaks_at=2 * tiny.CHUNK))
    state, rows = tiny.run(algorithm, 3)
    assert sum(row["diverged"] for row in rows) > 3
    assert all(np.isfinite(row[name]) for row in rows for name in algorithm.finite)
    assert all(row["reward"] == 2.0 for row in rows)  # Of chunks of two.
    assert is_sound(state._replace(env=()))  # The fault itself may be in there.
    if hasattr(state, "replay"):
        assert (state.replay.items.reward[:, : state.replay.head] == 2.0).all()
        return
    _, steps, row = tiny.compiled(algorithm)[0](state)
    assert row["diverged"] > 0 and (steps.advantage != 0).all()


def test_training_runs_while_jax_looks_for_nans():
    """No episode ends in one chunk, so the means over episodes are empty."""
    algorithm = tiny.make_tiny_ppo(
        env=tiny.point_env(8, lengths=(99,), max_steps=8), num_chunks=2
    )
    with jax.debug_nans(True):
        state = algorithm.init(jax.random.key(0))
        _, metrics = jax.jit(algorithm.step)(state)
    assert metrics["num_episodes"] == 0 and metrics["episode_return"] == np.inf
    assert all(np.isfinite(metrics[name]) for name in algorithm.finite)


@pytest.mark.slow
def test_a_broken_environment_among_64_does_not_change_what_is_learned():
    """In every iteration about one of them returns NaN in its third step."""

    def learned(share):
        env = breaking.breaking_env(64, share=share, rewards_goal=True)
        changes = dict(
            batch_size=128, epochs=4, clip_top=0.2, clip_base=0.2, discount=0.0
        )
        algorithm = tiny.make_tiny_ppo(tiny.tiny_gaussian_policy(), env, **changes)
        _, rows = tiny.run(algorithm, 80)
        broken = sum(row["diverged"] for row in rows)
        return rows[0]["reward"], np.mean([r["reward"] for r in rows[-5:]]), broken

    start, whole, none = learned(0.0)
    _, among, broken = learned(1 / 64)
    assert none == 0 and 40 < broken < 160
    # The spread of exploration alone costs 2 x 0.2^2.
    assert start < -1.0 and whole > -0.2 and abs(among - whole) < 0.05, (whole, among)
