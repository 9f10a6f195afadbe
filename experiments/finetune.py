"""Fine-tune a policy by DPPO or another algorithm:

python -m experiments.finetune --config=...
"""

import collections
from typing import Any

import jax
from ml_collections import ConfigDict

from dppo_jax.algorithms import find_acting, find_algorithm, make_algorithm
from dppo_jax.demonstrations.dataset import Episodes
from dppo_jax.deploy import LoadedPolicy
from dppo_jax.envs.action_noise import disturb_actions
from dppo_jax.envs.build import make_env
from dppo_jax.errors import SettingsError
from dppo_jax.evaluate import Evaluation, summarize
from dppo_jax.normalize import Normalizer
from dppo_jax.policies import num_executable
from dppo_jax.training import parallel
from dppo_jax.training.checkpoint import load_critic
from dppo_jax.training.trees import check_matches
from dppo_jax.types import Act, Algorithm, Array, PyTree
from experiments import (
    command_line,
    console,
    directories,
    inputs,
    plots,
    processes,
    summaries,
)
from experiments.evaluate import make_score
from experiments.reports import run_page
from experiments.seeds import check_seeds, seed_configs, train_seeds


def main(config: ConfigDict, checkpoint: int | str = "latest") -> list[str]:
    """Run the stage; returns the run directory of every seed.

    Args:
        checkpoint: which one of the policy to start from.
    """
    check_seeds(config, steps_env=True)
    mesh = processes.join_mesh(config)
    inputs.check_task(config, "finetune")
    pretrained = None
    about: dict[str, Any] = {}
    data = _load_data(config)
    if config.policy == inputs.NO_POLICY:
        if checkpoint != "latest":
            raise SettingsError(
                f"--checkpoint={checkpoint} chooses one of config.policy, but policy="
                f"{inputs.NO_POLICY} starts from new networks; leave one of them out."
            )
        run_dir = directories.run_path(seed_configs(config, "finetune")[0], "finetune")
        normalizer, origin = inputs.find_bounds(
            config,
            run_dir,
            check=lambda bounds: _make_algorithm(config, bounds, data),
        )
    else:
        pretrained = inputs.find_policy(config, "pretrain", checkpoint)
        normalizer = pretrained.normalizer
        about = inputs.about_policy(pretrained, inputs.policy_path(config, "pretrain"))
        origin = {
            "policy": about["policy"]["digest"],
            "checkpoint": "best" if checkpoint == "best" else pretrained.iteration,
        }
    if data is not None:
        about["data"] = inputs.about_data(config, data)
        origin["data"] = about["data"]["digest"]
    algorithm, start = _prepare(config, normalizer, data, pretrained, checkpoint)
    score = make_score(config, algorithm.act, normalizer)
    # Only the first and the last evaluation of each run, because only these are drawn.
    scored: dict[str, dict[int, Evaluation]] = collections.defaultdict(dict)

    def evaluate(params: PyTree, run_dir: str, iteration: int) -> Any:
        result = score(params)
        kept = {i: x for i, x in scored[run_dir].items() if i == 0}
        scored[run_dir] = kept | {iteration: result}
        return lambda: summarize(result, prefix="eval/")

    name = (
        "new networks" if pretrained is None else inputs.policy_path(config, "pretrain")
    )
    print(f"fine-tuning {name}", flush=True)
    final = train_seeds(
        config,
        "finetune",
        # A dry run asks for the sizes on one device.
        algorithm if console.is_dry_run() else parallel.shard(algorithm, mesh),
        *start,
        origin=origin,
        about=about,
        normalizer=normalizer,
        evaluate=evaluate,
        show=(
            *("success", "episode_return"),
            *("eval/success", "eval/episode_return", "approx_kl"),
        ),
    )
    seeds = seed_configs(config, "finetune")
    for (run_dir, state), own in zip(final.items(), seeds):
        if not parallel.is_first_process():
            break
        if plots.traced_metrics(config.env.task):
            # A resumed run has not evaluated its initial policy.
            before = scored[run_dir].get(0)
            if before is None and pretrained is not None:
                first = algorithm.init(jax.random.key(own.seed), *start)
                before = score(algorithm.params(first))
            after = scored[run_dir].get(int(state.iteration))
            if after is None:
                after = score(algorithm.params(state))
            if before is not None:
                plots.save_trajectories(
                    run_dir,
                    config.env.task,
                    before,
                    after,
                    options=config.env.options,
                )
        plots.save_curve(run_dir)
        run_page.finish(run_dir)
    return list(final)


def first_policy(
    config: ConfigDict, checkpoint: int | str = "latest"
) -> tuple[Act, PyTree, Normalizer]:
    """What explores in the first iteration of fine-tuning: act, parameters and bounds.

    It has what fine-tuning adds to the policy that it starts from, such as the noise
    network of a flow.

    Args:
        config: with the policy to start from; new networks cannot be asked for.
        checkpoint: which one of that policy.
    """
    pretrained = inputs.find_policy(config, "pretrain", checkpoint)
    data = _load_data(config)
    algorithm, start = _prepare(
        config, pretrained.normalizer, data, pretrained, checkpoint
    )

    @jax.jit
    def first(key: Array, *start: PyTree) -> PyTree:
        return algorithm.params(algorithm.init(key, *start))

    params = first(jax.random.key(config.seed), *start)
    return algorithm.act, params, pretrained.normalizer


def _load_data(config: ConfigDict) -> Episodes | None:
    """Demonstrations, if the algorithm learns from them."""
    if not find_algorithm(config.algorithm.name).uses_data:
        return None
    return inputs.load_data(config)


def _prepare(
    config: ConfigDict,
    normalizer: Normalizer,
    data: Episodes | None,
    pretrained: LoadedPolicy | None,
    checkpoint: int | str,
) -> tuple[Algorithm, tuple[PyTree, ...]]:
    """The algorithm, and the arguments of its `init` after the key."""
    if data is not None:
        data = inputs.as_observed(data, normalizer)
    algorithm = _make_algorithm(config, normalizer, data)
    if pretrained is None:
        return algorithm, ()
    return algorithm, _start_from(config, pretrained, algorithm, checkpoint)


def _make_algorithm(
    config: ConfigDict, normalizer: Normalizer, data: Episodes | None = None
) -> Algorithm:
    policy = inputs.build_policy(config, normalizer.action_min.shape[0])
    env = make_env(
        config.env,
        normalizer=normalizer,
        chunk=num_executable(config.model),
        num_envs=config.rollout.num_envs,
    )
    env = disturb_actions(
        env,
        scale=config.rollout.action_noise,
        start=config.rollout.action_noise_start,
        ramp=config.rollout.action_noise_ramp,
        num_chunks=config.rollout.num_chunks,
    )
    return make_algorithm(env, policy, config, data)


def _start_from(
    config: ConfigDict,
    pretrained: LoadedPolicy,
    algorithm: Algorithm,
    checkpoint: int | str,
) -> tuple[PyTree, ...]:
    """Arguments of `algorithm.init`: the policy's parameters, its critic if any."""
    run_dir = inputs.policy_path(config, "pretrain")
    params = pretrained.params
    found = find_acting(params)
    if found is not None:
        name, acting = found
        if acting.restarts and config.algorithm.name == name:
            state = jax.eval_shape(algorithm.init, jax.random.key(config.seed))
            check_matches(
                params,
                algorithm.params(state),
                what=f"the policy of {run_dir}",
                cure=f"pass the settings of algorithm.{name} that it was trained with.",
            )
            return (params,)
        if acting.alone is None:
            raise SettingsError(
                f"{run_dir} holds what {name} acts with, not a policy alone, so "
                f"{config.algorithm.name} cannot start from it; pass the run of the "
                "cloned policy as --config.policy."
            )
        params = acting.alone(params)
    is_tuned = pretrained.config.get("stage") == "finetune"
    if not (is_tuned and find_algorithm(config.algorithm.name).takes_critic):
        return (params,)
    critic = load_critic(run_dir, checkpoint)
    if critic is None:
        print(f"note: {run_dir} has no critic at checkpoint {checkpoint}; making one")
        return (params,)
    state = jax.eval_shape(algorithm.init, jax.random.key(config.seed))
    check_matches(
        critic,
        state.critic_params,
        what=f"the critic of {run_dir}",
        cure="pass the --config.critic settings that it was trained with.",
    )
    print(f"starting from the policy and the critic of {run_dir}")
    return params, critic


if __name__ == "__main__":
    command_line.run_stage(
        main,
        takes_checkpoint=True,
        resumes=True,
        plans=True,
        summarize=lambda run_dirs, config: summaries.of_runs(run_dirs),
    )
