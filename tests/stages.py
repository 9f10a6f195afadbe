"""Configurations with which the stages of `avoid` take seconds."""

from dppo_jax.algorithms import make_algorithm
from dppo_jax.policies import make_policy
from dppo_jax.training.metrics import read_metrics
from dppo_jax.types import VecEnv
from experiments.configs import avoid

# Stages in seconds: episodes of 8 control steps and networks of 16 units.
TINY = {
    "env.engine": "mujoco",
    "env.max_steps": 8,
    "model.network.hidden_sizes": (16,),
    "model.diffusion.num_denoising_steps": 4,
    "critic.hidden_sizes": (16,),
    "collect.modes": [(1, 3, 5)],
    "collect.episodes_per_mode": 2,
    "loop.pretrain.num_epochs": 3,
    "pretrain.warmup_epochs": 1,
    "loop.finetune.num_iterations": 2,
    "rollout.num_envs": 4,
    "rollout.num_chunks": 2,
    "model.sampling.num_tuned_steps": 2,
    "algorithm.ppo.batch_size": 8,
    "algorithm.ppo.epochs": 1,
    "evaluate.num_episodes": 6,
    "evaluate.num_envs": 4,
}


def make_config(folder, stage, **changes):
    """A locked configuration; write dots in names as double underscores."""
    config = avoid.get_config("m1")
    config.update_from_flattened_dict(TINY)
    config.data = str(folder / "data")
    config.run_dir = str(folder / stage)
    if stage == "finetune":
        config.policy = str(folder / "pretrain")
    if stage == "evaluate":
        config.policy = str(folder / "finetune")
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    return config.lock()


def evaluations(run_dir):
    rows = [row for row in read_metrics(run_dir) if "eval/episode_return" in row]
    return {int(row["iteration"]): row["eval/episode_return"] for row in rows}


def check_algorithm(config):
    """Make the policy and the algorithm of a configuration, without a simulator."""
    env = VecEnv(
        reset=lambda keys: None,
        step=lambda state, action: (state, None),
        obs_shape={"state": (1, 4)},
        action_shape=(config.model.chunk, 2),
        max_steps=None,
        num_envs=config.rollout.num_envs,
    )
    make_algorithm(env, make_policy(config.model, action_dim=2), config)
