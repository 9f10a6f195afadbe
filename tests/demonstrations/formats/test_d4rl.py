"""Reading and writing of D4RL's flat tables."""

import h5py
import numpy as np
import pytest

from dppo_jax.demonstrations import (
    load_d4rl,
    load_demonstrations,
    load_dppo_npz,
    save_d4rl,
    windows,
)
from tests.demonstrations.raw import ACTIONS, RAW, REWARDS, STATE, assert_same

TABLES = dict(
    observations=STATE.astype(np.float64),
    actions=ACTIONS,
    rewards=REWARDS,
    terminals=np.array([0, 0, 1, 0, 0], bool),
    timeouts=np.array([0, 0, 0, 0, 1], bool),
)
NOT_A_NUMBER = np.where(STATE == STATE[4, 1], np.nan, STATE)


def write(path, **changes):
    with h5py.File(path, "w") as file:
        for name, table in (TABLES | changes).items():
            if table is not None:
                file[name] = table
    return path


def test_an_episode_ends_at_a_terminal_or_a_timeout(tmp_path):
    path = write(tmp_path / "data.hdf5", **{"infos/qpos": np.full(3, np.nan)})
    assert_same(load_d4rl(path), RAW)


def test_flags_may_be_numbers_and_columns(tmp_path):
    columns = {
        name: TABLES[name].astype(np.float32)[:, None]
        for name in ("rewards", "terminals", "timeouts")
    }
    assert_same(load_d4rl(write(tmp_path / "data.hdf5", **columns)), RAW)


def test_the_last_unfinished_episode_is_left_out(tmp_path):
    path = write(tmp_path / "data.hdf5", timeouts=np.zeros(5, bool))
    episodes = load_d4rl(path)
    assert episodes.episode_lengths.tolist() == [3]
    assert len(episodes.actions) == len(episodes.rewards) == 3
    assert episodes.terminals.tolist() == [False, False, True]


def test_only_rows_that_are_kept_are_read(tmp_path):
    """NaN in the second episode is no error if only the first one is read."""
    path = write(tmp_path / "data.hdf5", observations=NOT_A_NUMBER)
    assert load_d4rl(path, 1).episode_lengths.tolist() == [3]
    with pytest.raises(ValueError, match=r"state has NaN .* 1 of 5 rows, first \[4\]"):
        load_d4rl(path)


def test_rewards_are_optional(tmp_path):
    assert load_d4rl(write(tmp_path / "data.hdf5", rewards=None)).rewards is None


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(actions=None), "lacks actions; it holds observations, rewards"),
        (dict(timeouts=None), "lacks timeouts"),
        (dict(actions=ACTIONS[:4]), "actions has 4 rows, but terminals has 5"),
        (dict(rewards=np.zeros(6)), "rewards has 6 rows, but terminals has 5"),
        (dict(actions=ACTIONS[:, 0]), r"actions \(5,\) must have 2 axes"),
        (dict(rewards=np.zeros((5, 2))), r"rewards \(5, 2\) must have one entry"),
        (dict(actions=np.array([b"a"] * 5)), "actions has type .*must hold numbers"),
        (
            dict(actions=np.full((5, 1), np.inf)),
            r"5 of 5 rows, first \[0, 1, 2, 3, 4\]",
        ),
        (
            {name: table[:0] for name, table in TABLES.items()},
            "none of the 0 steps has terminals or timeouts",
        ),
        (
            dict(timeouts=np.zeros(5, bool), terminals=np.zeros(5, bool)),
            "none of the 5 steps has terminals or timeouts set",
        ),
    ],
)
def test_damage_is_named_in_one_line_with_the_file(tmp_path, change, message):
    path = write(tmp_path / "data.hdf5", **change)
    with pytest.raises(ValueError, match=message) as error:
        load_d4rl(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="absent.hdf5 does not exist"):
        load_d4rl(tmp_path / "absent.hdf5")
    with pytest.raises(ValueError, match="is a folder, not an HDF5 file"):
        load_d4rl(tmp_path)
    whole = write(tmp_path / "data.hdf5").read_bytes()
    (tmp_path / "half.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="half.hdf5 is not a readable HDF5 file"):
        load_d4rl(tmp_path / "half.hdf5")
    with pytest.raises(ValueError, match="max_episodes=0 must be at least 1"):
        load_d4rl(tmp_path / "data.hdf5", 0)


def test_written_data_read_back_the_same(tmp_path):
    save_d4rl(tmp_path / "data.hdf5", RAW)
    assert_same(load_d4rl(tmp_path / "data.hdf5"), RAW)
    with h5py.File(tmp_path / "data.hdf5") as file:
        assert sorted(file) == sorted(TABLES)
        assert file["timeouts"][:].tolist() == TABLES["timeouts"].tolist()
    with pytest.raises(ValueError, match="data.hdf5 exists; remove it"):
        save_d4rl(tmp_path / "data.hdf5", RAW)


def test_data_that_the_format_cannot_hold_are_not_written(tmp_path):
    early = RAW._replace(terminals=np.arange(5) == 1)
    with pytest.raises(ValueError, match=r"within episodes in 1 rows, first \[1\]"):
        save_d4rl(tmp_path / "data.hdf5", early)
    images = {"state": STATE, "rgb": np.zeros((5, 4, 4, 3), np.uint8)}
    with pytest.raises(ValueError, match="hold no images"):
        save_d4rl(tmp_path / "data.hdf5", RAW._replace(observations=images))
    assert list(tmp_path.iterdir()) == []


def test_a_recorded_file_gives_the_windows_of_its_published_conversion(demos_dir):
    """Other programs wrote both files from the same roll-outs."""
    ours = load_demonstrations(demos_dir / "locomotion" / "hopper_sac.hdf5")
    theirs = load_dppo_npz(demos_dir / "locomotion" / "hopper_sac")
    a, b = (windows(episodes, chunk=4, history=2) for episodes in (ours, theirs))
    np.testing.assert_array_equal(a.action_rows, b.action_rows)
    np.testing.assert_array_equal(
        a.observation_rows["state"], b.observation_rows["state"]
    )
    rounding = dict(rtol=0, atol=1e-6)
    np.testing.assert_allclose(a.actions, b.actions, **rounding)
    np.testing.assert_allclose(
        a.observations["state"], b.observations["state"], **rounding
    )
    np.testing.assert_array_equal(ours.rewards, theirs.rewards)
    np.testing.assert_array_equal(ours.terminals, theirs.terminals)
    for bound, expected in zip(ours.normalizer, theirs.normalizer):
        np.testing.assert_allclose(bound, expected, rtol=1e-6)


def test_recorded_returns_come_out(demos_dir):
    path = demos_dir / "locomotion" / "halfcheetah_ppo.hdf5"
    episodes = load_d4rl(path)
    assert episodes.episode_lengths.tolist() == [1000] * 100
    returns = episodes.rewards.reshape(100, 1000).sum(axis=1)
    np.testing.assert_allclose([returns.mean(), returns.std()], [5282, 1296], atol=1)
    assert len(load_d4rl(path, 7).actions) == 7000
