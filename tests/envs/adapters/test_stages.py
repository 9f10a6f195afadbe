"""The example configurations run through all stages, cut down to seconds."""

import importlib.util

import numpy as np
import pytest

from dppo_jax.demonstrations import save_dppo_npz
from dppo_jax.demonstrations.dataset import Episodes
from dppo_jax.training.metrics import read_metrics
from experiments import evaluate, finetune, pretrain
from experiments.configs import (
    brax_ant,
    gymnasium_env,
    playground_cartpole,
    robosuite_lift,
)

TINY = {
    "env.max_steps": 8,
    "model.network.hidden_sizes": (16,),
    "model.diffusion.num_denoising_steps": 4,
    "critic.hidden_sizes": (16,),
    "loop.pretrain.num_epochs": 2,
    "rollout.num_envs": 2,
    "rollout.num_chunks": 3,
    "loop.finetune.num_iterations": 1,
    "model.sampling.num_tuned_steps": 2,
    "algorithm.ppo.batch_size": 6,
    "algorithm.ppo.epochs": 1,
    "evaluate.num_episodes": 3,
    "evaluate.num_envs": 2,
}

# Configuration, Do, Da.
EXAMPLES = {
    "gymnasium": (lambda: gymnasium_env.get_config("Pendulum-v1"), 3, 1),
    "brax": (brax_ant.get_config, 27, 8),
    "playground": (playground_cartpole.get_config, 5, 1),
    "robosuite": (robosuite_lift.get_config, 19, 7),
}


def make_config(folder, name, stage):
    config = EXAMPLES[name][0]()
    config.update_from_flattened_dict(TINY)
    config.data = str(folder / "data")
    config.run_dir = str(folder / stage)
    config.policy = {
        "pretrain": "",
        "finetune": str(folder / "pretrain"),
        "evaluate": str(folder / "finetune"),
    }[stage]
    return config


def random_demonstrations(obs_size, action_dim):
    draw = np.random.default_rng(0).uniform
    return Episodes(
        observations={"state": draw(-1, 1, (24, obs_size)).astype(np.float32)},
        actions=draw(-1, 1, (24, action_dim)).astype(np.float32),
        episode_lengths=np.array([12, 12]),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_stage_runs(name, tmp_path, capsys):
    package = {"playground": "mujoco_playground"}.get(name, name)
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    save_dppo_npz(tmp_path / "data", random_demonstrations(*EXAMPLES[name][1:]))
    for stage in (pretrain, finetune):
        stage_name = stage.__name__.split(".")[1]
        stage.main(make_config(tmp_path, name, stage_name).lock())
        rows = read_metrics(tmp_path / stage_name)
        assert any("eval/episode_return" in row for row in rows)
    result = evaluate.main(make_config(tmp_path, name, "evaluate").lock())
    last = [row for row in rows if "eval/episode_return" in row][-1]
    # Every evaluation draws the same starts, also in host processes.
    assert result["episode_return"] == pytest.approx(
        last["eval/episode_return"], rel=1e-3
    )
    assert "3 episodes" in capsys.readouterr().out


def test_a_run_with_host_environments_resumes(tmp_path, capsys):
    save_dppo_npz(tmp_path / "data", random_demonstrations(3, 1))
    pretrain.main(make_config(tmp_path, "gymnasium", "pretrain").lock())
    for num_iterations in (1, 2):
        config = make_config(tmp_path, "gymnasium", "finetune")
        assert not config.rollout.reset_at_iteration
        config.loop.finetune.num_iterations = num_iterations
        finetune.main(config.lock())
    assert "resuming at iteration 1 of 2" in capsys.readouterr().out
    rows = read_metrics(tmp_path / "finetune")
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    assert np.isfinite([row["value_loss"] for row in rows[1:]]).all()


def test_variants_name_the_environment_and_the_run():
    config = gymnasium_env.get_config("gymnasium_robotics:FetchReach-v4")
    assert config.env.task == "gymnasium:gymnasium_robotics:FetchReach-v4"
    assert config.name == "gymnasium_gymnasium_robotics_FetchReach_v4"
