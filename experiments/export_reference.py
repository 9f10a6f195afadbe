"""Write a policy as a checkpoint of the published DPPO code:

python -m experiments.export_reference RUN_DIR state_30.pt [--checkpoint=best]
"""

import sys
from pathlib import Path
from typing import Any

from dppo_jax.deploy import LoadedPolicy, load_policy
from dppo_jax.errors import SettingsError
from dppo_jax.interop import ReferenceCheckpoint, save_reference_checkpoint
from dppo_jax.normalize import save_normalizer
from dppo_jax.policies import PolicyParams
from dppo_jax.training.checkpoint import load_critic
from dppo_jax.training.old_settings import flatten
from experiments import command_line, processes

# What the published code computes, which it has no setting for.
_ONLY = {
    "model.diffusion.beta_schedule": "cosine",
    "model.diffusion.past_actions": 0,
    "model.network.num_out_groups": None,
    "model.sampling.rederive_noise": True,
}


def main(run_dir: str, path: str, checkpoint: int | str = "latest") -> str:
    """Run the program; returns the path of the bounds, written beside `path`."""
    normalization = str(Path(path).with_name(f"{Path(path).stem}_normalization.npz"))
    for name in (path, normalization):
        if Path(name).exists():
            raise SettingsError(f"{name} exists; remove it, or give another name.")
    policy = load_policy(run_dir, checkpoint)
    stage, model = policy.config.get("stage"), policy.config.get("model")
    is_chain = isinstance(policy.params, PolicyParams)
    if stage not in ("pretrain", "finetune") or model is None or not is_chain:
        raise SettingsError(
            f"{run_dir} cannot be written for the published code; name a run of "
            "experiments.pretrain, or of experiments.finetune with algorithm.name=ppo."
        )
    if model["kind"] == "flow":
        raise SettingsError(
            f"{run_dir} holds a flow, which the published code does not have; name a "
            "run with model.kind='diffusion', 'gaussian' or 'gmm'."
        )
    is_diffusion = model["kind"] == "diffusion"
    if is_diffusion:
        _check_diffusion(run_dir, model)
    bounds = model[model["kind"]]
    critic = load_critic(run_dir, checkpoint) if stage == "finetune" else None
    save_reference_checkpoint(
        path,
        ReferenceCheckpoint(
            stage=stage,
            params=policy.params,
            critic=critic,
            std_bounds=None if is_diffusion else (bounds["std_min"], bounds["std_max"]),
            iteration=policy.iteration,
        ),
        eta=(
            model["sampling"]["eta"]
            if is_diffusion and model["sampling"]["ddim_steps"] is not None
            else None
        ),
    )
    save_normalizer(normalization, policy.normalizer)
    print(
        f"{run_dir}: stage {stage}, iteration {policy.iteration}, written to {path} "
        f"and {normalization}"
    )
    if stage == "finetune" and is_diffusion:
        print(f"run it there with ft_denoising_steps={_num_tuned_steps(policy)}")
    if stage == "finetune" and critic is None:
        print("it has no critic: load it as network_path; it cannot resume a run there")
    return normalization


def _check_diffusion(run_dir: str, model: dict[str, Any]) -> None:
    """Refuse settings, of imported policies, that the published code does not have."""
    settings = flatten({"model": model})
    for name, only in _ONLY.items():
        value = settings.get(name, only)
        if value != only:
            raise SettingsError(
                f"{run_dir} has {name}={value!r}, and the published code has only "
                f"{only!r}; its weights would act differently there."
            )


def _num_tuned_steps(policy: LoadedPolicy) -> int:
    """K', which may have been annealed."""
    if policy.params.num_active is not None:
        return int(policy.params.num_active)
    return policy.config["model"]["sampling"]["num_tuned_steps"]


if __name__ == "__main__":
    with processes.errors_in_one_line():
        given = command_line.parse_flags(sys.argv)
        if len(given) != 2:
            raise SettingsError(f"{given} given; write RUN_DIR STATE.pt.")
        main(given[0], given[1], command_line.CHECKPOINT.value)
