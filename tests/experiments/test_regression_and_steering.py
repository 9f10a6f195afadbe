"""The variants for DRWR, DAWR and DSRL, and DSRL through the stages."""

import jax
import numpy as np
import pytest

from dppo_jax.algorithms import find_acting
from dppo_jax.deploy import load_policy
from dppo_jax.errors import SettingsError
from dppo_jax.training.metrics import read_metrics
from experiments import directories, evaluate, finetune
from experiments.configs import avoid, halfcheetah, hopper, walker2d
from tests import tiny
from tests.stages import check_algorithm, make_config

pytestmark = pytest.mark.usefixtures("drawn_once")

NAMES = ("drwr", "dawr", "dsrl")
VARIANTS = [(avoid, v) for v in avoid.VARIANTS if v.endswith(NAMES)]
VARIANTS += [(task, name) for task in (hopper, walker2d, halfcheetah) for name in NAMES]
# One round of 2 + 1 updates for 12 transitions.
TINY = dict(
    algorithm__name="dsrl",
    model__sampling__ddim_steps=2,
    model__sampling__num_tuned_steps=1,
    rollout__num_chunks=3,
    rollout__reset_at_iteration=False,
    critic__hidden_sizes=(8,),
    loop__finetune__evaluate_every=1,
)


@pytest.mark.parametrize("task, variant", VARIANTS)
def test_variants_start_from_the_policy_that_dppo_starts_from(task, variant):
    config = task.get_config(variant)
    name = config.algorithm.name
    assert config.name.endswith(f"_{name}") and variant.endswith(name)
    dppo = task.get_config(variant.split("_")[0] if task is avoid else "cpu")
    for section in ("network", "diffusion", "chunk"):
        assert config.model[section] == dppo.model[section]
    assert config.collect == dppo.collect and config.pretrain == dppo.pretrain
    check_algorithm(config)


def steer(folder, run_dir, num_iterations, **changes):
    config = make_config(folder, "finetune", **(TINY | changes))
    config.run_dir = str(run_dir)
    config.loop.finetune.num_iterations = num_iterations
    dsrl = config.algorithm.dsrl
    dsrl.network.hidden_sizes = (8,)
    dsrl.distillation_updates = 1
    dsrl.replay.update(capacity=60, batch_size=4, random_steps=12, min_fill=12)
    dsrl.replay.update(updates_per_round=3, updates_per_transition=0.25)
    return config


@pytest.mark.slow
def test_a_steered_policy_is_resumed_loaded_and_evaluated(
    world, compiled_once, tmp_path
):
    (whole,) = finetune.main(steer(world, tmp_path / "whole", 2))
    for num_iterations in (1, 2):
        (parts,) = finetune.main(steer(world, tmp_path / "parts", num_iterations))
    loaded, cloned = load_policy(whole), load_policy(world / "pretrain")
    assert tiny.same(load_policy(parts).params, loaded.params)
    assert tiny.same(loaded.params.decoder, cloned.params)
    expected = read_metrics(whole)[-1]["eval/episode_return"]
    scored = evaluate.main(directories.config_of_run(whole))
    np.testing.assert_allclose(scored["episode_return"], expected, rtol=1e-5)
    # The starts are bounded, and the frozen policy makes actions of them.
    obs = {"state": np.zeros((50, 1, 4), np.float32)}
    keys = jax.random.split(jax.random.key(1), 50)
    action, start = loaded.act(loaded.params, keys, obs)
    assert action.shape == start.shape == (50, 4, 2)
    assert abs(start).max() <= 1.5
    # Only the same algorithm can start from it.
    config = make_config(world, "finetune", policy=whole)
    config.model.sampling.update(ddim_steps=2, num_tuned_steps=1)
    config.run_dir = str(tmp_path / "ppo")
    with pytest.raises(
        SettingsError, match="holds what dsrl acts with.*the cloned policy"
    ):
        finetune.main(config)


def test_the_zero_line_is_the_cloned_policy_with_ddim(world, tmp_path):
    """Settings of a later stage do not turn a cloned policy into a steered one."""
    assert find_acting({"base": 0, "tuned": 0}) is None
    name, _ = find_acting({"decoder": 0, "actor": 0})
    assert name == "dsrl" and find_acting({"decoder": 0}) is None
    config = steer(world, tmp_path, 1)
    config.policy = str(world / "pretrain")
    scored = evaluate.main(config)
    assert np.isfinite(scored["episode_return"])
