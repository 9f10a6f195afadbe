"""Brax's ant, inside the compiled program. Pass data with --config.data=PATH.

The data must have Brax's observations (27 numbers by default) and actions in [-1, 1].
Data of Gymnasium's ant do not fit.
"""

from ml_collections import ConfigDict

from experiments.defaults import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.name = "brax_ant"
    config.env.task = "brax:ant"
    # The pipeline that compiles and runs fastest. A policy suits only one pipeline.
    config.env.options = ConfigDict(dict(backend="spring"))
    config.env.max_steps = 1000  # as in Brax's own training

    config.rollout.num_envs = 64
    config.rollout.num_chunks = 50
    # With resets, iterations would see only the beginnings of episodes.
    config.rollout.reset_at_iteration = False
    ppo = config.algorithm.ppo
    ppo.batch_size = 8000  # a quarter of the 64 x 50 x 10 pairs
    ppo.clip_top = ppo.clip_base = 0.01
    ppo.target_kl = 1.0
    config.evaluate.num_episodes = config.evaluate.num_envs = 40
    return config
