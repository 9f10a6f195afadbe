"""Trains one or several seeds with `training.train`, each in a run directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dppo_jax.envs.adapters import is_host
from dppo_jax.errors import SettingsError
from dppo_jax.training import parallel, seeds, wandb_run
from dppo_jax.training.config_file import load_config
from dppo_jax.training.loop import train
from dppo_jax.training.metrics import has_reached
from dppo_jax.training.run_directory import check_run_dir
from dppo_jax.types import Algorithm
from experiments import console, directories, dry_run, latest


def check_seeds(config: ConfigDict, *, steps_env: bool) -> None:
    """Refuse before anything is built what `train_seeds` could not do.

    Args:
        steps_env: whether training steps environments; for several seeds these must
            be pure.

    Raises:
        SettingsError: less than one seed, several with host environments, numbers
            that are no seeds, or metrics that cannot be sent, see `wandb_options`.
    """
    wandb_options(config, "")
    if config.num_seeds < 1:
        raise SettingsError(f"num_seeds={config.num_seeds} must be at least 1.")
    check_seed("seed", config.seed, last=config.seed + config.num_seeds - 1)
    if config.num_seeds > 1 and steps_env and is_host(config.env.task):
        raise SettingsError(
            f"num_seeds={config.num_seeds}: {config.env.task} runs in host processes, "
            "which serve one seed; start one command per seed, with --config.seed and "
            "--config.run_dir."
        )


def check_seed(name: str, seed: int, last: int | None = None) -> None:
    """Raise SettingsError unless random keys of JAX differ from this seed to `last`."""
    if seed < 0 or (seed if last is None else last) >= 2**32:
        raise SettingsError(
            f"{name}={seed} must be between 0 and 2^32 - 1, and so must be the last of "
            "several seeds."
        )


def train_seeds(
    config: ConfigDict,
    stage: str,
    algorithm: Algorithm,
    *args: Any,
    origin: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train `config.num_seeds` seeds, from `config.seed` on, in one program.

    Every seed has its own run directory, as if it ran alone.

    Args:
        *args: arguments of `algorithm.init` after the key, the same for all seeds.
        origin: digests of what they start from, see `directories.prepare_run`.
        about: what checkpoints say of what they start from, see `inputs`.
        **settings: further arguments of `training.train`.

    Returns:
        Run directory -> final state.

    Raises:
        SettingsError: a directory belongs to another run, or settings of the loop
            contradict each other.
        Planned: of a dry run, instead of training.
    """
    settings |= loop_settings(config, stage)
    settings["wandb"] = wandb_options(config, stage)
    configs = seed_configs(config, stage)
    run_dirs = [directories.run_path(own, stage) for own in configs]

    def prepare() -> None:
        directories.prepare_runs(configs, stage, origin)
        if parallel.is_first_process():
            latest.point_to(run_dirs[0])
        where = run_dirs[0]
        if len(run_dirs) > 1:
            where = f"{len(run_dirs)} seeds, {where} to {Path(run_dirs[-1]).name}"
        print(f"writing to {where}", flush=True)

    if console.is_dry_run():
        plan = dry_run.training(
            config, stage, algorithm, run_dirs, settings["num_iterations"], *args
        )
        raise dry_run.Planned(plan)
    settings["progress"] = console.progress(
        unit="epoch" if stage == "pretrain" else "iteration",
        num_episodes=config.evaluate.num_episodes,
        may_stop="stop" in settings,
    )
    settings["prepare"] = prepare
    settings["about"] = dict(about or {}) | {"evaluate": about_evaluation(config)}
    if config.num_seeds > 1:
        algorithm = seeds.many(algorithm, config.num_seeds)
        keys = jnp.stack([jax.random.key(own.seed) for own in configs])
        state = algorithm.init(keys, *args)
        return dict(
            zip(run_dirs, train(algorithm, state, run_dir=run_dirs, **settings))
        )
    state = algorithm.init(jax.random.key(config.seed), *args)
    (run_dir,) = run_dirs
    return {run_dir: train(algorithm, state, run_dir=run_dir, **settings)}


def wandb_options(config: ConfigDict, stage: str) -> dict[str, Any] | None:
    """The argument `wandb` of `train`.

    Raises:
        SettingsError: the package is missing, an unknown mode, or settings without a
            project.
    """
    if config.wandb.project is None:
        idle = [name for name, value in config.wandb.items() if value is not None]
        if idle:
            raise SettingsError(
                f"wandb.{idle[0]}={config.wandb[idle[0]]!r} needs wandb.project, "
                "without which nothing is sent."
            )
        return None
    modes = (None, "online", "offline")
    if config.wandb.mode not in modes:
        raise SettingsError(
            f"wandb.mode={config.wandb.mode!r} must be 'online' or 'offline'."
        )
    wandb_run.check_installed()
    given = {"group": config.name or None, **config.wandb}
    chosen = {name: value for name, value in given.items() if value is not None}
    return {"job_type": stage, **chosen}


def about_evaluation(config: ConfigDict) -> dict[str, Any]:
    """The settings that an evaluation of a policy depends on."""
    return {
        "task": config.env.task,
        "num_episodes": config.evaluate.num_episodes,
        "deterministic": config.evaluate.deterministic,
        "seed": config.evaluate.seed,
    }


def seed_configs(config: ConfigDict, stage: str) -> list[ConfigDict]:
    """The configuration of every seed, as for a run of this seed alone.

    Raises:
        SettingsError: the folder for the seeds is itself a run directory, or not a
            folder.
    """
    if config.num_seeds == 1:
        return [config]
    folder = config.run_dir or directories.default_path(
        config, "runs", f"{stage}_seeds", flag="run_dir"
    )
    check_run_dir(folder)
    if load_config(folder) is not None:
        raise SettingsError(
            f"{folder} is the directory of a single run; pass another --config.run_dir "
            f"for num_seeds={config.num_seeds}."
        )
    configs = []
    for seed in range(config.seed, config.seed + config.num_seeds):
        own = config.copy_and_resolve_references()
        own.update(seed=seed, num_seeds=1, run_dir=str(Path(folder) / f"seed_{seed}"))
        configs.append(own.lock())
    return configs


def loop_settings(config: ConfigDict, stage: str) -> dict[str, Any]:
    """Arguments of `train`.

    The settings `stop_at_return` and `evaluate_from_return` become its `stop` and its
    `evaluate_if`.

    Raises:
        SettingsError: a number of iterations is too small, or `stop_at_return` is set
            without evaluations during training.
    """
    loop = dict(config.loop[stage])
    length = "num_epochs" if "num_epochs" in loop else "num_iterations"
    counts = loop.keys() - {"stop_at_return", "evaluate_from_return", "keep_best"}
    for name, least in {name: int(name == length) for name in sorted(counts)}.items():
        if loop[name] < least:
            raise SettingsError(
                f"loop.{stage}.{name}={loop[name]} must be at least {least}."
            )
    loop["num_iterations"] = loop.pop(length)
    least_return = loop.pop("evaluate_from_return", None)
    if least_return is not None:
        loop["evaluate_if"] = lambda row: row["episode_return"] >= least_return
    target = loop.pop("stop_at_return", None)
    if target is None:
        return loop
    if loop["evaluate_every"] < 1:
        raise SettingsError(
            f"stop_at_return={target} needs evaluations during training, but "
            f"evaluate_every={loop['evaluate_every']}; raise it in the same section of "
            "--config.loop."
        )
    loop["stop"] = lambda rows: has_reached(rows, "eval/episode_return", target)
    return loop
