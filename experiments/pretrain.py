"""Clone a policy from demonstrations: python -m experiments.pretrain --config=..."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from dppo_jax import pretrain
from dppo_jax.demonstrations.dataset import summary, windows
from dppo_jax.demonstrations.formats import load_demonstrations
from dppo_jax.evaluate import summarize
from dppo_jax.training import train
from experiments import common


def main(config: ConfigDict) -> str:
    """Run the stage; returns the run directory."""
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
    run_dir = common.prepare_run(config, "pretrain")
    print(f"{data}: {summary(episodes)}\nwriting to {run_dir}", flush=True)

    def evaluate(state: pretrain.PretrainState, iteration: int) -> dict[str, float]:
        return summarize(score(pretrain.params_of(state)), prefix="eval/")

    train(
        algorithm,
        algorithm.init(jax.random.key(config.seed)),
        run_dir=run_dir,
        num_iterations=config.pretrain.num_epochs,
        params_of=pretrain.params_of,
        normalizer=episodes.normalizer,
        evaluate=evaluate,
        show=("loss", "eval/success", "eval/episode_return"),
        **config.loop.pretrain,
    )
    return run_dir


if __name__ == "__main__":
    common.run_stage(main)
