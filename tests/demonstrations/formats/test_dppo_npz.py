"""Reading and writing of the stitched format."""

import numpy as np
import pytest

from dppo_jax import normalize
from dppo_jax.demonstrations import Episodes, load_dppo_npz, save_dppo_npz, windows
from dppo_jax.demonstrations.formats import dppo_npz

# Two episodes of 3 and 2 steps, in task units.
STATE = np.arange(10, dtype=np.float32).reshape(5, 2)
RAW = Episodes(
    {"state": STATE, "rgb": np.arange(240, dtype=np.uint8).reshape(5, 4, 4, 3)},
    np.array([[0], [1], [2], [3], [4]], np.float32),
    np.array([3, 2]),
    rewards=np.arange(5, dtype=np.float32),
    terminals=np.array([False, False, True, False, False]),
)
ARRAYS = dict(states=STATE, actions=RAW.actions, traj_lengths=RAW.episode_lengths)


def test_raw_episodes_are_normalised_and_come_back_in_task_units(tmp_path):
    normalizer = save_dppo_npz(tmp_path / "set", RAW)
    episodes = load_dppo_npz(tmp_path / "set")
    assert np.abs(episodes.actions).max() <= 1
    np.testing.assert_allclose(
        normalize.unnormalize_obs(normalizer, episodes.observations["state"]),
        STATE,
        1e-5,
        1e-5,
    )
    np.testing.assert_allclose(
        normalize.unnormalize_action(normalizer, episodes.actions),
        RAW.actions,
        1e-5,
        1e-5,
    )
    np.testing.assert_array_equal(episodes.observations["rgb"], RAW.observations["rgb"])
    np.testing.assert_array_equal(episodes.rewards, RAW.rewards)
    np.testing.assert_array_equal(episodes.terminals, RAW.terminals)
    with np.load(tmp_path / "set" / "train.npz") as archive:
        assert archive["images"].shape == (5, 3, 4, 4)


def test_normalised_episodes_are_written_as_they_are(tmp_path):
    save_dppo_npz(tmp_path / "a", RAW)
    save_dppo_npz(tmp_path / "b", load_dppo_npz(tmp_path / "a"))
    first, second = (load_dppo_npz(tmp_path / name) for name in "ab")
    np.testing.assert_array_equal(first.actions, second.actions)
    np.testing.assert_array_equal(first.normalizer.obs_max, second.normalizer.obs_max)


def test_a_data_set_is_only_replaced_on_request(tmp_path):
    save_dppo_npz(tmp_path, RAW)
    with pytest.raises(ValueError, match="train.npz exists; pass overwrite=True"):
        save_dppo_npz(tmp_path, RAW)
    save_dppo_npz(tmp_path, RAW._replace(rewards=None), overwrite=True)
    assert load_dppo_npz(tmp_path).rewards is None
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["normalization.npz", "train.npz"]


def test_an_interrupted_writer_leaves_no_partial_data_set(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(dppo_npz, "save_normalizer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_dppo_npz(tmp_path, RAW)
    assert not list(tmp_path.iterdir())


def test_only_the_first_episodes_and_no_images_on_request(tmp_path):
    save_dppo_npz(tmp_path, RAW)
    episodes = load_dppo_npz(tmp_path, 1, images=False)
    assert episodes.episode_lengths.tolist() == [3]
    assert set(episodes.observations) == {"state"}
    assert len(episodes.actions) == len(episodes.rewards) == 3
    assert len(load_dppo_npz(tmp_path, 10).episode_lengths) == 2
    with pytest.raises(ValueError, match="max_episodes=0"):
        load_dppo_npz(tmp_path, 0)


def test_a_file_without_bounds_beside_it_has_no_normalizer(tmp_path):
    np.savez(tmp_path / "other.npz", **ARRAYS)
    assert load_dppo_npz(tmp_path / "other.npz").normalizer is None


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(actions=None), "lacks actions; it holds states, traj_lengths"),
        (dict(traj_lengths=np.array([3, 4])), "add up to 7 steps, but there are 5"),
        (dict(states=np.full((5, 2), np.nan)), r"5 of 5 rows, first \[0, 1, 2, 3, 4\]"),
        (dict(states=np.zeros((4, 2))), r"state \(4, 2\)"),
        (dict(states=np.array([None] * 5)), "states is an object array"),
        (dict(images=np.zeros((5, 3, 4, 4))), "images have type float64"),
        (
            {k: v[:0] for k, v in ARRAYS.items()},
            "the data set is empty",
        ),
    ],
)
def test_damaged_data_is_refused_in_one_line_that_names_the_file(
    tmp_path, change, message
):
    arrays = {k: v for k, v in (ARRAYS | change).items() if v is not None}
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        load_dppo_npz(tmp_path)
    assert str(tmp_path / "train.npz") in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds no train.npz"):
        load_dppo_npz(tmp_path)
    with pytest.raises(ValueError, match="neither a folder nor an .npz file"):
        load_dppo_npz(tmp_path / "absent")
    with pytest.raises(ValueError, match="absent.npz does not exist"):
        load_dppo_npz(tmp_path / "absent.npz")


def test_bounds_of_another_size_are_refused(tmp_path):
    np.savez(tmp_path / "train.npz", **ARRAYS)
    bounds = normalize.fit_normalizer(np.zeros((1, 3)), np.zeros((1, 1)))
    normalize.save_normalizer(tmp_path / "normalization.npz", bounds)
    with pytest.raises(ValueError, match="bounds are for 3 observation and 1 action"):
        load_dppo_npz(tmp_path)


@pytest.mark.parametrize(
    "name, sizes, episodes",
    [
        ("avoid/avoid_m1", (4, 2), 8),
        ("locomotion/hopper_sac", (11, 3), 235),
        ("locomotion/walker2d_trpo", (17, 6), 155),
    ],
)
def test_published_data_is_read_as_it_is(demos_dir, name, sizes, episodes):
    data = load_dppo_npz(demos_dir / name)
    assert (data.observations["state"].shape[1], data.actions.shape[1]) == sizes
    assert len(data.episode_lengths) == episodes
    assert np.abs(data.actions).max() <= 1 and data.normalizer is not None
    samples = windows(data, chunk=4)
    assert samples.size == len(data.actions) - 3 * episodes
