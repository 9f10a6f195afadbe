"""Make demonstrations of our own: python -m experiments.collect --config=..."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from dppo_jax.demonstrations.avoid_script import scripted_episodes
from dppo_jax.demonstrations.dataset import Episodes, summary
from dppo_jax.demonstrations.dppo_npz import load_dppo_npz, save_dppo_npz
from experiments import common


def collect_avoid(config: ConfigDict) -> Episodes:
    """Scripted episodes of the configured modes, in task units."""
    episodes = scripted_episodes(
        [tuple(mode) for mode in config.collect.modes],
        config.collect.episodes_per_mode,
        config.seed,
        engine=config.env.engine,
    )
    return Episodes(
        observations={"state": np.concatenate([e.states for e in episodes])},
        actions=np.concatenate([e.actions for e in episodes]),
        episode_lengths=np.array([len(e.actions) for e in episodes]),
    )


_DEMONSTRATORS = {"avoid": collect_avoid}


def main(config: ConfigDict) -> str:
    """Run the stage; returns the folder with train.npz and normalization.npz."""
    if config.env.task not in _DEMONSTRATORS:
        raise ValueError(
            f"there is no demonstrator for env.task={config.env.task!r}, only for "
            f"{', '.join(sorted(_DEMONSTRATORS))}; bring data with --config.data."
        )
    folder = config.data or str(Path("data") / config.name)
    if (Path(folder) / "train.npz").exists():
        raise ValueError(
            f"{folder} holds demonstrations already; remove it, or pass another "
            "--config.data."
        )
    save_dppo_npz(folder, _DEMONSTRATORS[config.env.task](config))
    print(f"{folder}: {summary(load_dppo_npz(folder))}")
    return folder


if __name__ == "__main__":
    common.run_stage(main)
