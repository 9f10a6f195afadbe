"""The variants for FPO++, and one of them through the stages."""

import jax
import numpy as np
import pytest

from dppo_jax.deploy import load_policy
from dppo_jax.diffusion.flow import LEAST_STD
from dppo_jax.training.metrics import read_metrics
from experiments import directories, evaluate, finetune
from experiments.configs import avoid, halfcheetah, hopper, walker2d
from experiments.settings import load_config
from tests import tiny
from tests.stages import check_algorithm

pytestmark = pytest.mark.usefixtures("drawn_once")

VARIANTS = [(avoid, v) for v in avoid.VARIANTS if v.endswith("_fpo")]
VARIANTS += [(task, "fpo") for task in (hopper, walker2d, halfcheetah)]
# Stages in seconds: a time limit of 20 control steps, networks of 8 units.
TINY = {
    "policy": "none",
    "env.max_steps": 20,
    "model.network.hidden_sizes": (8,),
    "model.network.residual": False,
    "critic.hidden_sizes": (8,),
    "critic.residual": False,
    "rollout.num_envs": 4,
    "rollout.num_chunks": 6,
    "rollout.random_steps": 60,
    "algorithm.fpo.batch_size": 12,
    "loop.finetune.log_every": 1,
    "loop.finetune.evaluate_every": 1,
    "evaluate.num_episodes": 4,
    "evaluate.num_envs": 4,
}


@pytest.mark.parametrize("task, variant", VARIANTS)
def test_variants_tune_the_flow_that_explores_by_its_start(task, variant):
    config = task.get_config(variant)
    assert config.name.endswith("_fpo") and config.algorithm.name == "fpo"
    flow = task.get_config(variant.replace("fpo", "flow"))
    assert config.collect == flow.collect and config.rollout == flow.rollout
    assert config.model.network == flow.model.network  # A cloned flow suits both.
    assert config.model.noise.std_min == config.model.noise.std_max == LEAST_STD
    check_algorithm(config)


def make_config(run_dir, num_iterations):
    config = load_config("experiments/configs/hopper.py:fpo")
    config.update_from_flattened_dict(TINY)
    config.run_dir = str(run_dir)
    config.loop.finetune.num_iterations = num_iterations
    return config


@pytest.mark.slow
def test_a_run_is_resumed_and_evaluated(compiled_once, tmp_path):
    (whole,) = finetune.main(make_config(tmp_path / "whole", 3))
    for num_iterations in (1, 3):
        (parts,) = finetune.main(make_config(tmp_path / "parts", num_iterations))
    loaded = load_policy(whole)
    assert tiny.same(load_policy(parts).params, loaded.params)
    rows = read_metrics(whole)
    assert [row["env_steps"] for row in rows[1:]] == [96, 192, 288]
    scored = evaluate.main(directories.config_of_run(whole))
    expected = rows[-1]["eval/episode_return"]
    np.testing.assert_allclose(scored["episode_return"], expected, rtol=1e-5)
    # The policy that was saved explores as roll-outs did: the moves have no noise.
    obs = {"state": np.zeros((2, 1, 11), np.float32)}
    keys = jax.random.split(jax.random.key(1), 2)
    exploring, not_exploring = (
        loaded.act(loaded.params, keys, obs, deterministic=mode)[0]
        for mode in (False, True)
    )
    np.testing.assert_allclose(exploring, not_exploring, atol=1e-4)
