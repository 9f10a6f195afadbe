"""Reading of robomimic's and robosuite's groups, one per episode."""

import h5py
import numpy as np
import pytest

from dppo_jax.demonstrations import load_robomimic
from tests.demonstrations.raw import ACTIONS, RAW, REWARDS, STATE, assert_same

ROBOMIMIC_KEYS = ("eef_pos", "eef_quat", "gripper_qpos")


def write(path, demos, **masks):
    with h5py.File(path, "w") as file:
        file.create_group("data")
        for name, tables in demos.items():
            for key, table in tables.items():
                file[f"data/{name}/{key}"] = table
        for name, names in masks.items():
            file[f"mask/{name}"] = np.array(names, "S")
    return path


def demo(rows, **changes):
    tables = {
        "obs/joints": STATE[rows, :1].astype(np.float64),
        "obs/cube": STATE[rows, 1],
        "actions": ACTIONS[rows].astype(np.float64),
        "rewards": REWARDS[rows],
        "dones": np.arange(5)[rows] == 2,
    }
    return {k: v for k, v in (tables | changes).items() if v is not None}


FIRST, SECOND = slice(0, 3), slice(3, 5)
KEYS = dict(obs_keys=("joints", "cube"))


def test_episodes_follow_their_numbers_and_observations_their_keys(tmp_path):
    path = write(tmp_path / "a.hdf5", {"demo_10": demo(SECOND), "demo_2": demo(FIRST)})
    assert_same(load_robomimic(path, **KEYS), RAW)
    swapped = load_robomimic(path, obs_keys=("cube", "joints"))
    np.testing.assert_array_equal(swapped.observations["state"], STATE[:, ::-1])


def test_the_first_episodes_or_those_of_a_mask(tmp_path):
    demos = {f"demo_{i}": demo(SECOND if i else FIRST) for i in range(3)}
    path = write(tmp_path / "a.hdf5", demos, train=["demo_2", "demo_0"], bad=["demo_9"])
    assert load_robomimic(path, 2, **KEYS).episode_lengths.tolist() == [3, 2]
    chosen = load_robomimic(path, filter_key="train", **KEYS)
    assert_same(chosen, RAW)
    with pytest.raises(ValueError, match="no filter_key 'test'; it has bad, train"):
        load_robomimic(path, filter_key="test", **KEYS)
    with pytest.raises(ValueError, match="mask/bad lists demo_9, .* 3 episodes"):
        load_robomimic(path, filter_key="bad", **KEYS)


def test_by_default_the_state_is_every_arm_and_then_the_object(tmp_path):
    names = [f"robot{arm}_{key}" for arm in (0, 1) for key in ROBOMIMIC_KEYS]
    tables = {f"obs/{key}": np.full((3, 2), i) for i, key in enumerate(names)}
    tables |= {
        "obs/object": np.full((3, 1), 9),
        "obs/robot0_joint_pos": np.ones((3, 7)),
    }
    whole = {"demo_0": tables | {"actions": np.zeros((3, 7))}}
    state = load_robomimic(write(tmp_path / "a.hdf5", whole)).observations["state"]
    assert state[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 9]
    path = write(tmp_path / "b.hdf5", {"demo_0": demo(FIRST)})
    with pytest.raises(ValueError, match="lacks object; .* among cube, joints"):
        load_robomimic(path)


def test_images_are_read_only_if_they_are_named(tmp_path):
    front, hand = np.zeros((3, 4, 5, 3), np.uint8), np.ones((3, 4, 5, 3), np.uint8)
    cameras = {"obs/front": front, "obs/hand": hand, "obs/small": front[:, :2]}
    path = write(tmp_path / "a.hdf5", {"demo_0": demo(FIRST, **cameras)})
    assert set(load_robomimic(path, **KEYS).observations) == {"state"}
    both = load_robomimic(path, obs_keys=("joints", "front", "hand")).observations
    assert both["state"].shape == (3, 1) and both["rgb"].shape == (3, 4, 5, 6)
    assert both["rgb"][0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    for keys in (("front",), ("joints", "front", "small")):
        with pytest.raises(
            ValueError, match="at least one vector, and images of one size"
        ):
            load_robomimic(path, obs_keys=keys)


def test_only_the_last_row_can_end_an_episode(tmp_path):
    """Some recorders set dones at every success, although the episode continues."""
    dones = dict(dones=np.array([0, 1, 0]))
    path = write(tmp_path / "a.hdf5", {"demo_0": demo(FIRST, **dones)})
    assert not load_robomimic(path, **KEYS).terminals.any()


def test_rewards_are_kept_only_if_every_episode_has_them(tmp_path):
    demos = {"demo_0": demo(FIRST), "demo_1": demo(SECOND, rewards=None, dones=None)}
    episodes = load_robomimic(write(tmp_path / "a.hdf5", demos), **KEYS)
    assert episodes.rewards is None and episodes.terminals is None


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(actions=None), "demo_1 lacks actions; it holds dones, obs, rewards"),
        (dict(actions=ACTIONS[:1]), "demo_1: joints has 2 rows, but actions has 1"),
        (dict(actions=ACTIONS[:0]), "demo_1 is empty"),
        (dict(rewards=REWARDS), r"demo_1: rewards \(5,\) must have 1 axes"),
        ({"obs/cube": None}, "demo_1/obs lacks cube; it holds joints"),
        ({"obs/cube": [np.nan, 1]}, r"demo_1: state has NaN .* first \[0\]"),
        ({"obs/cube": np.zeros((2, 4, 4, 3))}, "demo_1: cube float64 .* neither"),
        ({"obs/cube": np.zeros((2, 3))}, "episode 1 has sizes .*but episode 0 has"),
        ({"obs/cube": None, "obs/joints": None}, "demo_1 lacks obs; .*states"),
    ],
)
def test_damage_is_named_in_one_line_with_its_episode(tmp_path, change, message):
    demos = {"demo_0": demo(FIRST), "demo_1": demo(SECOND, **change)}
    path = write(tmp_path / "a.hdf5", demos)
    with pytest.raises(ValueError, match=message) as error:
        load_robomimic(path, **KEYS)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_file_without_episodes_is_refused(tmp_path):
    path = write(tmp_path / "a.hdf5", {}, train=["demo_0"])
    with pytest.raises(ValueError, match=r"holds no episodes \(data/demo_\*\)"):
        load_robomimic(path)


@pytest.mark.parametrize(
    "name, steps, size",
    [("lift", 412, 32), ("pick-place", 1482, 71), ("nut-assembly", 1036, 45)],
)
def test_human_recordings_give_the_simulators_states(demos_dir, name, steps, size):
    path = demos_dir / "robosuite_human" / f"{name}.hdf5"
    episodes = load_robomimic(path)
    assert episodes.observations["state"].shape == (steps, size)
    assert episodes.actions.shape == (steps, 7) and np.abs(episodes.actions).max() <= 1
    assert episodes.rewards is None and episodes.terminals is None
    # The first entry is the time, at 20 Hz.
    time = load_robomimic(path, obs_keys=["states"]).observations["state"][:, 0]
    np.testing.assert_allclose(np.diff(time), 0.05, atol=1e-4)
