"""The command that converts demonstrations."""

import numpy as np
import pytest

from dppo_jax.demonstrations import (
    Episodes,
    load_demonstrations,
    save_d4rl,
    save_dppo_npz,
)
from experiments import convert, pretrain
from tests import commands
from tests.demonstrations.raw import RAW, assert_same
from tests.stages import make_config


@pytest.fixture
def source(tmp_path):
    save_dppo_npz(tmp_path / "source", RAW)
    return str(tmp_path / "source")


def test_the_name_of_the_target_chooses_its_format(source, tmp_path, capsys):
    target = str(tmp_path / "target.hdf5")
    convert.main([source, target])
    assert_same(load_demonstrations(target, format="d4rl"), RAW)
    said = capsys.readouterr().out
    assert f"{source}: 2 episodes, 5 steps" in said
    assert said.splitlines()[-1] == f"wrote {target} (d4rl)"


def test_flags_reach_the_reader_and_the_writer(source, tmp_path):
    pytest.importorskip("minari", reason="needs dppo_jax[minari]")
    target = str(tmp_path / "target")
    convert.main([source, target, "--format=minari", "--max_episodes=1"])
    episodes = load_demonstrations(target, format="minari")
    assert episodes.episode_lengths.tolist() == [3]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{source}"], "the following arguments are required: OUT; --help"),
        (["{source}", "new", "--format=lerobot"], "invalid choice: 'lerobot'"),
        (["{source}", "new", "--max_episodes=x"], "invalid int value: 'x'"),
        (["{source}", "new", "--max_episodes=0"], "max_episodes=0 must be at least 1"),
        (["{source}", "new", "--speed=3"], "unrecognized arguments: --speed=3"),
        (["{source}", "new", "--obs_keys", "a"], "obs_keys=.'a'. has no meaning"),
        (["{source}", "new", "--source_format=d4rl"], "source is a folder, not"),
        (["absent", "new"], "absent does not exist"),
        (["{source}", "{source}"], "source exists; remove it"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    source, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        convert.main([argument.format(source=source) for argument in arguments])
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_mistake_ends_the_program_in_one_line_with_status_2(source):
    status, errors = commands.end("experiments.convert", [source, source])
    assert status == 2
    assert errors == f"error: {source} exists; remove it, or give another name.\n"


def test_cloning_needs_no_conversion(tmp_path, monkeypatch):
    """Raw data are normalised when they are read; the checkpoint holds their bounds."""
    state = np.linspace([0.4, -0.3, 0.4, -0.3], [0.6, 0.4, 0.6, 0.4], 20)
    actions = np.diff(state[:, :2], axis=0, append=state[-1:, :2])
    raw = Episodes(
        {"state": state.astype(np.float32)}, actions.astype(np.float32), np.array([20])
    )
    save_d4rl(tmp_path / "raw.hdf5", raw)
    received = {}
    monkeypatch.setattr(
        pretrain, "train_seeds", lambda *_, **options: received.update(options) or {}
    )
    pretrain.main(make_config(tmp_path, "pretrain", data=str(tmp_path / "raw.hdf5")))
    bounds = received["normalizer"]
    np.testing.assert_allclose(bounds.obs_max, [0.6, 0.4, 0.6, 0.4], rtol=1e-6)
    np.testing.assert_allclose(bounds.action_min, [0.0, 0.0], atol=1e-6)
