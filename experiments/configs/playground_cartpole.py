"""MuJoCo Playground's cart-pole, needs pip install -e ".[playground]".

Pass data with --config.data=PATH.
"""

from ml_collections import ConfigDict

from experiments.defaults import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.name = "playground_cartpole"
    config.env.task = "playground:CartpoleBalance"
    config.env.max_steps = 1000  # as in Playground's own training

    # The action is one number, and its distribution needs only one mode.
    config.model.kind = "gaussian"
    config.model.chunk = 1  # the pole falls within a few open-loop steps
    config.model.network.hidden_sizes = (64, 64, 64)

    config.rollout.num_envs = 64
    config.rollout.num_chunks = 100
    # An iteration is a tenth of an episode.
    config.rollout.reset_at_iteration = False
    ppo = config.algorithm.ppo
    ppo.batch_size = 1600  # a quarter of the 64 x 100 pairs
    ppo.clip_top = ppo.clip_base = 0.1
    config.evaluate.num_episodes = config.evaluate.num_envs = 40
    return config
