"""The variants for RLPD, Cal-QL and IBRL, and each of them through the stages."""

import jax
import numpy as np
import pytest

from dppo_jax.demonstrations import load_dppo_npz, save_dppo_npz
from dppo_jax.deploy import load_policy
from dppo_jax.policies import ProposalParams
from dppo_jax.training.metrics import read_metrics
from experiments import directories, evaluate, finetune, pretrain
from experiments.configs import avoid, halfcheetah, hopper, walker2d
from experiments.settings import load_config, override
from tests import tiny
from tests.demonstrated import MODULES
from tests.stages import TINY

pytestmark = pytest.mark.usefixtures("drawn_once")

VARIANTS = [(avoid, f"{subset}_{x}") for subset in ("m1", "m2", "m3") for x in MODULES]
VARIANTS += [(task, x) for task in (hopper, walker2d, halfcheetah) for x in MODULES]
# Settings of `TINY` that are those of other policies.
NOT_THESE = ("model.diffusion.", "model.sampling.", "algorithm.ppo.")


@pytest.mark.parametrize("task, variant", VARIANTS)
def test_variants_make_their_algorithm_with_layer_normalisation(task, variant):
    config = task.get_config(variant)
    name = config.algorithm.name
    assert config.name.endswith(f"_{name}") and variant.endswith(name)
    assert config.critic.layer_norm and not config.critic.residual
    assert (config.policy == "none") == (name != "ibrl")
    settings = config.algorithm[name]
    per_iteration = config.rollout.num_envs * config.rollout.num_chunks
    rounds = per_iteration * settings.replay.updates_per_transition
    assert rounds % settings.replay.updates_per_round == 0
    override(config, [f"algorithm.{name}.reference_quirks=one,other"])
    assert settings.reference_quirks == ("one", "other")


def make_config(name, world, folder, num_iterations):
    config = load_config(f"experiments/configs/avoid.py:m1_{name}")
    config.update_from_flattened_dict(
        {k: x for k, x in TINY.items() if not k.startswith(NOT_THESE)}
    )
    settings = config.algorithm[name]
    settings.replay.update(capacity=400, batch_size=8)
    settings.num_critics = 2
    if name == "calql":
        settings.update(offline_iterations=1, offline_updates=4)
    config.update(data=str(world / "data"), run_dir=str(folder))
    config.loop.finetune.update(
        num_iterations=num_iterations, log_every=1, evaluate_every=1
    )
    return config


@pytest.fixture
def cloned(world, tmp_path):
    """A function that sets the policy of a configuration, if it starts from one."""

    def clone(config):
        if config.policy == "none":
            return config
        config.policy = str(tmp_path / "cloned")
        if not (tmp_path / "cloned").exists():
            own = make_config("ibrl", world, config.policy, 1)
            own.loop.pretrain.num_epochs = 1
            own.env.task = ""
            pretrain.main(own)
        return config

    return clone


SLOW = [pytest.param(x, marks=pytest.mark.slow) for x in ("calql", "ibrl")]


@pytest.mark.parametrize("name", ["rlpd", *SLOW])
def test_a_run_is_resumed_and_evaluated(name, world, cloned, compiled_once, tmp_path):
    def go(folder, num_iterations):
        config = make_config(name, world, tmp_path / folder, num_iterations)
        return finetune.main(cloned(config))[0]

    whole = go("whole", 3)
    go("parts", 1)
    loaded = load_policy(whole)
    assert tiny.same(load_policy(go("parts", 3)).params, loaded.params)
    assert isinstance(loaded.params, ProposalParams) == (name == "ibrl")
    rows = read_metrics(whole)
    steps = [0, 32, 64] if name == "calql" else [32, 64, 96]
    assert [row["env_steps"] for row in rows[1:]] == steps
    scored = evaluate.main(directories.config_of_run(whole))
    expected = rows[-1]["eval/episode_return"]
    np.testing.assert_allclose(scored["episode_return"], expected, rtol=1e-5)
    action, _ = loaded.act(
        loaded.params,
        jax.random.split(jax.random.key(0), 2),
        {"state": np.zeros((2, 1, 4), np.float32)},
    )
    assert action.shape == (2, 4, 2)
    if name == "ibrl":
        config = make_config(name, world, tmp_path / "again", 1)
        config.policy = whole
        with pytest.raises(ValueError, match="holds what ibrl acts with"):
            finetune.main(config)


def test_data_without_rewards_are_refused_before_anything_runs(world, tmp_path):
    episodes = load_dppo_npz(world / "data")
    save_dppo_npz(tmp_path / "data", episodes._replace(rewards=None))
    config = make_config("rlpd", world, tmp_path / "run", 1)
    config.data = str(tmp_path / "data")
    with pytest.raises(ValueError, match="rlpd needs demonstrations with rewards"):
        finetune.main(config)
    config.data = str(tmp_path / "nothing")
    with pytest.raises(ValueError, match="nothing does not exist"):
        finetune.main(config)
    assert not (tmp_path / "run").exists()
