"""All stages on a small policy, in minutes: python -m experiments.demo

Collects scripted demonstrations of `avoid`, clones a policy, fine-tunes it with DPPO
and compares both over 200 episodes. The same command resumes it after an interruption.
"""

import sys
import time
from pathlib import Path

from ml_collections import ConfigDict

from dppo_jax.errors import SettingsError
from dppo_jax.training.metrics import read_metrics
from experiments import collect, command_line, finetune, pretrain

_CONFIG = "--config=experiments/configs/avoid.py:demo"


def main(config: ConfigDict) -> None:
    """Run all stages below `run_dir` and print both success rates."""
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
    config.run_dir = config.policy = str(parent / "pretrain")
    pretrain.main(config)
    print("== 3/3 fine-tuning with DPPO", flush=True)
    config.run_dir = str(parent / "finetune")
    (run_dir,) = finetune.main(config)
    rows = [row for row in read_metrics(run_dir) if "eval/success" in row]
    before, after = (100 * rows[i]["eval/success"] for i in (0, -1))
    print(
        f"\nsuccess (rewarded gap, no collision, line crossed) over "
        f"{config.evaluate.num_episodes} evaluation episodes each:\n"
        f"  cloned      {before:5.1f} %\n"
        f"  fine-tuned  {after:5.1f} %\n"
        f"picture: {run_dir}/plots/trajectories.png\n"
        f"{time.monotonic() - began:.0f} s in all"
    )


if __name__ == "__main__":
    sys.argv[1:1] = [_CONFIG]
    command_line.run_stage(main)
