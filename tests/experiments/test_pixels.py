"""A policy that sees pictures goes through all stages."""

import jax
import numpy as np
import pytest

from dppo_jax.demonstrations import load_demonstrations
from dppo_jax.deploy import load_policy
from dppo_jax.errors import SettingsError
from dppo_jax.training.metrics import read_metrics
from experiments import collect, finetune, pretrain
from experiments.configs import avoid
from tests.stages import TINY

CAMERA = """
from dppo_jax.envs.tasks import avoid_camera


def small(env):
    return avoid_camera.with_camera(env, 16)
"""
SMALL = {
    "image_size": (16, 16),
    "embed_dim": 8,
    "num_heads": 2,
    "features": 8,
}


def make_config(folder, stage):
    config = avoid.get_config("m1_pixels")
    config.update_from_flattened_dict(
        TINY | {"model.sampling.ddim_steps": 2, "algorithm.ppo.batch_size": 8}
    )
    config.env.wrappers = (str(folder / "camera.py:small"),)
    for encoder in (config.model.network.encoder, config.critic.encoder):
        encoder.vit.update(SMALL)
    config.pretrain.random_shift = config.algorithm.ppo.random_shift = 1
    config.data = str(folder / "data")
    config.run_dir = str(folder / stage)
    if stage == "finetune":
        config.policy = str(folder / "pretrain")
    return config.lock()


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pixels")
    (folder / "camera.py").write_text(CAMERA)
    collect.main(make_config(folder, "collect"))
    return folder


@pytest.fixture(scope="module")
def world(collected):
    folder = collected
    for stage in (pretrain, finetune):
        stage.main(make_config(folder, stage.__name__.split(".")[-1]))
    return folder


def test_demonstrations_have_the_pictures_of_their_states(collected):
    episodes = load_demonstrations(str(collected / "data"))
    images = episodes.observations["rgb"]
    assert images.shape == (len(episodes.actions), 16, 16, 3)
    assert images.dtype == np.uint8 and len(np.unique(images, axis=0)) > 10


@pytest.mark.slow
def test_fine_tuning_moves_the_encoder(world):
    """Ratios start at one, so the pictures of the roll-out are those of the updates."""
    before, after = (
        load_policy(world / stage).params.tuned["params"]["encoder"]
        for stage in ("pretrain", "finetune")
    )
    assert all(
        (a != b).any()
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    )
    first = next(row for row in read_metrics(world / "finetune") if "ratio" in row)
    assert first["ratio"] == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_a_loaded_policy_acts_by_pictures_of_the_size_that_it_learned(world):
    saved = load_policy(world / "finetune")
    keys = jax.random.split(jax.random.key(0), 1)
    state = np.zeros((1, 1, 4), np.float32)
    images = {size: np.zeros((1, 1, size, size, 3), np.uint8) for size in (16, 32)}
    action, _ = saved.act(saved.params, keys, {"state": state, "rgb": images[16]})
    assert action.shape == (1, 4, 2) and np.isfinite(action).all()
    for obs in ({}, {"rgb": images[32]}):
        with pytest.raises(SettingsError, match=r"obs\['rgb'\] has shape .*16, 16, 3"):
            saved.act(saved.params, keys, {"state": state, **obs})
