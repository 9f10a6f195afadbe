"""PPO over the moves of a policy's chain."""

from dppo_jax.algorithms.ppo.algorithm import make, make_ppo
from dppo_jax.algorithms.ppo.settings import default_config
