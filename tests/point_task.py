"""A task and configurations with which a whole run takes seconds: --config=THIS:sac.

All of a run is compiled JAX, which the compilation cache keeps, so a run starts as fast
as it imports.
"""

from ml_collections import ConfigDict

from dppo_jax.types import Env
from experiments.defaults import default_config
from tests import tiny


def make_task() -> Env:
    """`tiny.point_task` with episodes of several lengths."""
    return tiny.point_task((2, 3, 5))


def get_config(variant: str) -> ConfigDict:
    """PPO of a diffusion policy, or "sac"; both from new networks."""
    config = default_config()
    config.name, config.policy = f"point_{variant}", "none"
    config.env.task, config.env.max_steps = f"{__file__}:make_task", 8
    config.model.chunk = 1
    config.model.network.hidden_sizes = config.critic.hidden_sizes = (8,)
    config.model.network.residual = config.critic.residual = False
    config.rollout.update(num_envs=4, num_chunks=4, random_steps=64)
    config.rollout.reset_at_iteration = False
    config.evaluate.update(num_episodes=4, num_envs=4)
    if variant == "sac":
        config.model.kind = "squashed"
        config.algorithm.name = "sac"
        config.algorithm.sac.replay.update(
            capacity=64, batch_size=8, min_fill=16, random_steps=16
        )
    else:
        config.model.diffusion.num_denoising_steps = 2
        config.model.sampling.num_tuned_steps = 2
        config.algorithm.ppo.update(batch_size=8, epochs=1)
    config.loop.finetune.update(
        num_iterations=25, evaluate_every=4, checkpoint_every=1, log_every=1
    )
    return config
