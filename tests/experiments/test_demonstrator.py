"""The stages from a trained demonstrator and its recorded data to a cloned policy."""

import json

import numpy as np
import pytest

from dppo_jax.demonstrations import load_demonstrations
from dppo_jax.envs import randomize
from dppo_jax.policies import make_policy
from dppo_jax.training.metrics import read_metrics
from experiments import collect, demonstrator, inputs, pretrain
from experiments.configs import avoid, halfcheetah, hopper, walker2d
from experiments.configs.locomotion import OFF_POLICY, VARIANTS

# Stages in seconds: a time limit of 20 control steps, networks of 8 units.
TINY = {
    "env.max_steps": 20,
    "model.network.hidden_sizes": (16,),
    "model.diffusion.num_denoising_steps": 4,
    "model.sampling.num_tuned_steps": 2,
    "collect.target_return": 9.0,
    "collect.num_control_steps": 90,
    "collect.rollout.random_steps": 60,
    "collect.model.network.hidden_sizes": (8,),
    "collect.critic.hidden_sizes": (8,),
    "loop.collect.num_iterations": 20,
    "collect.rollout.num_envs": 4,
    "collect.rollout.num_chunks": 20,
    "collect.ppo.batch_size": 40,
    "collect.ppo.epochs": 2,
    "loop.pretrain.num_epochs": 2,
    "pretrain.warmup_epochs": 1,
    "evaluate.num_episodes": 4,
    "evaluate.num_envs": 4,
}


def make_config(**changes):
    """A locked configuration; write dots in names as double underscores."""
    config = hopper.get_config("cpu")
    config.update_from_flattened_dict(TINY)
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    return config.lock()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder in which data were collected and cloned, with default paths."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        collect.main(make_config())
        pretrain.main(make_config())
    return folder


@pytest.fixture
def episodes(world):
    return load_demonstrations(world / "data" / "hopper_cpu")


def test_cloning_finds_what_was_collected(world):
    assert (world / "runs" / "hopper_cpu" / "pretrain" / "checkpoints").is_dir()


def test_the_data_set_is_what_a_reader_of_demonstrations_expects(episodes):
    lengths = episodes.episode_lengths
    assert 90 <= lengths.sum() < 90 + 20 and lengths.max() <= 20
    assert episodes.rewards.shape == episodes.terminals.shape == (lengths.sum(),)
    bounds = episodes.normalizer
    assert (bounds.action_min >= -1).all() and (bounds.action_max <= 1).all()
    assert 0.7 < bounds.obs_min[0] < bounds.obs_max[0] < 1.6  # height in metres
    # A terminal marks the end of an episode before the time limit.
    ended = episodes.terminals[np.cumsum(lengths) - 1]
    np.testing.assert_array_equal(ended[lengths < 20], True)


def test_training_stops_at_the_target_and_leaves_a_run(world):
    run = world / "runs" / "hopper_cpu" / "collect"
    rows = read_metrics(run)
    assert 1 < len(rows) < 20
    config = json.loads((run / "config.json").read_text())
    assert config["stage"] == "collect" and config["model"]["kind"] == "gaussian"


def test_a_demonstrator_is_not_taken_for_the_policy_to_be_trained(world):
    config = make_config(policy=str(world / "runs" / "hopper_cpu" / "collect"))
    with pytest.raises(ValueError, match="was trained with model.*--config.model"):
        inputs.find_policy(config, "pretrain")


def test_a_target_out_of_reach_leaves_no_data_but_a_run_to_resume(
    world, episodes, tmp_path, monkeypatch, capsys
):
    """The run that continues after the failure records the same data as another one.

    It keeps its bounds: another device might find others.
    """
    monkeypatch.chdir(tmp_path)
    few = dict(collect__target_return=1e5, loop__collect__num_iterations=1)
    message = "return is .* after 1 iterations, below collect.target_return=1e.05"
    with pytest.raises(ValueError, match=message):
        collect.main(make_config(**few))
    assert not (tmp_path / "data").exists()
    monkeypatch.delattr(demonstrator, "random_bounds")
    collect.main(make_config())
    assert "resuming at iteration 1" in capsys.readouterr().out
    again = load_demonstrations("data/hopper_cpu")
    np.testing.assert_array_equal(again.actions, episodes.actions)
    np.testing.assert_array_equal(again.rewards, episodes.rewards)


def test_a_run_directory_belongs_to_the_settings_of_its_demonstrator(world):
    where = str(world / "runs" / "hopper_cpu" / "collect")
    changes = dict(run_dir=where, data=str(world / "other"))
    with pytest.raises(ValueError, match="holds a run with collect.ppo.discount=0.99"):
        collect.main(make_config(**changes, collect__ppo__discount=0.5))
    with pytest.raises(ValueError, match="holds a run with env.options.margins"):
        collect.main(
            make_config(**changes, env__task="walker2d", env__options__margins="sum")
        )


def test_a_wrong_number_of_steps_is_found_before_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="num_control_steps=0 to record"):
        collect.main(make_config(collect__num_control_steps=0))
    assert list(tmp_path.iterdir()) == []


def test_existing_data_are_refused_before_training(world):
    with pytest.raises(ValueError, match="holds demonstrations already"):
        collect.main(make_config(data=str(world / "data" / "hopper_cpu")))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("task", [hopper, walker2d, halfcheetah])
def test_every_variant_describes_a_demonstrator(task, variant):
    settings = task.get_config(variant).collect
    policy = make_policy(settings.model, action_dim=3)
    assert policy.num_tuned_steps == 1 and settings.model.chunk == 1
    assert settings.target_return >= 1500
    small = (*OFF_POLICY, "drwr", "dawr", "dsrl", "rlpd", "calql", "ibrl", "cpu")
    is_small = variant in small
    assert settings.num_control_steps == (100_000 if is_small else 1_000_000)


def test_a_demonstrator_is_trained_without_randomization():
    """Its episodes are recorded without, too."""
    config = hopper.get_config("fast_randomized")
    assert randomize.is_on(config.env.randomization)
    assert not randomize.is_on(demonstrator._own_config(config).env.randomization)


def test_a_demonstrator_belongs_to_its_task(tmp_path):
    config = avoid.get_config("m1")
    config.env.task = "hopper"
    config.data = str(tmp_path / "data")
    with pytest.raises(ValueError, match="no demonstrator for env.task='hopper'"):
        collect.main(config)
