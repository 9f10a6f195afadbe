"""One seed or many: run directories and states for `training.train`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dppo_jax.envs.adapters import is_host
from dppo_jax.errors import SettingsError
from dppo_jax.training import seeds
from dppo_jax.training.config_file import load_config
from dppo_jax.training.loop import train
from dppo_jax.training.metrics import has_reached
from dppo_jax.types import Algorithm
from experiments import directories


def check_seeds(config: ConfigDict, *, steps_env: bool) -> None:
    """Refuse a number of seeds that cannot be trained.

    Args:
        steps_env: whether training steps environments, which must then be pure.

    Raises:
        SettingsError: less than one seed, or many in host environments.
    """
    if config.num_seeds < 1:
        raise SettingsError(f"num_seeds={config.num_seeds} must be at least 1.")
    if config.num_seeds > 1 and steps_env and is_host(config.env.task):
        raise SettingsError(
            f"num_seeds={config.num_seeds}: {config.env.task} runs in host processes, "
            "which serve one seed; start one command per seed, with --config.seed and "
            "--config.run_dir."
        )


def train_seeds(
    config: ConfigDict,
    stage: str,
    algorithm: Algorithm,
    *args: Any,
    origin: Mapping[str, str],
    **settings: Any,
) -> dict[str, Any]:
    """Train `config.num_seeds` seeds, from `config.seed` on, in one program.

    Every seed has a run directory of its own, as if it ran alone.

    Args:
        *args: what `algorithm.init` takes beside a key, the same for all seeds.
        origin: digests of what they start from, see `directories.prepare_run`.
        **settings: of `training.train`.

    Returns:
        Run directory -> final state.

    Raises:
        SettingsError: a directory belongs to another run, or settings of the loop that
            contradict each other.
    """
    settings |= loop_settings(config, stage)
    configs = seed_configs(config, stage)
    if config.num_seeds > 1:
        algorithm = seeds.many(algorithm, config.num_seeds)
        keys = jnp.stack([jax.random.key(own.seed) for own in configs])
        state = algorithm.init(keys, *args)
        run_dirs = directories.prepare_runs(configs, stage, origin)
        where = f"{len(run_dirs)} seeds, {run_dirs[0]} to {Path(run_dirs[-1]).name}"
        print(f"writing to {where}", flush=True)
        return dict(
            zip(run_dirs, train(algorithm, state, run_dir=run_dirs, **settings))
        )
    state = algorithm.init(jax.random.key(config.seed), *args)
    (run_dir,) = directories.prepare_runs(configs, stage, origin)
    print(f"writing to {run_dir}", flush=True)
    return {run_dir: train(algorithm, state, run_dir=run_dir, **settings)}


def seed_configs(config: ConfigDict, stage: str) -> list[ConfigDict]:
    """The configuration of every seed, as it would be if the seed ran alone.

    Raises:
        SettingsError: the folder for the seeds is itself a run directory.
    """
    if config.num_seeds == 1:
        return [config]
    folder = config.run_dir or str(Path("runs") / config.name / f"{stage}_seeds")
    if load_config(folder) is not None:
        raise SettingsError(
            f"{folder} is the directory of a single run; pass another --config.run_dir "
            f"for the {config.num_seeds} of num_seeds."
        )
    configs = []
    for seed in range(config.seed, config.seed + config.num_seeds):
        own = config.copy_and_resolve_references()
        own.update(seed=seed, num_seeds=1, run_dir=str(Path(folder) / f"seed_{seed}"))
        configs.append(own.lock())
    return configs


def loop_settings(config: ConfigDict, stage: str) -> dict[str, Any]:
    """Arguments of `train`; a return to stop at becomes its `stop`.

    Raises:
        SettingsError: numbers of iterations that are none, or a `stop` without a look.
    """
    loop = dict(config.loop[stage])
    length = "num_epochs" if "num_epochs" in loop else "num_iterations"
    counts = loop.keys() - {"stop_at_return", "keep_best"}
    for name, least in {name: int(name == length) for name in sorted(counts)}.items():
        if loop[name] < least:
            raise SettingsError(
                f"loop.{stage}.{name}={loop[name]} must be at least {least}."
            )
    loop["num_iterations"] = loop.pop(length)
    target = loop.pop("stop_at_return", None)
    if target is None:
        return loop
    if loop["evaluate_every"] < 1:
        raise SettingsError(
            f"stop_at_return={target} looks at evaluations, but evaluate_every="
            f"{loop['evaluate_every']} asks for none on the way; set it in "
            "--config.loop as well."
        )
    loop["stop"] = lambda rows: has_reached(rows, "eval/episode_return", target)
    return loop
