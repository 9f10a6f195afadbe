"""Score a saved policy: python -m experiments.evaluate --config=..."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from dppo_jax.evaluate import summarize
from experiments import common, processes


def main(config: ConfigDict) -> dict[str, float]:
    """Run the stage; returns and prints the mean of every metric."""
    processes.stay_on_one_device(config, "evaluate")
    common.check_task(config, "evaluate")
    checkpoint = common.find_policy(config, "finetune")
    policy = common.build_policy(config, checkpoint.normalizer.action_min.shape[0])
    score = common.make_score(config, policy.act, checkpoint.normalizer)
    result = summarize(score(checkpoint.params))
    mode = "deterministic" if config.evaluate.deterministic else "exploring"
    print(
        f"{config.evaluate.num_episodes} episodes, {mode} mode, checkpoint "
        f"{checkpoint.iteration}"
    )
    for name, value in sorted(result.items()):
        print(f"  {name:24s} {value:10.4f}")
    if config.run_dir:
        path = Path(config.run_dir) / "evaluation.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")
    return result


if __name__ == "__main__":
    common.run_stage(main)
