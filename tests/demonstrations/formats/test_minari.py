"""Reading and writing of Minari data sets."""

import json
import sys

import h5py
import numpy as np
import pytest

from dppo_jax.demonstrations import load_minari, save_minari
from dppo_jax.demonstrations.formats.tables import check_tables
from dppo_jax.errors import SettingsError
from tests.demonstrations.raw import ACTIONS, LENGTHS, RAW, REWARDS, STATE, assert_same

minari = pytest.importorskip("minari", reason="needs dppo_jax[minari]")
from gymnasium.spaces import Box, Dict, Discrete  # noqa: E402
from minari.data_collector.episode_buffer import EpisodeBuffer  # noqa: E402
from minari.dataset.minari_storage import MinariStorage  # noqa: E402

UNBOUNDED = Box(-np.inf, np.inf, (2,), np.float32)
ACTION = Box(-4.0, 4.0, (1,), np.float32)


def write(
    folder, space=UNBOUNDED, action_space=ACTION, *, observe=None, act=ACTIONS, **stored
):
    """Write a data set with the package; `observe` maps [T, 2] to observations."""
    folder.mkdir()
    storage = MinariStorage.new(folder / "data", space, action_space, **stored)
    storage.update_metadata(
        {"dataset_id": "tiny-v0", "minari_version": minari.__version__}
    )
    ends = np.cumsum(LENGTHS)
    buffers = []
    for begin, end in zip(ends - LENGTHS, ends):
        # The observation after the last action, which must not be read.
        seen = np.concatenate([STATE[begin:end], np.full((1, 2), 99, np.float32)])
        last = np.arange(begin, end) == end - 1
        buffers.append(
            EpisodeBuffer(
                observations=observe(seen) if observe else seen,
                actions=act[begin:end],
                rewards=REWARDS[begin:end],
                terminations=last & (begin == 0),
                truncations=last & (begin > 0),
            )
        )
    storage.update_episodes(buffers)
    return folder


def test_the_observation_after_the_last_action_is_left_out(tmp_path):
    folder = write(tmp_path / "tiny")
    assert_same(load_minari(folder), RAW)
    assert_same(load_minari(folder / "data"), RAW)
    assert load_minari(folder, 1).episode_lengths.tolist() == [3]


def test_arrow_files_are_read_and_their_damage_is_named(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    folder = write(tmp_path / "tiny", data_format="arrow")
    # As programs leave them that download data.
    (folder / "data" / ".cache" / "downloads").mkdir(parents=True)
    assert_same(load_minari(folder), RAW)
    path, other = sorted(folder.glob("data/*/*.arrow"))
    content = path.read_bytes()
    path.write_bytes(content[:-200])
    with pytest.raises(SettingsError, match=f"{path} is not a readable"):
        load_minari(folder)
    # Texts that end outside of the file: Arrow would read what is in memory there.
    ends = np.array([0, 4, 8], np.int32)
    table = arrow.record_batch({"infos": arrow.array(["text", "word"])})
    with arrow.ipc.new_file(path, table.schema) as file:
        file.write_batch(table)
    content = path.read_bytes()
    assert content.count(ends.tobytes()) == 1
    path.write_bytes(content.replace(ends.tobytes(), (10**6 * ends).tobytes()))
    with pytest.raises(SettingsError, match=f"{path} is not a readable .*offset"):
        load_minari(folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(SettingsError, match=f"{path} is no file"):
        load_minari(folder)


def test_a_fault_of_this_reader_is_not_taken_for_damage(tmp_path, monkeypatch):
    folder = write(tmp_path / "tiny")
    monkeypatch.setattr("dppo_jax.demonstrations.formats.minari._entries", None)
    with pytest.raises(TypeError, match="not callable"):
        load_minari(folder)


def test_dictionaries_of_observations_need_keys(tmp_path):
    one = Box(-np.inf, np.inf, (1,), np.float32)
    space = Dict({"arm": Dict({"angle": one}), "goal": one})

    def observe(seen):
        return {"arm": {"angle": seen[:, :1]}, "goal": seen[:, 1:]}

    folder = write(tmp_path / "tiny", space, observe=observe)
    assert_same(load_minari(folder, obs_keys=("arm/angle", "goal")), RAW)
    with pytest.raises(ValueError, match="several observations; .* arm/angle, goal"):
        load_minari(folder)
    with pytest.raises(ValueError, match="no observation 'door'; it has arm/angle"):
        load_minari(folder, obs_keys=("door",))


def test_a_dictionary_with_one_entry_needs_no_keys(tmp_path):
    space = Dict({"observation": UNBOUNDED})
    folder = write(tmp_path / "tiny", space, observe=lambda s: {"observation": s})
    assert_same(load_minari(folder), RAW)


def test_actions_outside_their_space_are_refused(tmp_path):
    narrow = write(tmp_path / "narrow", action_space=Box(-3, 3, (1,), np.float32))
    with pytest.raises(ValueError, match=r"episode 1: actions reach 4, .*first \[1\]"):
        load_minari(narrow)
    discrete = write(
        tmp_path / "discrete", action_space=Discrete(5), act=np.arange(5, dtype=int)
    )
    with pytest.raises(ValueError, match="discrete or structured actions"):
        load_minari(discrete)


def test_nan_are_named_with_their_episode(tmp_path):
    folder = write(tmp_path / "tiny", act=np.where(ACTIONS == 3, np.nan, ACTIONS))
    with pytest.raises(ValueError, match=r"episode 1: actions has NaN .*first \[0\]"):
        load_minari(folder)


def test_written_data_read_back_the_same_also_by_minari(tmp_path):
    save_minari(tmp_path / "hopper v3-v3", RAW)
    assert_same(load_minari(tmp_path / "hopper v3-v3"), RAW)
    dataset = minari.MinariDataset(tmp_path / "hopper v3-v3" / "data")
    assert dataset.id == "hopper-v3-v0"
    assert (dataset.total_episodes, dataset.total_steps) == (2, 5)
    episode = dataset[1]
    assert episode.truncations.tolist() == [False, True]
    assert len(episode.observations) == 3 and dataset.action_space.contains(ACTIONS[4])
    with pytest.raises(ValueError, match="hopper v3-v3 exists"):
        save_minari(tmp_path / "hopper v3-v3", RAW)


def test_missing_rewards_do_not_become_zeros(tmp_path):
    save_minari(tmp_path / "tiny", RAW._replace(rewards=None))
    assert load_minari(tmp_path / "tiny").rewards is None


def test_images_are_not_written(tmp_path):
    images = {"state": STATE, "rgb": np.zeros((5, 4, 4, 3), np.uint8)}
    with pytest.raises(ValueError, match="images can only be written as dppo_npz"):
        save_minari(tmp_path / "tiny", RAW._replace(observations=images))
    assert not (tmp_path / "tiny").exists()


def test_damage_is_named_in_one_line_with_the_folder(tmp_path):
    with pytest.raises(ValueError, match="metadata.json cannot be read"):
        load_minari(tmp_path)
    folder = write(tmp_path / "tiny")
    file = folder / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(
        ValueError, match="main_data.hdf5 is not a readable HDF5"
    ) as error:
        load_minari(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, values",
    [
        ("rewards", np.array([b"a"] * 3)),
        ("terminations", np.zeros(3, [("a", np.float32)])),
        ("observations", np.float32(1)),
    ],
)
def test_entries_that_are_no_numbers_are_named(tmp_path, name, values):
    folder = write(tmp_path / "tiny")
    with h5py.File(folder / "data" / "main_data.hdf5", "r+") as file:
        del file["episode_0"][name]
        file["episode_0"][name] = values
    with pytest.raises(
        SettingsError, match="tiny.*: episode 0: .* must be numbers with"
    ):
        load_minari(folder)


def test_the_environment_that_a_file_names_is_not_built(tmp_path):
    """Without spaces in a file the package would build the environment it names."""
    folder = write(tmp_path / "tiny")
    path = folder / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    del metadata["action_space"]
    metadata["env_spec"] = json.dumps({"id": "x-v0", "entry_point": "antigravity:x"})
    path.write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="metadata.json lacks action_space"):
        load_minari(folder)
    assert "antigravity" not in sys.modules


def test_a_missing_package_is_named_with_the_cure(tmp_path, monkeypatch):
    folder = write(tmp_path / "tiny")
    monkeypatch.setitem(sys.modules, "minari", None)
    for call in (
        lambda: load_minari(folder),
        lambda: save_minari(tmp_path / "other", RAW),
    ):
        with pytest.raises(ValueError, match=r"minari, .*'dppo_jax\[minari\]'"):
            call()
    assert not (tmp_path / "other").exists()


def test_a_type_that_hdf5_cannot_name_is_refused(tmp_path, monkeypatch):
    """As in a file whose code of a string's encoding was changed."""

    def unknown(_):
        raise TypeError("Unknown string encoding (value 2)")

    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["actions"] = np.zeros(3)
        monkeypatch.setattr(h5py.Dataset, "dtype", property(unknown))
        with pytest.raises(SettingsError, match="a: actions is damaged .Unknown str"):
            check_tables(file, "a")
