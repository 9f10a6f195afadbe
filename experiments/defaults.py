"""Defaults of every stage; an experiment overrides what differs, and says why."""

from ml_collections import ConfigDict

from dppo_jax import policies, pretrain
from dppo_jax.algorithms import ppo
from dppo_jax.envs import build


def default_config() -> ConfigDict:
    """One configuration serves all stages, so that they cannot disagree."""
    config = ConfigDict()
    config.name = ""
    config.seed = 0
    config.run_dir = ""  # empty: runs/<name>/<stage>
    config.data = ""  # empty: data/<name>, which experiments.collect writes
    config.policy = ""  # empty: runs/<name>/pretrain (evaluate: .../finetune)
    config.env = build.default_config()
    config.model = policies.default_config()
    config.critic = ConfigDict(
        dict(
            hidden_sizes=(256, 256, 256),
            activation="mish",
            layer_norm=False,
            residual=True,
        )
    )
    config.pretrain = pretrain.default_config()
    config.finetune = ppo.default_config()
    config.evaluate = ConfigDict(
        dict(num_episodes=200, num_envs=200, deterministic=True, seed=0)
    )
    config.collect = ConfigDict()
    # Host loops: iterations (epochs) between rows, evaluations and checkpoints; an
    # evaluation every 0 is one before and one after.
    config.loop = ConfigDict()
    config.loop.pretrain = ConfigDict(
        dict(log_every=10, evaluate_every=0, checkpoint_every=500)
    )
    config.loop.finetune = ConfigDict(
        dict(log_every=1, evaluate_every=10, checkpoint_every=10)
    )
    return config
