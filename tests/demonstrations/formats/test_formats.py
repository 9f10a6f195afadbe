"""Reading and writing through the functions for all formats."""

import json

import h5py
import numpy as np
import pytest

from dppo_jax import normalize
from dppo_jax.demonstrations import (
    FORMATS,
    detect_format,
    formats,
    load_demonstrations,
    load_dppo_npz,
    save_d4rl,
    save_demonstrations,
    save_dppo_npz,
    save_minari,
    windows,
)
from tests.demonstrations.raw import ACTIONS, LENGTHS, RAW, STATE, assert_same


def write(folder, name):
    """Write RAW in a format, at a path whose name does not show the format."""
    path = folder / "demonstrations"
    if name == "dppo_npz":
        save_dppo_npz(path, RAW)
    elif name == "d4rl":
        save_d4rl(path, RAW)
    elif name == "minari":
        pytest.importorskip("minari", reason="needs dppo_jax[minari]")
        save_minari(path, RAW)
    elif name == "robomimic":
        with h5py.File(path, "w") as file:
            for i, rows in enumerate((slice(0, 3), slice(3, 5))):
                demo = file.create_group(f"data/demo_{i}")
                demo["states"], demo["actions"] = STATE[rows], ACTIONS[rows]
                demo["rewards"], demo["dones"] = RAW.rewards[rows], RAW.terminals[rows]
    else:
        arrow = pytest.importorskip("pyarrow", reason="needs dppo_jax[lerobot]")
        parquet = pytest.importorskip("pyarrow.parquet")
        columns = {
            "observation.state": STATE.tolist(),
            "action": ACTIONS.tolist(),
            "episode_index": np.repeat([0, 1], LENGTHS).tolist(),
            "next.reward": RAW.rewards.tolist(),
            "next.done": RAW.terminals.tolist(),
        }
        (path / "meta").mkdir(parents=True)
        info = {"features": {name: {} for name in columns}}
        (path / "meta" / "info.json").write_text(json.dumps(info))
        (path / "data" / "chunk-000").mkdir(parents=True)
        file = path / "data" / "chunk-000" / "file-000.parquet"
        parquet.write_table(arrow.table(columns), file)
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_recognised_and_gives_the_same_normalised_episodes(
    tmp_path, name
):
    path = write(tmp_path, name)
    assert detect_format(path) == name
    episodes = load_demonstrations(path)
    assert_same(episodes, RAW)
    save_dppo_npz(tmp_path / "expected", RAW)
    expected = load_dppo_npz(tmp_path / "expected")
    np.testing.assert_allclose(episodes.actions, expected.actions, atol=1e-6)
    np.testing.assert_allclose(
        *(part.observations["state"] for part in (episodes, expected)), atol=1e-6
    )
    for bound, other in zip(episodes.normalizer, expected.normalizer):
        np.testing.assert_allclose(bound, other, rtol=1e-6)
    assert windows(episodes, chunk=2).size == 3
    first = load_demonstrations(path, max_episodes=1)
    assert first.episode_lengths.tolist() == [3]
    assert_same(load_demonstrations(path, format=name), RAW)


WRITABLE = [name for name, entry in FORMATS.items() if entry.save is not None]


@pytest.mark.parametrize("target", WRITABLE)
@pytest.mark.parametrize("source", WRITABLE)
def test_round_trips_lose_nothing(tmp_path, source, target):
    if "minari" in (source, target):
        pytest.importorskip("minari", reason="needs dppo_jax[minari]")
    there, back = tmp_path / "there", tmp_path / "back"
    start = load_demonstrations(write(tmp_path, source))
    assert save_demonstrations(there, start, format=target) == target
    assert save_demonstrations(back, load_demonstrations(there), format=source)
    assert detect_format(there) == target and detect_format(back) == source
    end = load_demonstrations(back)
    assert_same(end, RAW)
    np.testing.assert_allclose(end.actions, start.actions, atol=1e-6)
    # No temporary files remain.
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"demonstrations", "there", "back"}


def test_the_name_chooses_the_format_that_is_written(tmp_path):
    assert save_demonstrations(tmp_path / "new" / "a.hdf5", RAW) == "d4rl"
    assert save_demonstrations(tmp_path / "new" / "b.H5", RAW) == "d4rl"
    assert save_demonstrations(tmp_path / "new" / "c", RAW) == "dppo_npz"
    with pytest.raises(ValueError, match="a folder; give a name without .npz"):
        save_demonstrations(tmp_path / "d.npz", RAW)
    with pytest.raises(ValueError, match="can only be read; write one of dppo_npz, d4"):
        save_demonstrations(tmp_path / "d", RAW, format="robomimic")
    with pytest.raises(ValueError, match="a.hdf5 exists; remove it"):
        save_demonstrations(tmp_path / "new" / "a.hdf5", RAW)


@pytest.mark.parametrize("name", WRITABLE)
def test_an_interrupted_writer_leaves_nothing(tmp_path, monkeypatch, name):
    def half(path, episodes):
        path.mkdir()
        (path / "train.npz").write_bytes(b"PK")
        raise KeyboardInterrupt

    entry = FORMATS[name]._replace(save=half)
    monkeypatch.setitem(formats.FORMATS, name, entry)
    with pytest.raises(KeyboardInterrupt):
        save_demonstrations(tmp_path / "new", RAW, format=name)
    assert list(tmp_path.iterdir()) == []


def test_unknown_data_is_refused_with_what_is_known(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["weights"] = np.zeros(3)
    for path, seen in [
        (tmp_path / "notes.txt", "notes.txt has"),
        (tmp_path / "other.h5", r"\(with weights\)"),
        (tmp_path, r"\(with notes.txt, other.h5\)"),
    ]:
        with pytest.raises(ValueError, match=f"{seen}.* no known format") as error:
            detect_format(path)
        assert all(name in str(error.value) for name in FORMATS)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="absent does not exist; check the path"):
        load_demonstrations(tmp_path / "absent")
    with pytest.raises(ValueError, match="absent does not exist; check the path"):
        load_demonstrations(tmp_path / "absent", format="lerobot")
    with pytest.raises(
        ValueError, match="format='zarr' is unknown; use one of dppo_npz"
    ):
        load_demonstrations(tmp_path, format="zarr")


def test_options_without_a_meaning_are_refused(tmp_path):
    path = write(tmp_path, "d4rl")
    with pytest.raises(
        ValueError, match=r"d4rl, where obs_keys=\['a'\] has no meaning"
    ):
        load_demonstrations(path, obs_keys=["a"])
    with pytest.raises(ValueError, match="where filter_key='train' has no meaning"):
        load_demonstrations(path, filter_key="train")


def test_actions_of_the_stitched_format_must_be_in_its_range(tmp_path):
    """Actions that are not normalised are refused; rounding errors are accepted."""
    bounds = normalize.fit_normalizer(STATE, ACTIONS)
    normalize.save_normalizer(tmp_path / "normalization.npz", bounds)
    arrays = dict(states=STATE, traj_lengths=LENGTHS)
    np.savez(tmp_path / "train.npz", actions=ACTIONS, **arrays)
    with pytest.raises(
        ValueError, match=r"actions reach 4, .* 3 of 5 rows, first \[2, 3, 4\]"
    ):
        load_demonstrations(tmp_path)
    np.savez(tmp_path / "train.npz", actions=ACTIONS / 3.999, **arrays)
    assert load_demonstrations(tmp_path).episode_lengths.tolist() == [3, 2]


def test_states_of_the_stitched_format_must_be_normalised(tmp_path):
    """To the bounds of other data they may exceed [-1, 1], but not by far."""
    bounds = normalize.fit_normalizer(STATE, ACTIONS)
    normalize.save_normalizer(tmp_path / "normalization.npz", bounds)
    arrays = dict(actions=ACTIONS / 4, traj_lengths=LENGTHS)
    states = np.zeros_like(STATE)
    states[1, 0], states[2, 1] = 2.0, -50.0
    np.savez(tmp_path / "train.npz", states=states, **arrays)
    message = r"states reach 50 in 1 of 5 rows, first \[2\], but .* \[-1, 1\]"
    with pytest.raises(ValueError, match=message):
        load_demonstrations(tmp_path)
    states[2, 1] = 9.0
    np.savez(tmp_path / "train.npz", states=states, **arrays)
    assert load_demonstrations(tmp_path).observations["state"].max() == 9.0


def test_normalised_data_need_their_bounds(tmp_path):
    np.savez(
        tmp_path / "train.npz", states=STATE, actions=ACTIONS / 4, traj_lengths=LENGTHS
    )
    with pytest.raises(ValueError, match="holds no normalization.npz"):
        load_demonstrations(tmp_path)


def test_a_real_data_set_survives_conversion_to_every_format(demos_dir, tmp_path):
    start = load_demonstrations(demos_dir / "avoid" / "avoid_m1")
    names = [name for name in WRITABLE if name != "minari" or _has_minari()]
    path = demos_dir / "avoid" / "avoid_m1"
    for name in [*names, "dppo_npz"]:
        episodes = load_demonstrations(path)
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        save_demonstrations(path, episodes, format=name)
    end = load_demonstrations(path)
    np.testing.assert_allclose(end.actions, start.actions, atol=2e-6)
    np.testing.assert_allclose(
        end.observations["state"], start.observations["state"], atol=2e-6
    )
    assert end.episode_lengths.tolist() == start.episode_lengths.tolist()
    np.testing.assert_array_equal(end.rewards, start.rewards)


def _has_minari():
    try:
        import minari  # noqa: F401
    except ImportError:
        return False
    return True
