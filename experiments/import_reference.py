"""Make a run directory from a checkpoint of the published DPPO code:

python -m experiments.import_reference state_30.pt RUN_DIR --config=... \
    [--normalization=normalization.npz]
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from dppo_jax.envs.build import make_env
from dppo_jax.errors import SettingsError
from dppo_jax.interop import infer_settings, load_reference_checkpoint
from dppo_jax.normalize import load_normalizer
from dppo_jax.training.checkpoint import Checkpoints
from dppo_jax.training.config_file import save_config
from dppo_jax.training.trees import check_matches
from experiments import command_line, directories, inputs
from experiments.settings import as_flag

_NORMALIZATION = flags.DEFINE_string(
    "normalization", "", "normalization.npz of its data; empty: that in --config.data"
)
# Settings that weights do not show; a wrong value is noticed only when the policy runs.
_UNTOLD = (
    *("model.network.activation", "model.diffusion.num_denoising_steps"),
    *("model.network.num_groups", "model.network.group_norm_eps"),
    *("model.sampling.ddim_steps", "model.diffusion.predict_noise"),
    *("model.diffusion.x0_clip", "model.gaussian.tanh_output"),
    *("model.gmm.tanh_output", "model.network.num_heads", "model.network.causal"),
)
_UNTOLD_OF_IMAGES = ("num_heads", "image_size")


def main(path: str, run_dir: str, config: ConfigDict, normalization: str = "") -> str:
    """Run the program; returns the run directory."""
    if Path(run_dir).exists() and any(Path(run_dir).iterdir()):
        raise SettingsError(f"{run_dir} is not empty; name another directory.")
    checkpoint = load_reference_checkpoint(path)
    normalizer = load_normalizer(normalization or inputs.data_path(config))
    inferred = infer_settings(checkpoint, normalizer)
    # Kinds first: a network of another kind may not have the other settings.
    for name in sorted(inferred, key=lambda name: not name.endswith(".kind")):
        told = inferred[name]
        configured = _lookup(config, name)
        if not _same(told, configured):
            raise SettingsError(
                f"{path} has {name}={told!r}, but the config says {configured!r}; "
                f"pass {as_flag(name, told)}, or another checkpoint."
            )
    check_matches(
        checkpoint.params,
        inputs.expected_params(config, normalizer),
        what=f"the policy of {path}",
        cure="pass the --config.model settings that it was trained with.",
    )
    # This refuses a task whose sizes differ from those of the normalizer.
    make_env(config.env, normalizer=normalizer, chunk=config.model.chunk, num_envs=1)
    with Checkpoints(run_dir) as checkpoints:
        checkpoints.save_policy(
            checkpoint.iteration,
            checkpoint.params,
            normalizer,
            checkpoint.critic,
        )
    # `imported_from` tells later stages that this is not a run to resume.
    origin = {"stage": checkpoint.stage, "imported_from": str(path)}
    save_config(run_dir, origin | directories.as_json(config))
    names: tuple[str, ...] = _UNTOLD
    if config.model.network.encoder.kind == "vit":
        names += tuple(f"model.network.encoder.vit.{x}" for x in _UNTOLD_OF_IMAGES)
    untold = [
        f"{name}={_lookup(config, name)}"
        for name in names
        if name.split(".")[1] in _sections(config) and _knows(config, name)
    ]
    if "model.chunk" not in inferred:
        untold.append(f"model.chunk={config.model.chunk}")
    if checkpoint.stage == "finetune" and config.model.kind == "diffusion":
        name = "model.sampling.num_tuned_steps"
        untold.append(f"{name}={_lookup(config, name)}")
    critic = "without" if checkpoint.critic is None else "with its"
    print(
        f"{path}: stage {checkpoint.stage}, iteration {checkpoint.iteration}, {critic} "
        f"critic, written to {run_dir}\n"
        f"not stored in the weights, taken from the config: {', '.join(untold)}"
    )
    return run_dir


def _sections(config: ConfigDict) -> tuple[str, ...]:
    """Those of `config.model` that the kind of policy reads."""
    kind = config.model.kind
    return ("network", kind, *(("sampling",) if kind == "diffusion" else ()))


def _knows(config: ConfigDict, name: str) -> bool:
    """Whether there is a setting; those of a network depend on its kind."""
    section, _, key = name.rpartition(".")
    return key in _lookup(config, section)


def _lookup(config: ConfigDict, name: str) -> Any:
    return functools.reduce(lambda node, key: node[key], name.split("."), config)


def _same(told: Any, configured: Any) -> bool:
    if isinstance(told, tuple):
        return configured is not None and told == tuple(configured)
    if isinstance(told, float) and configured is not None:
        return bool(np.isclose(told, configured, rtol=1e-5))
    return told == configured


if __name__ == "__main__":
    command_line.run_stage(
        lambda path, run_dir, config: main(path, run_dir, config, _NORMALIZATION.value),
        words=("STATE.pt", "RUN_DIR"),
    )
