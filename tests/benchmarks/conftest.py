"""Configurations so small that their benchmarks take a moment."""

import pytest

from benchmarks import floors, setups
from experiments.settings import load_config


@pytest.fixture
def tiny(monkeypatch):
    """Avoid with networks of 16, four environments and two chunks."""
    monkeypatch.setattr(floors, "CALL_SECONDS", 1e-4)
    config = load_config(setups.AVOID)
    config.model.network.hidden_sizes = config.critic.hidden_sizes = (16, 16, 16)
    config.rollout.update(num_envs=4, num_chunks=2)
    config.algorithm.ppo.update(batch_size=20, epochs=3)
    config.pretrain.batch_size = 8
    return config


@pytest.fixture
def tiny_pixels():
    """Avoid seen by a camera, with networks of 16, and 8 numbers per patch."""
    config = load_config("experiments/configs/avoid.py:m1_pixels")
    for network in (config.model.network, config.critic):
        network.hidden_sizes = (16, 16, 16)
        network.encoder.vit.update(embed_dim=8, num_heads=2, features=7)
    config.rollout.update(num_envs=4, num_chunks=2)
    return config


@pytest.fixture
def tiny_sac(monkeypatch):
    """Hopper with networks of 16, four environments and two chunks, eight updates."""
    monkeypatch.setattr(floors, "CALL_SECONDS", 1e-4)
    config = load_config(setups.HOPPER_SAC)
    config.model.network.hidden_sizes = config.critic.hidden_sizes = (16, 16)
    config.rollout.update(num_envs=4, num_chunks=2)
    config.algorithm.sac.replay.update(capacity=40, batch_size=8)
    config.algorithm.sac.replay.update(min_fill=10, random_steps=10)
    return config
