"""Laws of the windows that training draws from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.demonstrations import Episodes, gather, summary, windows

# Two episodes of 3 and 2 steps; state i is [i], action i is [10 i].
STEPS = np.arange(5, dtype=np.float32)[:, None]
NOT_A_NUMBER = np.where(STEPS == 1, np.nan, STEPS)
EPISODES = Episodes({"state": STEPS}, 10 * STEPS, np.array([3, 2]))


def batch(samples, index=None):
    index = jnp.arange(samples.size) if index is None else jnp.asarray(index)
    obs, actions = gather(samples, index)
    return obs["state"][..., 0].tolist(), actions[..., 0].tolist()


def test_windows_stay_within_one_episode():
    state, actions = batch(windows(EPISODES, chunk=2))
    assert state == [[0], [1], [3]]
    assert actions == [[0, 10], [10, 20], [30, 40]]


def test_history_repeats_the_first_observation_and_ends_with_the_latest():
    state, _ = batch(windows(EPISODES, chunk=1, history=3))
    assert state == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [3, 3, 3], [3, 3, 4]]


def test_episodes_shorter_than_the_chunk_give_no_window():
    assert batch(windows(EPISODES, chunk=3)) == ([[0]], [[0, 10, 20]])
    with pytest.raises(ValueError, match="chunk=4 .*the longest has 3 steps"):
        windows(EPISODES, chunk=4)


def test_images_have_their_own_history():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None]
    episodes = EPISODES._replace(observations={"state": STEPS, "rgb": images})
    samples = windows(episodes, chunk=1, history=3, image_history=2)
    obs, _ = gather(samples, jnp.array([2]))
    assert obs["state"].shape == (1, 3, 1) and obs["rgb"].dtype == jnp.uint8
    assert obs["rgb"].ravel().tolist() == [1, 2]


def test_gathering_inside_jit_changes_nothing():
    samples = windows(EPISODES, chunk=2, history=2)
    jitted = jax.jit(gather)(samples, jnp.array([2, 0]))
    for ours, theirs in zip(
        jax.tree.leaves(jitted), jax.tree.leaves(gather(samples, jnp.array([2, 0])))
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(episode_lengths=np.array([3, 3])), "add up to 6 steps, but there are 5"),
        (dict(episode_lengths=np.array([5, 0])), "episode 1 has length 0"),
        (dict(episode_lengths=np.array([2.5, 2.5])), "vector of integers"),
        (dict(episode_lengths=np.array([], int)), "empty"),
        (dict(actions=STEPS[:4]), r"state \(5, 1\) must have 2 axes, .* 4 steps"),
        (dict(actions=NOT_A_NUMBER), r"actions has NaN .* 1 of 5 rows, first \[1\]"),
        (dict(observations={"pixels": STEPS}), r"\['pixels'\] must hold state"),
        (dict(rewards=np.full(5, np.inf)), "rewards has NaN or infinite values in 5"),
    ],
)
def test_inconsistent_episodes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        windows(EPISODES._replace(**change), chunk=1)


@pytest.mark.parametrize(
    "options", [dict(chunk=0), dict(history=0), dict(image_history=2)]
)
def test_lengths_of_windows_must_make_sense(options):
    with pytest.raises(ValueError, match=next(iter(options)) + "="):
        windows(EPISODES, **{"chunk": 1} | options)


def test_summary_names_sizes_lengths_and_returns():
    episodes = EPISODES._replace(rewards=np.ones(5), terminals=np.arange(5) == 2)
    assert summary(episodes).splitlines() == [
        "2 episodes, 5 steps (shortest 2, mean 2.5, longest 3)",
        "state [1], from 0 to 4",
        "action [1], from 0 to 40",
        "return 2.5 +- 0.5 (from 2 to 3)",
        "1 episodes ended by themselves",
        "bounds in task units: unknown",
    ]
