"""Every stage writes its files, needs the one before it, and refuses wrong settings."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from dppo_jax.training.metrics import read_metrics
from experiments import collect, evaluate, finetune, inputs, pretrain
from experiments.configs import avoid
from experiments.seeds import loop_settings
from tests import tiny
from tests.stages import evaluations, make_config


def test_every_stage_writes_its_files(world):
    assert (world / "data" / "train.npz").exists()
    for stage in ("pretrain", "finetune"):
        config = json.loads((world / stage / "config.json").read_text())
        assert config["stage"] == stage and config["env"]["task"] == "avoid"
        assert list((world / stage).glob("events.out.tfevents.*"))
    assert [row["iteration"] for row in read_metrics(world / "finetune")] == [0, 1, 2]
    assert sorted(evaluations(world / "pretrain")) == [0, 3]
    plots = {path.name for path in (world / "finetune" / "plots").iterdir()}
    assert plots == {"trajectories.png", "curve.png"}


def test_tasks_are_in_the_units_of_the_simulator(world):
    """The saved data are normalised, and their bounds are in metres on the table."""
    with np.load(world / "data" / "normalization.npz") as bounds:
        assert 0.2 < bounds["obs_min"][0] < bounds["obs_max"][0] < 0.8
    with np.load(world / "data" / "train.npz") as data:
        assert abs(data["states"]).max() <= 1.0 + 1e-5


def test_cloning_needs_no_simulator_but_later_stages_do(world, tmp_path):
    changes = dict(env__task="", run_dir=str(tmp_path / "robot"))
    (run_dir,) = pretrain.main(make_config(world, "pretrain", **changes))
    assert [row["iteration"] for row in read_metrics(run_dir)] == [1, 3]
    assert evaluations(run_dir) == {}
    found = inputs.find_policy(make_config(world, "finetune", policy=run_dir), "")
    assert found.iteration == 3
    for stage in (collect, finetune, evaluate):
        name = stage.__name__.split(".")[1]
        message = f"env.task is empty, and experiments.{name} .*--config.env.task=NAME"
        with pytest.raises(ValueError, match=message):
            stage.main(make_config(world, name, env__task=""))


def test_a_stage_names_the_missing_stage_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="run experiments.collect first"):
        pretrain.main(make_config(tmp_path, "pretrain", data=""))
    with pytest.raises(ValueError, match="run experiments.pretrain first"):
        finetune.main(make_config(tmp_path, "finetune", policy=""))
    with pytest.raises(ValueError, match="run experiments.finetune first"):
        evaluate.main(make_config(tmp_path, "evaluate", policy=""))
    with pytest.raises(ValueError, match="no demonstrator for env.task='hopper'"):
        collect.main(make_config(tmp_path, "collect", env__task="hopper"))
    assert list(tmp_path.iterdir()) == []


def test_demonstrations_are_not_overwritten(world):
    before = (world / "data" / "train.npz").read_bytes()
    with pytest.raises(ValueError, match="holds demonstrations already"):
        collect.main(make_config(world, "collect"))
    assert (world / "data" / "train.npz").read_bytes() == before


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("loop.finetune.num_iterations", 0, "num_iterations=0 must be at least 1"),
        ("loop.pretrain.num_epochs", 0, "num_epochs=0 must be at least 1"),
        ("loop.finetune.log_every", -1, "log_every=-1 must be at least 0"),
    ],
)
def test_loops_without_iterations_are_refused(world, name, value, message):
    stage = name.split(".")[1]
    with pytest.raises(ValueError, match=f"loop.{stage}.{message}"):
        loop_settings(make_config(world, stage, **{name: value}), stage)


def test_an_entropy_bonus_for_a_fixed_entropy_is_refused(world):
    config = make_config(world, "pretrain", pretrain__clone_entropy_coef=0.1)
    with pytest.raises(ValueError, match="clone_entropy_coef=0.1.*'diffusion'"):
        pretrain.main(config)


def test_cloning_may_read_a_part_of_the_demonstrations(world, monkeypatch):
    class Read(Exception):
        pass

    def stop(episodes, **settings):
        raise Read(episodes.episode_lengths.tolist())

    monkeypatch.setattr(pretrain, "windows", stop)
    found = []
    for num in (None, 1):
        with pytest.raises(Read) as read:
            pretrain.main(make_config(world, "pretrain", pretrain__num_episodes=num))
        found += read.value.args
    assert len(found[0]) == 2 and found[1] == found[0][:1]


def test_noise_on_actions_reaches_the_environments_of_fine_tuning(world, monkeypatch):
    seen = {}

    def disturb(env, **settings):
        seen.update(settings)
        return env

    monkeypatch.setattr(finetune, "disturb_actions", disturb)
    noise = dict(action_noise=0.2, action_noise_start=3, action_noise_ramp=4)
    changes = {f"rollout__{name}": value for name, value in noise.items()}
    config = make_config(world, "finetune", **changes)
    normalizer = inputs.find_policy(config, "pretrain").normalizer
    finetune._make_algorithm(config, normalizer)
    assert seen == dict(scale=0.2, start=3, ramp=4, num_chunks=2)


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="avoid.py:m4 is unknown; use m1, m2, m3"):
        avoid.get_config("m4")


def test_without_data_bounds_are_those_of_random_actions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = dict(data="", env__task="hopper", rollout__random_steps=20)
    config = make_config(tmp_path, "new", **changes, env__options=ConfigDict())
    bounds, origin = inputs.find_bounds(config, "new")
    assert origin == {} and bounds.obs_min.shape == (11,)
    assert (bounds.obs_min <= bounds.obs_max).all()
    np.testing.assert_array_equal(bounds.action_max, np.ones(3))
    assert tiny.same(bounds, inputs.find_bounds(config, "new")[0])
    config = make_config(tmp_path, "new", data="", env__task="gymnasium:Hopper-v5")
    with pytest.raises(
        ValueError, match="bounds of gymnasium:Hopper-v5.*--config.data"
    ):
        inputs.find_bounds(config, "new")
