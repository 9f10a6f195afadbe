"""Collect demonstrations: python -m experiments.collect --config=..."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from dppo_jax.demonstrations.dataset import Episodes, summary
from dppo_jax.demonstrations.formats.dppo_npz import (
    DATA_FILE,
    NORMALIZER_FILE,
    load_dppo_npz,
    save_dppo_npz,
)
from dppo_jax.demonstrations.scripts import tabletop
from dppo_jax.demonstrations.scripts.avoid import scripted_episodes
from dppo_jax.envs.build import make_single
from dppo_jax.envs.tasks import avoid_camera
from dppo_jax.errors import SettingsError
from dppo_jax.networks.build_encoder import image_shape
from dppo_jax.objects import content_digest
from dppo_jax.training.config_file import write_atomically
from experiments import (
    command_line,
    console,
    demonstrator,
    directories,
    dry_run,
    inputs,
    processes,
    summaries,
)
from experiments.seeds import check_seed


def collect_avoid(config: ConfigDict) -> Episodes:
    """Scripted episodes of the configured modes, in task units.

    They have the pictures that the policy reads, if it reads any.
    """
    episodes = scripted_episodes(
        [tuple(mode) for mode in config.collect.modes],
        config.collect.episodes_per_mode,
        config.seed,
        engine=config.env.engine,
        rewarded_gap=config.env.options.get("rewarded_gap", 5),
    )
    observations = {"state": np.concatenate([e.states for e in episodes])}
    images = image_shape(config.model.network.encoder)
    if images is not None:
        observations["rgb"] = avoid_camera.pictures(observations["state"], images[1])
    rewards = np.concatenate([e.rewards for e in episodes])
    return Episodes(
        observations=observations,
        actions=np.concatenate([e.actions for e in episodes]),
        episode_lengths=np.array([len(e.actions) for e in episodes]),
        rewards=rewards,
        terminals=np.zeros(len(rewards), bool),  # The task never ends by itself.
    )


def collect_tabletop(config: ConfigDict) -> tuple[Episodes, dict[str, float]]:
    """Scripted episodes of a manipulation task, in task units, and what was measured.

    `script_success` is the share of episodes that the script solved, `replay_success`
    the share of recorded successes that their actions alone solve again.
    """
    settings = config.collect
    env = make_single(config.env)
    played = tabletop.scripted_episodes(
        env,
        tabletop.SCRIPTS[config.env.task],
        settings.num_episodes,
        config.seed,
        max_steps=config.env.max_steps,
        noise=settings.noise,
        success_only=settings.success_only,
        steps_after_success=settings.steps_after_success,
        reach=tabletop.reach_of(config.env.options),
    )
    print(
        f"{played.num_solved} of {played.num_tried} scripted episodes succeeded",
        flush=True,
    )
    episodes = played.episodes
    again = tabletop.replayed_success(
        env, episodes.actions, episodes.episode_lengths, played.starts
    )
    solved = played.solved.sum()
    print(
        f"{again[played.solved].sum():.0f} of {solved} recorded successes succeed "
        "again when their actions are replayed",
        flush=True,
    )
    measured = {"script_success": played.num_solved / played.num_tried}
    if solved:
        measured["replay_success"] = again[played.solved].mean()
    return episodes, measured


def main(config: ConfigDict) -> str:
    """Run the stage; returns the folder with train.npz and normalization.npz.

    Raises:
        SettingsError: no demonstrator for the task, or there are demonstrations.
        Planned: of a dry run.
    """
    processes.stay_on_one_device(config, "collect")
    check_seed("seed", config.seed)
    inputs.check_task(config, "collect")
    demonstrate = _demonstrator(config)
    folder = inputs.data_path(config)
    files = (Path(folder) / name for name in (DATA_FILE, NORMALIZER_FILE))
    # Check this before a demonstrator is trained.
    if Path(folder).is_file() or any(file.exists() for file in files):
        raise SettingsError(
            f"{folder} holds demonstrations already; remove it, or pass another "
            "--config.data."
        )
    if console.is_dry_run():
        settings = directories.as_json(config)["collect"]
        raise dry_run.Planned({"data": folder, "task": config.env.task, **settings})
    episodes, measured = demonstrate(config)
    save_dppo_npz(folder, episodes)
    if measured:
        digest = content_digest(Path(folder) / DATA_FILE)
        about = {"digest": digest, **measured}
        write_atomically(Path(folder) / inputs.MEASURED_FILE, json.dumps(about))
    print(f"{folder}: {summary(load_dppo_npz(folder))}")
    return folder


def _demonstrator(
    config: ConfigDict,
) -> Callable[[ConfigDict], tuple[Episodes, dict[str, float]]]:
    """The function that collects what `config.collect` describes, and measures it."""
    if config.env.task == "avoid" and "modes" in config.collect:
        return lambda config: (collect_avoid(config), {})
    if config.env.task in tabletop.SCRIPTS and "num_episodes" in config.collect:
        return collect_tabletop
    if "target_return" in config.collect:
        return lambda config: (demonstrator.trained_episodes(config), {})
    raise SettingsError(
        f"config.collect describes no demonstrator for env.task={config.env.task!r}; "
        "use the configuration of that task in experiments/configs, set "
        "config.collect = demonstrator_config() in yours as locomotion.py does, or "
        "pass data with --config.data."
    )


if __name__ == "__main__":
    command_line.run_stage(
        main,
        resumes=True,
        plans=True,
        summarize=lambda folder, config: summaries.of_data(folder),
    )
