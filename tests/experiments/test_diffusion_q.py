"""The variants of IDQL, DQL, QSM, DIPO and OGPO; IDQL and OGPO through the stages."""

import jax
import numpy as np
import pytest

from dppo_jax.deploy import load_policy
from dppo_jax.training.metrics import read_metrics
from experiments import directories, evaluate, finetune
from experiments.configs import avoid, halfcheetah, hopper, walker2d
from experiments.settings import load_config
from tests import tiny
from tests.stages import check_algorithm

pytestmark = pytest.mark.usefixtures("drawn_once")

NAMES = (*avoid.OFF_POLICY, "ogpo")
VARIANTS = [(avoid, f"{m}_{x}") for m in ("m1", "m2", "m3") for x in NAMES]
VARIANTS += [(task, x) for task in (hopper, walker2d, halfcheetah) for x in NAMES]
# Stages in seconds: a time limit of 20 control steps, networks of 8 units.
TINY = {
    "policy": "none",
    "env.max_steps": 20,
    "model.network.hidden_sizes": (8,),
    "model.network.residual": False,
    "model.diffusion.num_denoising_steps": 4,
    "model.sampling.num_tuned_steps": 4,
    "critic.hidden_sizes": (8,),
    "critic.residual": False,
    "rollout.num_envs": 4,
    "rollout.num_chunks": 6,
    "rollout.random_steps": 60,
    "loop.finetune.log_every": 1,
    "loop.finetune.evaluate_every": 1,
    "evaluate.num_episodes": 4,
    "evaluate.num_envs": 4,
}


@pytest.mark.parametrize("task, variant", VARIANTS)
def test_variants_train_all_steps_of_the_cloned_policy(task, variant):
    config = task.get_config(variant)
    name = variant.rpartition("_")[2]
    assert config.name.endswith(f"_{name}") and config.algorithm.name == name
    runner = "v0_8" if name == "ogpo" else "cpu"
    of_dppo = task.get_config(runner if variant == name else variant[:2])
    assert config.model.network == of_dppo.model.network
    assert config.model.diffusion == of_dppo.model.diffusion
    rollout, replay = config.rollout, config.algorithm[name].replay
    collected = rollout.num_envs * rollout.num_chunks
    collected *= config.loop.finetune.num_iterations
    assert collected <= replay.capacity
    check_algorithm(config)


def make_config(name, run_dir, num_iterations):
    config = load_config(f"experiments/configs/hopper.py:{name}")
    config.update_from_flattened_dict(TINY)
    settings = config.algorithm[name]
    settings.replay.update(capacity=400, batch_size=8, updates_per_transition=0.5)
    settings.update(critic_warmup=0, num_samples=3)
    if name == "ogpo":
        config.model.sampling.ddim_steps = None
        settings.replay.update(min_fill=0, updates_per_round=2)
        settings.update(actor_states=4, group_size=2)
    config.run_dir = str(run_dir)
    config.loop.finetune.num_iterations = num_iterations
    return config


@pytest.mark.slow
@pytest.mark.parametrize("name", ["idql", "ogpo"])
def test_a_run_is_resumed_evaluated_and_tuned_further(name, compiled_once, tmp_path):
    (whole,) = finetune.main(make_config(name, tmp_path / "whole", 2))
    for num_iterations in (1, 2):
        (parts,) = finetune.main(make_config(name, tmp_path / "parts", num_iterations))
    loaded = load_policy(whole)
    assert tiny.same(load_policy(parts).params, loaded.params)
    rows = read_metrics(whole)
    config = directories.config_of_run(whole)
    scored = evaluate.main(config)
    expected = rows[-1]["eval/episode_return"]
    np.testing.assert_allclose(scored["episode_return"], expected, rtol=1e-5)
    # The policy alone, without a choice among its chunks; OGPO only explores by one.
    config.evaluate.deterministic = name == "idql"
    scored = evaluate.main(config)
    config.algorithm[name].num_samples = 1
    assert evaluate.main(config)["episode_return"] != scored["episode_return"]
    # Another algorithm starts from the policy without its critics.
    config = make_config(name, tmp_path / "more", 1)
    config.policy = whole
    config.algorithm.name = "ppo"
    config.algorithm.ppo.batch_size = 48
    (more,) = finetune.main(config)
    obs = {"state": np.zeros((2, 1, 11), np.float32)}
    keys = jax.random.split(jax.random.key(1), 2)
    tuned = load_policy(more)
    assert set(tuned.params._fields) == {"base", "tuned", "num_active"}
    assert np.isfinite(tuned.act(tuned.params, keys, obs)[0]).all()
