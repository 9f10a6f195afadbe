"""Score a saved policy: python -m experiments.evaluate RUN_DIR [--checkpoint=best]

All that the policy needs comes from its run; --config.KEY=VALUE changes a setting. With
--config=FILE instead of RUN_DIR it scores the policy that the configuration names. The
result is written to `evaluation.json`, in RUN_DIR or --config.run_dir: which policy it
is of, how it was scored, and the mean of every metric.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from dppo_jax.evaluate import summarize
from experiments import common, processes


def main(config: ConfigDict, checkpoint: int | str = "latest") -> dict[str, float]:
    """Run the stage; returns and prints the mean of every metric."""
    processes.stay_on_one_device(config, "evaluate")
    common.check_task(config, "evaluate")
    run_dir = common.policy_path(config, "finetune")
    policy = common.find_policy(config, "finetune", checkpoint)
    settings = config.evaluate
    mode = "deterministic" if settings.deterministic else "exploring"
    print(
        f"{run_dir}, checkpoint {policy.iteration}: {settings.num_episodes} episodes, "
        f"{mode} mode, seed {settings.seed}",
        flush=True,
    )
    assert policy.act is not None  # Its configuration tells.
    score = common.make_score(config, policy.act, policy.normalizer)
    result = summarize(score(policy.params))
    for name, value in sorted(result.items()):
        print(f"  {name:24s} {value:10.4f}")
    path = Path(config.run_dir or run_dir) / "evaluation.json"
    about = {
        "policy": str(Path(run_dir).absolute()),
        "checkpoint": policy.iteration,
        "num_episodes": settings.num_episodes,
        "mode": mode,
        "seed": settings.seed,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | {"metrics": result}, indent=2) + "\n")
    print(f"wrote {path}")
    return result


if __name__ == "__main__":
    common.run_stage(
        lambda config: main(config, common.CHECKPOINT.value), takes_run=True
    )
