"""Trains a demonstrator with PPO and records its episodes, for experiments.collect.

As for D4RL's "medium" data, the demonstrator is a Gaussian policy that is trained from
new networks to a return well below the best it could reach. It acts with exploration
noise.
"""

import jax
from ml_collections import ConfigDict

from dppo_jax.algorithms import make_algorithm
from dppo_jax.demonstrations.dataset import Episodes
from dppo_jax.demonstrations.recorder import (
    in_task_units,
    make_recorder,
    random_bounds,
)
from dppo_jax.envs import randomize
from dppo_jax.envs.build import make_env
from dppo_jax.errors import SettingsError
from dppo_jax.training.checkpoint import has_checkpoint, read_policy
from dppo_jax.training.config_file import load_config
from dppo_jax.training.loop import train
from dppo_jax.training.metrics import read_metrics, recent_mean
from dppo_jax.types import VecEnv
from experiments import console, directories, inputs
from experiments.seeds import loop_settings, wandb_options


def trained_episodes(config: ConfigDict) -> Episodes:
    """Train to `collect.target_return`, then record episodes in task units.

    Raises:
        SettingsError: `loop.collect.num_iterations` were too few to reach the target.
    """
    settings, config = config.collect, _own_config(config)
    bounds_key, train_key, record_key = jax.random.split(jax.random.key(config.seed), 3)
    raw_env = inputs.make_raw_env(config)
    run_dir = directories.run_path(config, "collect")
    if _resumes(run_dir, raw_env):
        # On another device the same random actions would give other bounds.
        normalizer = read_policy(run_dir).normalizer
    else:
        normalizer = random_bounds(
            raw_env, bounds_key, num_control_steps=config.rollout.random_steps
        )
    env = make_env(
        config.env, normalizer=normalizer, chunk=1, num_envs=raw_env.num_envs
    )
    policy = inputs.build_policy(config, raw_env.action_shape[0])
    algorithm = make_algorithm(env, policy, config)

    def recent_return(rows) -> float:
        count, last = "num_episodes", settings.recent_iterations
        return recent_mean(rows, "episode_return", weight=count, num_rows=last)

    act = in_task_units(policy.act, normalizer)
    record = make_recorder(raw_env, act, num_control_steps=settings.num_control_steps)
    print(f"training a demonstrator, writing to {run_dir}", flush=True)
    state = train(
        algorithm,
        algorithm.init(train_key),
        run_dir=run_dir,
        prepare=lambda: directories.prepare_run(config, "collect"),
        normalizer=normalizer,
        stop=lambda rows: recent_return(rows) >= settings.target_return,
        show=("episode_return", "env_steps"),
        progress=console.progress(may_stop=True),
        wandb=wandb_options(config, "collect"),
        **loop_settings(config, "collect"),
    )
    reached = recent_return(read_metrics(run_dir))
    if not reached >= settings.target_return:
        raise SettingsError(
            f"the demonstrator's return is {reached:.4g} after {state.iteration} "
            f"iterations, below collect.target_return={settings.target_return:.4g}; "
            "raise --config.loop.collect.num_iterations to resume this run, or lower "
            "the target."
        )
    print(
        f"return {reached:.4g}, recording {settings.num_control_steps} steps",
        flush=True,
    )
    return record(state.params, record_key)


def _resumes(run_dir: str, env: VecEnv) -> bool:
    """Whether a run has a checkpoint with bounds for an environment.

    That of another task is refused later, by its settings.
    """
    if load_config(run_dir) is None or not has_checkpoint(run_dir):
        return False
    bounds = read_policy(run_dir).normalizer
    sizes = (bounds.obs_min.shape, bounds.action_min.shape)
    return sizes == (env.obs_shape["state"], env.action_shape)


def _own_config(config: ConfigDict) -> ConfigDict:
    """The configuration of the demonstrator's run: `collect` replaces its sections."""
    own = config.copy_and_resolve_references()
    own.model, own.critic = own.collect.model, own.collect.critic
    own.rollout, own.algorithm.ppo = own.collect.rollout, own.collect.ppo
    own.algorithm.name = "ppo"
    own.env.update(history=1, executed=None)
    own.env.randomization = randomize.default_config()
    return own
