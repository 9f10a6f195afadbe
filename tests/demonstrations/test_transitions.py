"""Chunked transitions, compared with hand-made ones and with loops in Python."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dppo_jax import load_demonstrations
from dppo_jax.demonstrations import Episodes, chunked_transitions, windows
from tests.demonstrations.raw import RAW

# The task ended the first episode of 3 steps; the second, of 2, was cut off. Step i has
# the observation [i] and the action [10 i]. The rewards are 1, 2, 4, 8, 16.
STEPS = np.arange(5, dtype=np.float32)[:, None]
EPISODES = Episodes(
    {"state": STEPS},
    actions=10 * STEPS,
    episode_lengths=np.array([3, 2]),
    rewards=2.0 ** np.arange(5, dtype=np.float32),
    terminals=np.arange(5) == 2,
)


def columns(episodes=EPISODES, **settings):
    """The fields as lists; states and actions as their only entry."""
    made = chunked_transitions(episodes, **{"discount": 0.5} | settings)
    return {
        "obs": made.obs["state"][..., 0].tolist(),
        "action": made.action[..., 0].tolist(),
        "reward": made.reward.tolist(),
        "next_obs": made.next_obs["state"][..., 0].tolist(),
        "terminated": made.terminated.tolist(),
        "truncated": made.truncated.tolist(),
        "return_to_go": made.return_to_go.tolist(),
    }


def test_chunks_at_every_step_by_hand():
    assert columns(chunk=2) == {
        "obs": [[0], [1], [2], [3], [4]],
        "action": [[0, 10], [10, 20], [20, 20], [30, 40], [40, 40]],
        "reward": [3, 6, 4, 24, 16],
        "next_obs": [[2], [2], [2], [4], [4]],
        "terminated": [0, 1, 1, 0, 0],
        "truncated": [0, 0, 0, 1, 1],
        "return_to_go": [3 + 0.5 * 4, 6, 4, 24, 16],
    }


def test_chunks_one_after_another_by_hand():
    assert columns(chunk=2, stride=2, history=2) == {
        "obs": [[0, 0], [1, 2], [3, 3]],
        "action": [[0, 10], [20, 20], [30, 40]],
        "reward": [3, 4, 24],
        "next_obs": [[1, 2], [1, 2], [3, 4]],
        "terminated": [0, 1, 0],
        "truncated": [0, 0, 1],
        "return_to_go": [5, 4, 24],
    }


def test_single_steps_by_hand():
    found = columns(chunk=1)
    assert found["next_obs"] == [[1], [2], [2], [4], [4]]
    assert found["terminated"] == [0, 0, 1, 0, 0]
    assert found["truncated"] == [0, 0, 0, 0, 1]
    assert found["return_to_go"] == [1 + 0.5 * (2 + 0.5 * 4), 4, 4, 16, 16]


def test_rewards_within_a_chunk_are_discounted_if_asked():
    found = columns(chunk=2, step_discount=0.25)
    assert found["reward"] == [1.5, 3, 4, 12, 16]
    assert found["return_to_go"] == [1.5 + 0.5 * 4, 3, 4, 12, 16]


def test_without_the_last_step_of_a_cut_episode_next_observations_are_true():
    found = columns(chunk=1, drop_unfollowed=True)
    assert found["obs"] == [[0], [1], [2], [3]]  # The task's own end is kept.
    assert found["next_obs"] == [[1], [2], [2], [4]]
    assert found["truncated"] == [0, 0, 0, 1]
    assert found["return_to_go"][-1] == 8
    # An episode of one step has nothing left.
    single = EPISODES._replace(episode_lengths=np.array([3, 1, 1]))
    assert len(columns(single, chunk=2, drop_unfollowed=True)["reward"]) == 3


def test_unknown_ends_bootstrap():
    found = columns(EPISODES._replace(terminals=None), chunk=3, stride=3)
    assert found["terminated"] == [0, 0] and found["truncated"] == [1, 1]


def test_only_a_terminal_at_the_last_step_ends_an_episode():
    early = EPISODES._replace(terminals=np.arange(5) == 1)
    assert columns(early, chunk=3)["terminated"] == 5 * [0]


def test_images_have_their_own_history_and_stay_bytes():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None]
    episodes = EPISODES._replace(observations={"state": STEPS, "rgb": images})
    made = chunked_transitions(
        episodes, chunk=2, discount=1.0, history=3, image_history=2
    )
    assert made.obs["rgb"].dtype == np.uint8 and made.obs["state"].shape == (5, 3, 1)
    assert made.obs["rgb"][1].ravel().tolist() == [0, 1]
    assert made.next_obs["rgb"][0].ravel().tolist() == [1, 2]


def slow(episodes, *, chunk, history, stride, discount, step_discount, drop):
    """The same, one step after another."""
    rows, begin = [], 0
    for length in episodes.episode_lengths.tolist():
        ended = bool(episodes.terminals[begin + length - 1])
        state = [float(x) for x in episodes.observations["state"][begin:][:length, 0]]
        action = [float(x) for x in episodes.actions[begin:][:length, 0]]
        reward = [float(x) for x in episodes.rewards[begin:][:length]]
        begin += length
        if drop and not ended:
            action, reward = action[:-1], reward[:-1]

        def seen(latest):
            return [state[max(latest - i, 0)] for i in reversed(range(history))]

        def earned(start):
            return sum(
                step_discount**i * r for i, r in enumerate(reward[start:][:chunk])
            )

        for start in range(0, len(action), stride):
            taken = action[start:][:chunk]
            over = start + chunk >= len(action)
            rows.append(
                (
                    seen(start),
                    taken + (chunk - len(taken)) * [taken[-1]],
                    earned(start),
                    seen(min(start + chunk, len(state) - 1)),
                    over and ended,
                    over and not ended,
                    sum(
                        discount**i * earned(later)
                        for i, later in enumerate(range(start, len(action), chunk))
                    ),
                )
            )
    return rows


@st.composite
def any_episodes(draw):
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    total = sum(lengths)
    entries = st.lists(st.integers(-9, 9), min_size=total, max_size=total)
    flags = st.lists(st.booleans(), min_size=total, max_size=total)
    return Episodes(
        {"state": np.array(draw(entries), np.float32)[:, None]},
        actions=np.array(draw(entries), np.float32)[:, None],
        episode_lengths=np.array(lengths),
        rewards=np.array(draw(entries), np.float32),
        terminals=np.array(draw(flags)),
    )


@given(
    any_episodes(),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.9, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.booleans(),
)
def test_transitions_are_those_of_a_slow_loop(
    episodes, chunk, history, stride, discount, step_discount, drop
):
    settings = dict(
        chunk=chunk,
        history=history,
        stride=min(stride, chunk),
        discount=discount,
        step_discount=step_discount,
    )
    expected = slow(episodes, **settings, drop=drop)
    if not expected:
        with pytest.raises(ValueError, match="drop_unfollowed=True leaves nothing"):
            chunked_transitions(episodes, **settings, drop_unfollowed=drop)
        return
    found = columns(episodes, **settings, drop_unfollowed=drop)
    for (name, values), column in zip(found.items(), zip(*expected), strict=True):
        np.testing.assert_allclose(values, column, atol=1e-4, err_msg=name)


@given(any_episodes(), st.integers(1, 4))
def test_with_a_stride_of_a_chunk_transitions_follow_each_other(episodes, chunk):
    made = chunked_transitions(episodes, chunk=chunk, stride=chunk, discount=1.0)
    over = (made.terminated + made.truncated) > 0
    assert over.sum() == len(episodes.episode_lengths)
    goes_on = np.flatnonzero(~over)
    np.testing.assert_array_equal(
        made.next_obs["state"][goes_on], made.obs["state"][goes_on + 1]
    )
    assert made.reward.sum() == episodes.rewards.sum()


@given(any_episodes(), st.integers(1, 4), st.integers(1, 3))
def test_full_chunks_are_the_windows_of_cloning(episodes, chunk, history):
    if chunk > episodes.episode_lengths.max():
        return
    made = chunked_transitions(episodes, chunk=chunk, history=history, discount=1.0)
    cloned = windows(episodes, chunk=chunk, history=history)
    full = np.concatenate(
        [np.arange(n) <= n - chunk for n in episodes.episode_lengths.tolist()]
    )
    np.testing.assert_array_equal(
        made.action[full], np.asarray(cloned.actions)[np.asarray(cloned.action_rows)]
    )
    state = np.asarray(cloned.observations["state"])
    rows = np.asarray(cloned.observation_rows["state"])
    np.testing.assert_array_equal(made.obs["state"][full], state[rows])


@pytest.mark.parametrize(
    "episodes, settings, message",
    [
        (RAW._replace(rewards=None), {}, "have no rewards.*experiments.collect"),
        (RAW._replace(rewards=np.ones(4)), {}, "rewards .4,. must have 1 axes"),
        (RAW, dict(chunk=0), "chunk=0"),
        (RAW, dict(history=0), "history=0"),
        (RAW, dict(image_history=2), "image_history=2"),
        (RAW, dict(stride=3), "stride=3 must lie between 1 and chunk=2"),
        (RAW, dict(stride=0), "stride=0"),
        (RAW, dict(discount=1.01), "discount=1.01"),
        (RAW, dict(step_discount=-0.1), "step_discount=-0.1"),
    ],
)
def test_contradictory_settings_are_refused(episodes, settings, message):
    with pytest.raises(ValueError, match=message):
        chunked_transitions(episodes, **{"chunk": 2, "discount": 0.9} | settings)


def test_recorded_hopper_keeps_its_returns(demos_dir):
    path = demos_dir / "locomotion" / "hopper_sac.hdf5"
    episodes = load_demonstrations(path, max_episodes=20)
    lengths = episodes.episode_lengths
    made = chunked_transitions(episodes, chunk=4, stride=4, discount=1.0)
    first = np.cumsum(-(-lengths // 4)) - -(-lengths // 4)
    total = np.add.reduceat(episodes.rewards, np.cumsum(lengths) - lengths)
    np.testing.assert_allclose(made.return_to_go[first], total, rtol=1e-5)
    ended = episodes.terminals[np.cumsum(lengths) - 1]
    assert made.terminated.sum() == ended.sum()
    assert made.truncated.sum() == (~ended).sum()
