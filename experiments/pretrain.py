"""Clone a policy from demonstrations: python -m experiments.pretrain --config=..."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dppo_jax import pretrain
from dppo_jax.demonstrations.dataset import summary, windows
from dppo_jax.demonstrations.formats import load_demonstrations
from dppo_jax.evaluate import summarize
from dppo_jax.types import PolicyParams
from experiments import common, processes
from experiments.seeds import check_seeds, train_seeds


def main(config: ConfigDict) -> list[str]:
    """Run the stage; returns the run directory of every seed."""
    check_seeds(config, steps_env=False)
    processes.stay_on_one_device(config, "pretrain")
    data = config.data or str(Path("data") / config.name)
    if not config.data and not Path(data).exists():
        raise ValueError(
            f"no demonstrations at {data}; run experiments.collect first, or pass "
            "--config.data=<file or folder>, see docs/data.md."
        )
    episodes = load_demonstrations(data)
    assert episodes.normalizer is not None  # What it returns is normalised.
    policy = common.build_policy(config, episodes.actions.shape[1])
    dataset = windows(episodes, chunk=config.model.chunk, history=config.env.history)
    algorithm = pretrain.make_pretrain(policy, dataset, config.pretrain)
    score = common.make_score(config, policy, episodes.normalizer)
    print(f"{data}: {summary(episodes)}", flush=True)

    def evaluate(params: PolicyParams, run_dir: str, iteration: int) -> Any:
        evaluation = score(params)
        return lambda: summarize(evaluation, prefix="eval/")

    final = train_seeds(
        *(config, "pretrain", algorithm),
        params_of=pretrain.params_of,
        normalizer=episodes.normalizer,
        evaluate=evaluate,
        show=("loss", "eval/success", "eval/episode_return"),
    )
    return list(final)


if __name__ == "__main__":
    common.run_stage(main)
