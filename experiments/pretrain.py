"""Clone a policy from demonstrations: python -m experiments.pretrain --config=..."""

from typing import Any

from ml_collections import ConfigDict

from dppo_jax.algorithms import clone as pretrain
from dppo_jax.demonstrations.dataset import summary, thin_episodes, windows
from dppo_jax.errors import SettingsError
from dppo_jax.evaluate import summarize
from dppo_jax.networks.build_encoder import image_shape
from dppo_jax.types import PyTree
from experiments import command_line, inputs, processes, summaries
from experiments.evaluate import make_score
from experiments.reports import run_page
from experiments.seeds import check_seeds, train_seeds


def main(config: ConfigDict) -> list[str]:
    """Run the stage; returns the run directory of every seed."""
    check_seeds(config, steps_env=False)
    processes.stay_on_one_device(config, "pretrain")
    past = config.model.diffusion.past_actions
    if past and config.model.kind == "diffusion":
        raise SettingsError(
            f"model.diffusion.past_actions={past} is for imported policies, because "
            "cloning has no actions before the present one in its chunks; use 0."
        )
    episodes = inputs.load_data(config)
    if config.pretrain.num_episodes is not None:
        episodes = thin_episodes(episodes, config.pretrain.num_episodes)
    assert episodes.normalizer is not None  # `load_data` normalises.
    coef, kind = config.pretrain.clone_entropy_coef, config.model.kind
    if coef and kind not in ("gaussian", "gmm"):
        raise SettingsError(
            f"pretrain.clone_entropy_coef={coef} rewards the entropy of a Gaussian "
            "policy or a mixture, but training does not change that of "
            f"model.kind={kind!r}; use 0."
        )
    policy = inputs.build_policy(config, episodes.actions.shape[1])
    images = image_shape(config.model.network.encoder)
    dataset = windows(
        episodes,
        chunk=config.model.chunk,
        history=config.env.history,
        image_history=1 if images is None else images[0],
    )
    algorithm = pretrain.make_pretrain(policy, dataset, config.pretrain)
    # Data of a real robot may have no simulator in which to score the policy.
    score = None
    if config.env.task:
        score = make_score(config, algorithm.act, episodes.normalizer)
    print(f"{inputs.data_path(config)}: {summary(episodes)}", flush=True)

    def evaluate(params: PyTree, run_dir: str, iteration: int) -> Any:
        assert score is not None
        evaluation = score(params)
        return lambda: summarize(evaluation, prefix="eval/")

    data = inputs.about_data(config, episodes)
    final = train_seeds(
        config,
        "pretrain",
        algorithm,
        origin={"data": data["digest"]},
        about={"data": data},
        normalizer=episodes.normalizer,
        evaluate=evaluate if score else None,
        show=("loss", "eval/success", "eval/episode_return"),
    )
    for run_dir in final:
        run_page.finish(run_dir)
    return list(final)


if __name__ == "__main__":
    command_line.run_stage(
        main,
        resumes=True,
        plans=True,
        summarize=lambda run_dirs, config: summaries.of_runs(run_dirs),
    )
