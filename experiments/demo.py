"""All stages on a small policy, in minutes: python -m experiments.demo

Collects scripted demonstrations of `avoid`, clones a policy, fine-tunes it with DPPO
and compares both in the same episodes. --config=experiments/configs/can.py:demo does it
for an arm that moves a can, and draws episodes. The same command resumes it after an
interruption.
"""

import sys
import time
from pathlib import Path

from ml_collections import ConfigDict

from dppo_jax.errors import SettingsError
from dppo_jax.training.metrics import read_metrics
from experiments import (
    collect,
    command_line,
    evaluate,
    finetune,
    plots,
    pretrain,
    summaries,
)
from experiments.directories import config_of_run
from experiments.reports import run_page

_CONFIG = "--config=experiments/configs/avoid.py:demo"
# Task -> what counts as success; of others docs/environments.md says it.
_SUCCESS = {"avoid": "rewarded gap, no collision, line crossed"}


def main(config: ConfigDict) -> list[str]:
    """Run all stages below `run_dir` and print both success rates.

    Returns:
        The run directories of the cloned and of the fine-tuned policy.
    """
    if config.num_seeds != 1:
        raise SettingsError(
            f"num_seeds={config.num_seeds}: the demo trains one seed; leave "
            "--config.num_seeds out, or pass it to experiments.finetune."
        )
    began = time.monotonic()
    parent = Path(config.run_dir or Path("runs") / config.name)
    print("== 1/3 scripted demonstrations", flush=True)
    data = Path(config.data or Path("data") / config.name)
    if not data.exists():
        collect.main(config)
    print("== 2/3 behaviour cloning", flush=True)
    cloned = config.run_dir = config.policy = str(parent / "pretrain")
    pretrain.main(config)
    print("== 3/3 fine-tuning with DPPO", flush=True)
    config.run_dir = str(parent / "finetune")
    (run_dir,) = finetune.main(config)
    rows = [row for row in read_metrics(run_dir) if "eval/success" in row]
    before, after = (100 * rows[i]["eval/success"] for i in (0, -1))
    if plots.traced_metrics(config.env.task):
        pictures = [f"{run_dir}/plots/trajectories.png"]
    else:
        pictures = _draw(cloned, run_dir)
    meaning = _SUCCESS.get(config.env.task, f"{config.env.task} solved in time")
    print(
        f"\nsuccess ({meaning}) over "
        f"{config.evaluate.num_episodes} evaluation episodes each:\n"
        f"  cloned      {before:5.1f} %\n"
        f"  fine-tuned  {after:5.1f} %"
    )
    for path in pictures:
        print(f"picture: {path}")
    print(f"report: {run_dir}/{run_page.FILE}")
    print(f"{time.monotonic() - began:.0f} s in all")
    return [cloned, run_dir]


def _draw(*run_dirs: str) -> list[str]:
    """Draw episodes of each policy; the paths of their contact sheets."""
    for run_dir in run_dirs:
        try:
            evaluate.main(config_of_run(run_dir), video=command_line.FEW_VIDEOS)
        except SettingsError as error:
            # Such as a machine without OpenGL: what was trained is no worse for it.
            print(f"no videos: {error}")
            return []
    return [f"{run_dir}/plots/episodes.png" for run_dir in run_dirs]


if __name__ == "__main__":
    if not any(word.startswith(("--config=", "-config=")) for word in sys.argv[1:]):
        sys.argv[1:1] = [_CONFIG]
    command_line.run_stage(
        main,
        resumes=True,
        summarize=lambda run_dirs, config: summaries.of_runs(run_dirs),
    )
