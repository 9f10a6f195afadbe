"""Brax's ant, inside the compiled program. Bring data with --config.data=PATH.

Data must be of Brax's own observations (27 numbers by default) and actions in [-1, 1];
those of Gymnasium's ant are others.
"""

from ml_collections import ConfigDict

from experiments.defaults import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.name = "brax_ant"
    config.env.task = "brax:ant"
    # The pipeline that compiles and runs fastest; a policy is at home in one only.
    config.env.options = ConfigDict(dict(backend="spring"))
    config.env.max_steps = 1000  # as in Brax's own training

    config.rollout.num_envs = 64
    config.rollout.num_chunks = 50
    # Starting afresh would show the policy the beginnings of episodes only.
    config.rollout.reset_at_iteration = False
    ppo = config.algorithm.ppo
    ppo.batch_size = 8000  # a quarter of the 64 x 50 x 10 pairs
    ppo.clip_top = ppo.clip_base = 0.01
    ppo.target_kl = 1.0
    config.evaluate.num_episodes = config.evaluate.num_envs = 40
    return config
