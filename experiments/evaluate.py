"""Score a saved policy: python -m experiments.evaluate RUN_DIR [--checkpoint=best]

All settings come from the run; --config.KEY=VALUE changes one. With --config=FILE
instead of RUN_DIR it scores the policy that the configuration names. It writes
`evaluation.json` to RUN_DIR or --config.run_dir: which policy was scored, how, and the
mean of every metric.
"""

import json
from collections.abc import Callable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from dppo_jax.envs.build import make_env
from dppo_jax.errors import SettingsError
from dppo_jax.evaluate import Evaluation, make_evaluate, summarize
from dppo_jax.normalize import Normalizer
from dppo_jax.policies import sampling_note
from dppo_jax.training import parallel
from dppo_jax.training.config_file import write_atomically
from dppo_jax.training.run_directory import check_folder
from dppo_jax.types import Act, PyTree
from experiments import command_line, inputs, plots, processes
from experiments.seeds import check_seed


def main(config: ConfigDict, checkpoint: int | str = "latest") -> dict[str, float]:
    """Run the stage; returns and prints the mean of every metric."""
    processes.stay_on_one_device(config, "evaluate")
    inputs.check_task(config, "evaluate")
    run_dir = inputs.policy_path(config, "finetune")
    path = Path(config.run_dir or run_dir) / "evaluation.json"
    check_folder(path.parent)
    policy = inputs.find_policy(config, "finetune", checkpoint)
    settings = config.evaluate
    mode = "deterministic" if settings.deterministic else "exploring"
    print(
        f"{run_dir}, checkpoint {policy.iteration}: {settings.num_episodes} episodes, "
        f"{mode} mode, seed {settings.seed}",
        flush=True,
    )
    assert policy.act is not None  # Its run has a configuration.
    score = make_score(config, policy.act, policy.normalizer)
    result = summarize(score(policy.params))
    for name, value in sorted(result.items()):
        print(f"  {name:24s} {value:10.4f}")
    about = {
        "policy": str(Path(run_dir).absolute()),
        "checkpoint": policy.iteration,
        "num_episodes": settings.num_episodes,
        "mode": mode,
        "seed": settings.seed,
    }
    text = json.dumps(about | {"metrics": result}, indent=2)
    write_atomically(path, text + "\n")
    print(f"wrote {path}")
    return result


def make_score(
    config: ConfigDict, act: Act, normalizer: Normalizer
) -> Callable[[PyTree], Evaluation]:
    """The evaluation that `config.evaluate` describes, always from the same key."""
    settings = config.evaluate
    check_seed("evaluate.seed", settings.seed)
    for name in ("num_envs", "num_episodes"):
        if settings[name] < 1:
            raise SettingsError(f"evaluate.{name}={settings[name]} must be at least 1.")
    env = make_env(
        config.env,
        normalizer=normalizer,
        chunk=inputs.executable(config),
        num_envs=min(settings.num_envs, settings.num_episodes),
        trace=plots.traced_metrics(config.env.task),
    )
    for note in (*env.notes, *filter(None, [sampling_note(config.model)])):
        print(f"warning: {note}.", flush=True)
    evaluate = make_evaluate(
        env,
        act,
        num_episodes=settings.num_episodes,
        deterministic=settings.deterministic,
    )

    def score(params: PyTree) -> Evaluation:
        local = parallel.on_one_device(params)
        return evaluate(local, jax.random.key(settings.seed))

    return score


if __name__ == "__main__":
    command_line.run_stage(main, takes_run=True, takes_checkpoint=True)
