"""Robosuite's Lift in host processes, needs pip install -e ".[robosuite]".

Pass robomimic's low-dimensional data with --config.data=low_dim.hdf5. The state has
the same entries in the same order.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.defaults import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.name = "robosuite_lift"
    config.env.task = "robosuite:Lift"
    config.env.options = ConfigDict(dict(robots="Panda"))
    config.env.options.processes = placeholder(int)  # None: one per core
    config.env.max_steps = 300

    config.rollout.num_envs = 16
    config.rollout.num_chunks = 75  # one episode of 300 control steps
    ppo = config.algorithm.ppo
    ppo.batch_size = 3000  # a quarter of the 16 x 75 x 10 pairs
    # The reward is 1 per step with the cube lifted, so it comes late in an episode.
    ppo.discount = 0.999
    ppo.target_kl = 1.0
    config.evaluate.num_episodes = config.evaluate.num_envs = 16
    return config
