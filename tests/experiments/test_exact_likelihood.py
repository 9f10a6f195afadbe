"""The variants with the exact likelihood, and one of them through the stages."""

import pytest

from dppo_jax.deploy import load_policy
from dppo_jax.training.metrics import read_metrics
from experiments import finetune
from experiments.configs import avoid, halfcheetah, hopper, walker2d
from experiments.settings import load_config
from tests import tiny
from tests.stages import check_algorithm

pytestmark = pytest.mark.usefixtures("drawn_once")

VARIANTS = [(avoid, v) for v in avoid.VARIANTS if v.endswith("_exact")]
VARIANTS += [(task, "exact") for task in (hopper, walker2d, halfcheetah)]
# Stages in seconds: a time limit of 20 control steps, networks of 8 units.
TINY = {
    "policy": "none",
    "env.max_steps": 20,
    "model.network.hidden_sizes": (8,),
    "model.network.residual": False,
    "model.diffusion.num_denoising_steps": 4,
    "model.sampling.num_tuned_steps": 2,
    "critic.hidden_sizes": (8,),
    "critic.residual": False,
    "rollout.num_envs": 4,
    "rollout.num_chunks": 6,
    "rollout.random_steps": 60,
    "algorithm.ppo_exact.batch_size": 12,
    "loop.finetune.log_every": 1,
    "loop.finetune.evaluate_every": 0,
    "evaluate.num_episodes": 4,
    "evaluate.num_envs": 4,
}


@pytest.mark.parametrize("task, variant", VARIANTS)
def test_variants_tune_the_cloned_policy_of_dppo(task, variant):
    config = task.get_config(variant)
    assert config.name.endswith("_exact") and config.algorithm.name == "ppo_exact"
    dppo = task.get_config(variant.removesuffix("exact").removesuffix("_") or "v0_8")
    for section in ("model", "pretrain", "collect", "rollout", "env"):
        assert config[section] == dppo[section]
    settings = config.algorithm.ppo_exact
    assert settings.clip == 0.01 and settings.actor.learning_rate == 1e-5
    check_algorithm(config)


def make_config(run_dir, num_iterations):
    config = load_config("experiments/configs/hopper.py:exact")
    config.update_from_flattened_dict(TINY)
    config.run_dir = str(run_dir)
    config.loop.finetune.num_iterations = num_iterations
    return config


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(compiled_once, tmp_path):
    (whole,) = finetune.main(make_config(tmp_path / "whole", 3))
    for num_iterations in (1, 3):
        (parts,) = finetune.main(make_config(tmp_path / "parts", num_iterations))
    assert tiny.same(load_policy(parts).params, load_policy(whole).params)
    rows = read_metrics(whole)
    assert [row["env_steps"] for row in rows[1:]] == [96, 192, 288]
