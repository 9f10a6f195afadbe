"""Make a run directory from a diffusion policy of LeRobot:

python -m experiments.import_lerobot FOLDER RUN_DIR [--config=...]

FOLDER is that of `save_pretrained`, such as checkpoints/last/pretrained_model. What it
says of the policy replaces the settings of the configuration, which give the rest, such
as the task.
"""

from pathlib import Path

from ml_collections import ConfigDict

from dppo_jax.envs.build import make_env
from dppo_jax.errors import SettingsError
from dppo_jax.interop import LerobotPolicy, load_lerobot_policy
from dppo_jax.policies import PolicyParams, num_executable
from dppo_jax.training.checkpoint import Checkpoints
from dppo_jax.training.config_file import save_config
from dppo_jax.training.old_settings import flatten
from dppo_jax.training.trees import check_matches
from experiments import command_line, directories, inputs
from experiments.settings import as_flag, use_network


def main(folder: str, run_dir: str, config: ConfigDict) -> str:
    """Run the program; returns the run directory."""
    if Path(run_dir).exists() and any(Path(run_dir).iterdir()):
        raise SettingsError(f"{run_dir} is not empty; name another directory.")
    policy = load_lerobot_policy(folder)
    flags = _apply(config, policy)
    params = PolicyParams(base=policy.params, tuned=policy.params)
    check_matches(
        params,
        inputs.expected_params(config, policy.normalizer),
        what=f"the policy of {folder}",
        cure="restore the config.json that it was saved with.",
    )
    if config.env.task:  # Refuse a task whose sizes differ from the policy's.
        make_env(
            config.env,
            normalizer=policy.normalizer,
            chunk=num_executable(config.model),
            num_envs=1,
        )
    with Checkpoints(run_dir) as checkpoints:
        checkpoints.save_policy(0, params, policy.normalizer)
    # `imported_from` tells later stages that this is not a run to resume.
    origin = {"stage": "pretrain", "imported_from": str(folder)}
    save_config(run_dir, origin | directories.as_json(config))
    print(
        f"{folder}: {len(policy.normalizer.obs_min)} observed numbers, "
        f"{config.model.chunk} actions of {len(policy.normalizer.action_min)} numbers, "
        f"written to {run_dir}"
    )
    if flags:
        print(
            "settings of the policy that the configuration lacks; pass them to "
            f"experiments.finetune:\n{' '.join(flags)}"
        )
    if policy.samples_ddpm:
        print(
            "note: LeRobot samples this policy with noise; an evaluation does with "
            "--config.evaluate.deterministic=False --config.model.sampling.min_std=0.0"
        )
    return run_dir


def _apply(config: ConfigDict, policy: LerobotPolicy) -> list[str]:
    """Give a configuration the settings of the policy; returns flags of what changes.

    Raises:
        SettingsError: the configuration has a network from outside the package.
    """
    name = "model.network.kind"
    kind, given = policy.settings[name], config.model.network.kind
    use_network(config, kind)
    if config.model.network.kind != kind:
        raise SettingsError(
            f"{name}={given} is a network of your own, and the policy has a {kind}; "
            f"pass --config.{name}={kind}."
        )
    flags = [] if given == kind else [as_flag(name, kind)]
    before = flatten(directories.as_json(config))
    config.update_from_flattened_dict(policy.settings)
    sampling = config.model.sampling
    num_steps = sampling.ddim_steps or config.model.diffusion.num_denoising_steps
    sampling.num_tuned_steps = min(sampling.num_tuned_steps, num_steps)
    after = flatten(directories.as_json(config))
    return flags + [as_flag(x, after[x]) for x in after if after[x] != before.get(x)]


if __name__ == "__main__":
    command_line.run_stage(main, words=("FOLDER", "RUN_DIR"), needs_config=False)
