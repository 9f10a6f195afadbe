"""Any Gymnasium environment in host processes: `gymnasium_env.py:Hopper-v5`.

The variant is Gymnasium's id; `module:Env-v0` imports the module first. Pass data in
the units of that environment with --config.data=PATH.
"""

import re

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.defaults import default_config


def get_config(variant: str = "Hopper-v5") -> ConfigDict:
    config = default_config()
    config.name = "gymnasium_" + re.sub(r"\W+", "_", variant)
    config.env.task = f"gymnasium:{variant}"
    config.env.options.processes = placeholder(int)  # None: one per core
    config.env.max_steps = 1000  # Gymnasium's own limit applies too

    # Simulators in Python are slow, so there are few, and many updates on their data.
    config.rollout.num_envs = 16
    config.rollout.num_chunks = 100
    ppo = config.algorithm.ppo
    ppo.batch_size = 4000  # a quarter of the 16 x 100 x 10 pairs
    # An iteration is shorter than an episode.
    config.rollout.reset_at_iteration = False
    ppo.target_kl = 1.0
    config.evaluate.num_episodes = config.evaluate.num_envs = 16
    return config
