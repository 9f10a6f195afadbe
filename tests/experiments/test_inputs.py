"""What the stages say about their demonstrations before they use them."""

import numpy as np
import pytest

from dppo_jax.demonstrations.dataset import Episodes
from dppo_jax.demonstrations.formats.dppo_npz import save_dppo_npz
from dppo_jax.errors import SettingsError
from dppo_jax.objects import content_digest
from experiments import inputs
from experiments.defaults import default_config
from experiments.settings import override


def load(folder, *, images=False, constant=False, reward=1.0, changes=()):
    """Load two episodes of three steps, written to `folder`."""
    rng = np.random.default_rng(0)
    observations = {"state": rng.normal(size=(6, 3)).astype(np.float32)}
    if constant:
        observations["state"][:, 1] = 7.0
    if images:
        observations["rgb"] = np.zeros((6, 8, 8, 3), np.uint8)
    rewards = np.ones(6, np.float32)
    rewards[4] = reward
    episodes = Episodes(
        observations=observations,
        actions=rng.normal(size=(6, 2)).astype(np.float32),
        episode_lengths=np.array([3, 3]),
        rewards=rewards,
    )
    save_dppo_npz(folder / "data", episodes, overwrite=True)
    config = default_config()
    override(config, [f"data={folder}/data", *changes])
    return inputs.load_data(config)


def test_images_that_no_encoder_reads_are_refused_with_a_cure(tmp_path):
    with pytest.raises(SettingsError, match="holds images.*kind='state'") as refused:
        load(tmp_path, images=True)
    (flag,) = [x for x in str(refused.value).split() if x.startswith("--config.")]
    cure = flag.removeprefix("--config.").strip(",")
    assert "rgb" in load(tmp_path, images=True, changes=[cure]).observations


def test_missing_data_are_named_with_their_setting(tmp_path):
    absent = f"{tmp_path}/absent"
    message = f"--config.data={absent} does not exist"
    with pytest.raises(SettingsError, match=message):
        load(tmp_path, changes=[f"data={absent}"])


def test_huge_rewards_are_warned_of(tmp_path, capsys):
    load(tmp_path)
    assert "warning" not in capsys.readouterr().out
    load(tmp_path, reward=-1e20)
    assert "warning: rewards in" in (out := capsys.readouterr().out) and "1e+20" in out


def test_constant_entries_are_named(tmp_path, capsys):
    load(tmp_path)
    assert "constant" not in capsys.readouterr().out
    load(tmp_path, constant=True)
    assert "columns [1] of the observations are constant" in capsys.readouterr().out


def test_what_was_measured_of_the_data_is_stated(tmp_path):
    data = load(tmp_path)
    config = default_config()
    config.data = f"{tmp_path}/data"
    plain = inputs.about_data(config, data)
    assert (plain["episodes"], plain["steps"]) == (2, 6)
    measured = tmp_path / "data" / inputs.MEASURED_FILE
    text = '{"digest": "%s", "replay_success": 0.5, "path": "x"}'
    measured.write_text(text % content_digest(measured.with_name("train.npz")))
    assert inputs.about_data(config, data) == plain | {"replay_success": 0.5}
    # Of other demonstrations, which these have replaced.
    measured.write_text(text % "0")
    assert inputs.about_data(config, data) == plain
    measured.write_text('{"replay_succ')
    assert inputs.about_data(config, data) == plain
