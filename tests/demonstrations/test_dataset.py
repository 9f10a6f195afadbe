"""Properties of the windows that training draws from, and of data sets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.demonstrations import (
    Episodes,
    concatenate,
    gather,
    normalize_episodes,
    select_episodes,
    split_episodes,
    summary,
    unnormalize_episodes,
    windows,
)
from dppo_jax.demonstrations.dataset import thin_episodes
from dppo_jax.errors import SettingsError
from tests.demonstrations.raw import RAW, assert_same

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
        (dict(actions=STEPS[:4]), r"state \(5, 1\) must have 2 axes, .* length 4"),
        (dict(actions=NOT_A_NUMBER), r"actions has NaN .* 1 of 5 rows, first \[1\]"),
        (dict(episode_lengths=[2, 3]), "lengths must be an array, not list; convert"),
        (dict(observations=STEPS), "pass dppo_jax.Episodes with a dictionary of obs"),
        (dict(observations={"pixels": STEPS}), r"\['pixels'\] must be state"),
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


def test_summary_tells_bounds_and_counts_episodes_that_ended_not_flags():
    episodes = normalize_episodes(EPISODES)._replace(terminals=np.arange(5) < 3)
    assert summary(episodes).splitlines()[-2:] == [
        "1 episodes ended by themselves",
        "bounds in task units: state from 0 to 4, action from 0 to 40",
    ]


def test_normalised_episodes_span_the_interval_and_come_back():
    episodes = normalize_episodes(RAW)
    for array in (episodes.observations["state"], episodes.actions):
        np.testing.assert_allclose(array.min(axis=0), -1, atol=1e-6)
        np.testing.assert_allclose(array.max(axis=0), 1, atol=2e-6)
    assert_same(episodes, RAW)
    assert normalize_episodes(episodes) is episodes
    assert unnormalize_episodes(RAW) is RAW


def test_selected_episodes_keep_their_rows_together():
    back = select_episodes(RAW, np.array([1, 0]))
    assert back.episode_lengths.tolist() == [2, 3]
    assert back.rewards.tolist() == [3, 4, 0, 1, 2]
    assert_same(select_episodes(back, np.array([1, 0])), RAW)


def test_concatenating_undoes_selecting():
    parts = [select_episodes(RAW, np.array([i])) for i in range(2)]
    assert_same(concatenate(parts, "parts"), RAW)
    without = [parts[0], parts[1]._replace(rewards=None)]
    assert concatenate(without, "parts").rewards is None
    with pytest.raises(
        ValueError, match="parts: episode 1 has sizes .*different tasks"
    ):
        concatenate([RAW, EPISODES], "parts")
    with pytest.raises(ValueError, match="parts holds no episodes"):
        concatenate([], "parts")


@pytest.mark.parametrize("num, kept", [(1, [1]), (3, [1, 3, 5]), (7, range(1, 8))])
def test_a_part_of_the_episodes_is_evenly_spaced(num, kept):
    """Seven episodes of 1 to 7 steps."""
    lengths = np.arange(1, 8)
    steps = np.repeat(lengths, lengths).astype(np.float32)[:, None]
    part = thin_episodes(Episodes({"state": steps}, steps, lengths), num)
    assert part.episode_lengths.tolist() == list(kept)
    np.testing.assert_array_equal(part.actions[:, 0], np.repeat(kept, kept))


@pytest.mark.parametrize("num", [0, 3])
def test_more_episodes_than_there_are_are_refused(num):
    with pytest.raises(SettingsError, match=f"num_episodes={num} must .* the 2 epis"):
        thin_episodes(RAW, num)


def split_ids(fraction, seed, total=10):
    """Ten episodes of 1 to 10 steps, identified by their lengths."""
    lengths = np.arange(1, total + 1)
    steps = np.repeat(lengths, lengths).astype(np.float32)[:, None]
    parts = split_episodes(Episodes({"state": steps}, steps, lengths), fraction, seed)
    for part in parts:
        expected = np.repeat(part.episode_lengths, part.episode_lengths)
        np.testing.assert_array_equal(part.actions[:, 0], expected)
    return [part.episode_lengths.tolist() for part in parts]


def test_a_split_takes_whole_episodes_and_every_one_once():
    train, validation = split_ids(0.2, seed=0)
    assert len(validation) == 2 and sorted(train + validation) == list(range(1, 11))
    assert train == sorted(train)
    assert split_ids(0.2, seed=0) == [train, validation]
    assert any(split_ids(0.2, seed=seed)[1] != validation for seed in (1, 2, 3))


def test_a_split_leaves_neither_side_empty():
    assert [len(part) for part in split_ids(0.001, seed=0)] == [9, 1]
    assert [len(part) for part in split_ids(0.999, seed=0)] == [1, 9]
    for fraction, total in [(0.0, 10), (1.0, 10), (0.5, 1)]:
        with pytest.raises(
            ValueError, match=f"fraction={fraction} of {total} episodes"
        ):
            split_ids(fraction, 0, total)
