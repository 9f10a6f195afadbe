"""The variants for soft actor-critic need neither data nor a policy."""

import jax
import numpy as np
import pytest

from dppo_jax.algorithms import make_algorithm
from dppo_jax.deploy import load_policy
from dppo_jax.envs.build import make_env
from dppo_jax.training.metrics import read_metrics
from experiments import directories, evaluate, finetune, inputs
from experiments.settings import load_config
from tests import tiny

pytestmark = pytest.mark.usefixtures("drawn_once")

# Stages in seconds: a time limit of 20 control steps, networks of 8 units.
TINY = {
    "env.max_steps": 20,
    "model.network.hidden_sizes": (8, 8),
    "critic.hidden_sizes": (8,),
    "rollout.num_envs": 4,
    "rollout.num_chunks": 6,
    "rollout.random_steps": 60,
    "algorithm.sac.replay.capacity": 400,
    "algorithm.sac.replay.batch_size": 8,
    "algorithm.sac.replay.random_steps": 24,
    "algorithm.sac.replay.min_fill": 24,
    "loop.finetune.log_every": 1,
    "loop.finetune.evaluate_every": 1,
    "evaluate.num_episodes": 4,
    "evaluate.num_envs": 4,
}


def make_config(run_dir, num_iterations):
    config = load_config("experiments/configs/hopper.py:sac")
    config.update_from_flattened_dict(TINY)
    config.run_dir = str(run_dir)
    config.loop.finetune.num_iterations = num_iterations
    return config


@pytest.mark.slow
def test_a_run_with_new_networks_is_resumed_and_evaluated(compiled_once, tmp_path):
    (whole,) = finetune.main(make_config(tmp_path / "whole", 3))
    for num_iterations in (1, 3):
        (parts,) = finetune.main(make_config(tmp_path / "parts", num_iterations))
    assert tiny.same(load_policy(parts).params, load_policy(whole).params)
    rows = read_metrics(whole)
    steps = [row["env_steps"] for row in rows[1:]]
    assert steps == [24, 48, 72]
    # Returns of the evaluations before the first iteration and after each one.
    returns = [row["eval/episode_return"] for row in rows]
    best = int(np.argmax(returns))
    for checkpoint, expected in (("latest", returns[-1]), ("best", returns[best])):
        scored = evaluate.main(directories.config_of_run(whole), checkpoint)
        np.testing.assert_allclose(scored["episode_return"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    "task, sizes", [("walker2d", (17, 6)), ("halfcheetah", (17, 6))]
)
def test_the_other_tasks_differ_only_in_their_sizes(task, sizes, tmp_path):
    config = load_config(f"experiments/configs/{task}.py:sac")
    config.rollout.random_steps = config.env.max_steps = 20
    obs_size, action_size = sizes
    bounds, _ = inputs.find_bounds(config, str(tmp_path / "none"))
    assert bounds.obs_min.shape == (obs_size,)
    env = make_env(config.env, normalizer=bounds, chunk=config.model.chunk, num_envs=8)
    policy = inputs.build_policy(config, action_size)
    state = jax.eval_shape(make_algorithm(env, policy, config).init, jax.random.key(0))
    assert state.replay.items.action.shape == (8, 125_000, 1, action_size)
