"""Run directories that no program has made: settings and rows, and nothing compiles."""

import json
from pathlib import Path
from typing import Any

from dppo_jax.training.config_file import save_config
from experiments import directories
from experiments.configs import avoid

# An evaluation before and after, of ten episodes each, and three iterations.
ROWS = """iteration,eval/success,eval/episode_return,eval/episode_return_stderr,\
env_steps,success,episode_return,num_episodes,approx_kl,clip_fraction,\
explained_variance,seconds,rollout_seconds,evaluation_seconds
0,0.3,1,0.1,,,,,,,,,,2
1,,,,400,0.2,0.8,20,-2e-9,0.1,-3,14,9,
2,,,,800,0.5,1.1,20,3e-5,0.12,0.2,4,3,
3,0.9,2.5,0.2,1200,0.6,1.9,20,4e-5,0.11,0.5,4,3,2
"""
ABOUT = {
    "format": 1,
    "versions": {"dppo_jax": "0.1.0", "jax": "0.10.2"},
    "device": {"platform": "cpu", "kind": "cpu", "count": 1, "processes": 1},
    "git": "d350f83",
    "policy": {"path": "/home/me/cloned", "checkpoint": 7, "digest": "abc"},
}


def make_run(
    folder: Path,
    stage: str = "finetune",
    rows: str = ROWS,
    checkpoint: int | None = 3,
    **changes: Any,
) -> Path:
    """A run of `avoid.py:m1` with three iterations; dots are double underscores."""
    config = avoid.get_config("m1")
    config.loop.finetune.num_iterations = 3
    config.evaluate.num_episodes = 10
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    save_config(folder, {"stage": stage, **directories.as_json(config)})
    (folder / "metrics.csv").write_text(rows)
    if checkpoint is not None:
        saved = folder / "checkpoints" / str(checkpoint)
        saved.mkdir(parents=True)
        metadata = {"custom_metadata": ABOUT, "commit_timestamp_nsecs": 1.8e18}
        (saved / "_CHECKPOINT_METADATA").write_text(json.dumps(metadata))
    return folder
