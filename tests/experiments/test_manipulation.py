"""Configurations of the manipulation tasks: settings, scripts, and all stages of
one."""

import json
from pathlib import Path

import numpy as np
import pytest

from dppo_jax.demonstrations.formats.dppo_npz import load_dppo_npz
from dppo_jax.errors import SettingsError
from experiments import collect, demo, evaluate, finetune, inspect, pretrain
from experiments.settings import load_config

# Stages in seconds; the other entries of the configuration stay as they are.
TINY = {
    "env.engine": "mujoco",
    "env.max_steps": 40,
    "collect.num_episodes": 2,
    "collect.success_only": False,
    "model.network.hidden_sizes": (16,),
    "model.diffusion.num_denoising_steps": 4,
    "model.sampling.num_tuned_steps": 2,
    "critic.hidden_sizes": (16,),
    "loop.pretrain.num_epochs": 2,
    "pretrain.warmup_epochs": 1,
    "loop.finetune.num_iterations": 1,
    "rollout.num_envs": 2,
    "rollout.num_chunks": 4,
    "algorithm.ppo.batch_size": 8,
    "algorithm.ppo.epochs": 1,
    "evaluate.num_episodes": 2,
    "evaluate.num_envs": 2,
}


def tiny(folder, stage):
    config = load_config("experiments/configs/lift.py:fast")
    config.update_from_flattened_dict(TINY)
    config.data, config.run_dir = str(folder / "data"), str(folder / stage)
    if stage == "finetune":
        config.policy = str(folder / "pretrain")
    if stage == "evaluate":
        config.policy = str(folder / "finetune")
    return config


@pytest.mark.parametrize(
    "task, steps, chunk, iterations, sizes, batch, epochs",
    [
        ("lift", 300, 4, 81, (512,) * 3, 7500, 10),
        ("can", 300, 4, 151, (512,) * 3, 7500, 10),
        ("square", 400, 4, 201, (1024,) * 3, 10_000, 10),
        ("transport", 800, 8, 201, (1024,) * 3, 10_000, 5),
    ],
)
def test_the_default_variant_has_the_settings_of_the_paper(
    task, steps, chunk, iterations, sizes, batch, epochs
):
    config = load_config(f"experiments/configs/{task}.py")
    assert (config.env.max_steps, config.model.chunk) == (steps, chunk)
    assert config.rollout.num_envs == 50
    assert config.rollout.num_chunks == 4 * steps // chunk
    assert config.loop.finetune.num_iterations == iterations
    assert config.model.network.hidden_sizes == sizes
    assert config.model.diffusion.num_denoising_steps == 20
    assert config.model.sampling.num_tuned_steps == 10
    ppo = config.algorithm.ppo
    assert (ppo.batch_size, ppo.epochs, ppo.minibatch) == (batch, epochs, "pair")
    assert (ppo.discount, ppo.denoising_discount, ppo.gae_lambda) == (0.999, 0.99, 0.95)
    assert (ppo.clip_top, ppo.clip_base, ppo.clip_rate) == (0.01, 0.001, 3.0)
    assert (ppo.actor.learning_rate, ppo.critic.learning_rate) == (1e-4, 1e-3)
    assert (ppo.target_kl, ppo.critic_warmup) == (1.0, 2)
    assert config.pretrain.batch_size == 256 and config.loop.pretrain.num_epochs == 3000


def test_an_unknown_variant_is_named():
    with pytest.raises(SettingsError, match="can.py:slow .*paper, fast"):
        load_config("experiments/configs/can.py:slow")


def test_collect_writes_scripted_episodes(tmp_path, capsys):
    folder = collect.main(tiny(tmp_path, "collect"))
    episodes = load_dppo_npz(folder)
    np.testing.assert_array_equal(episodes.episode_lengths <= 40, True)
    assert episodes.observations["state"].shape[1] == 19
    assert episodes.rewards is not None
    said = capsys.readouterr().out
    assert "of 2 scripted episodes succeeded" in said
    measured = json.loads((Path(folder) / "measured.json").read_text())
    solved = round(2 * measured["script_success"])
    again = round(solved * measured.get("replay_success", 0))
    assert f"{again} of {solved} recorded successes succeed again" in said


@pytest.mark.slow
def test_all_stages_run(tmp_path, capsys):
    for stage in (collect, pretrain, finetune):
        stage.main(tiny(tmp_path, stage.__name__.split(".")[1]))
    run_dir = tiny(tmp_path, "finetune").run_dir
    capsys.readouterr()
    inspect.main(run_dir, None)
    assert "the script succeeded in" in capsys.readouterr().out
    metrics = evaluate.main(tiny(tmp_path, "evaluate"))
    assert 0 <= metrics["success"] <= 1 and metrics["episode_length"] == 40


@pytest.mark.slow
def test_the_demo_compares_both_policies_and_draws_them(tmp_path, monkeypatch, capsys):
    config = tiny(tmp_path, "demo")
    demo.main(config)
    said = capsys.readouterr().out
    assert "success (lift solved in time) over 2 evaluation episodes" in said
    for stage in ("pretrain", "finetune"):
        picture = tmp_path / "demo" / stage / "plots" / "episodes.png"
        assert picture.exists() and f"picture: {picture}" in said

    def blind(*_, **__):
        raise SettingsError("no OpenGL library")

    # A machine that cannot draw loses nothing else.
    monkeypatch.setattr(demo.evaluate, "main", blind)
    config = tiny(tmp_path, "demo")
    demo.main(config)
    said = capsys.readouterr().out
    assert "no videos: no OpenGL library" in said and "picture" not in said
    assert "  fine-tuned " in said
