"""Fine-tune a cloned policy with DPPO: python -m experiments.finetune --config=..."""

import jax
from ml_collections import ConfigDict

from dppo_jax.algorithms import ppo
from dppo_jax.checkpoint import check_matches, load_critic
from dppo_jax.envs.build import make_env
from dppo_jax.evaluate import Evaluation, summarize
from dppo_jax.networks.critics import StateCritic
from dppo_jax.training import train
from experiments import common, plots


def main(config: ConfigDict) -> str:
    """Run the stage; returns the run directory."""
    pretrained = common.find_policy(config, "pretrain")
    normalizer = pretrained.normalizer
    policy = common.build_policy(config, normalizer.action_min.shape[0])
    env = make_env(
        config.env,
        normalizer=normalizer,
        chunk=config.model.chunk,
        num_envs=config.finetune.num_envs,
    )
    algorithm = ppo.make_ppo(env, policy, StateCritic(**config.critic), config.finetune)
    state = algorithm.init(jax.random.key(config.seed))
    check_matches(
        pretrained.params.base,
        state.params.base,
        what=f"the policy of {config.policy or 'the pre-training run'}",
        cure="pass the --config.model settings that it was trained with.",
    )
    critic = None
    if pretrained.config.get("stage") == "finetune":
        critic = load_critic(config.policy, pretrained.iteration)
    if critic is not None:
        check_matches(
            critic,
            state.critic_params,
            what=f"the critic of {config.policy}",
            cure="pass the --config.critic settings that it was trained with.",
        )
        print(f"going on from the policy and the critic of {config.policy}")
    state = algorithm.init(jax.random.key(config.seed), pretrained.params, critic)
    score = common.make_score(config, policy, normalizer)
    run_dir = common.prepare_run(config, "finetune")
    print(f"fine-tuning {pretrained.config['name']}, writing to {run_dir}", flush=True)

    scored: dict[int, Evaluation] = {}

    def evaluate(state: ppo.PPOState, iteration: int) -> dict[str, float]:
        scored[iteration] = score(state.params)
        return summarize(scored[iteration], prefix="eval/")

    start = state.params
    state = train(
        algorithm,
        state,
        run_dir=run_dir,
        num_iterations=config.finetune.num_iterations,
        params_of=lambda state: state.params,
        normalizer=normalizer,
        evaluate=evaluate,
        show=("success", "episode_return", "eval/success", "approx_kl"),
        **config.loop.finetune,
    )
    if plots.traced_metrics(config.env.task):
        # A resumed run has not scored its beginning.
        before = scored[0] if 0 in scored else score(start)
        after = scored.get(int(state.iteration)) or score(state.params)
        plots.save_trajectories(run_dir, config.env.task, before, after)
    plots.save_curve(run_dir)
    return run_dir


if __name__ == "__main__":
    common.run_stage(main)
