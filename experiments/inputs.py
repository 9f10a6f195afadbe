"""Finds what a stage starts from: demonstrations, bounds and policies."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dppo_jax.demonstrations.dataset import (
    Episodes,
    normalize_episodes,
    unnormalize_episodes,
)
from dppo_jax.demonstrations.formats import load_demonstrations
from dppo_jax.demonstrations.formats.dppo_npz import DATA_FILE
from dppo_jax.demonstrations.recorder import random_bounds
from dppo_jax.deploy import LoadedPolicy, load_policy
from dppo_jax.envs import time_limit, vectorize
from dppo_jax.envs.adapters import is_host
from dppo_jax.envs.build import make_single
from dppo_jax.envs.quarantine import LARGEST, quarantine
from dppo_jax.errors import SettingsError
from dppo_jax.networks.build_encoder import image_shape
from dppo_jax.normalize import Normalizer, constant_columns, policy_obs
from dppo_jax.objects import content_digest
from dppo_jax.policies import make_policy, obs_like
from dppo_jax.training.checkpoint import has_checkpoint, read_policy
from dppo_jax.training.config_file import load_config
from dppo_jax.types import VecEnv
from experiments.directories import as_json, default_path, differences, digest
from experiments.settings import as_flag, settings_of

# Settings that must not change after pre-training.
_MUST_MATCH: tuple[str, ...] = ("model.", "env.task", "env.history")
# Exceptions: settings that parameters do not depend on.
_MAY_DIFFER = ("model.network.compute_dtype", "model.sampling.", "model.noise.")
# They decide which moves the frozen network makes and which the tuned one, so they must
# not change after fine-tuning.
_SPLIT = tuple(
    f"model.sampling.{x}"
    for x in ("num_tuned_steps", "ddim_steps", "ddim_spacing", "flow_steps")
)
# Settings of the noise network of a flow, which only fine-tuning adds.
_TUNED_MUST_MATCH = ("model.noise.hidden_sizes", "model.noise.activation")
# What `collect` has measured of the demonstrations in the same folder.
MEASURED_FILE = "measured.json"
_MEASURED = ("script_success", "replay_success")
# The value of `config.policy` for new networks.
NO_POLICY = "none"
# Settings that may change but affect the score, so a change prints a note.
_WORTH_A_LINE = (
    *("env.", "model.network.compute_dtype"),
    *(
        f"model.sampling.{x}"
        for x in (
            *("ddim_steps", "eta", "draw_clip", "final_clip", "noise_clip"),
            *("rederive_noise", "ddim_spacing"),
        )
    ),
    *("model.sampling.flow_steps", "model.sampling.mean_clip"),
    *("model.noise.std_min", "model.noise.std_max"),
)
# Settings of an environment that only learning reads.
NOT_SCORED = ("env.limit_terminates",)


def check_task(config: ConfigDict, stage: str) -> None:
    """Refuse an empty `env.task` for a stage that needs a simulator."""
    if not config.env.task:
        raise SettingsError(
            f"env.task is empty, and experiments.{stage} needs a simulator; pass "
            "--config.env.task=NAME, see docs/environments.md."
        )


def data_path(config: ConfigDict) -> str:
    """The path of the demonstrations."""
    return config.data or default_path(config, "data", flag="data")


def load_data(config: ConfigDict) -> Episodes:
    """Demonstrations, normalised.

    Raises:
        SettingsError: there are none, or they cannot be read.
    """
    data = data_path(config)
    if not config.data and not Path(data).exists():
        raise SettingsError(
            f"no demonstrations at {data}; run experiments.collect first, or pass "
            "--config.data=<file or folder>, see docs/data.md."
        )
    if not Path(data).exists():
        raise SettingsError(f"--config.data={data} does not exist; check the path.")
    episodes = load_demonstrations(data)
    encoder = config.model.network.encoder
    if "rgb" in episodes.observations and image_shape(encoder) is None:
        raise SettingsError(
            f"{data} holds images, which model.network.encoder.kind={encoder.kind!r} "
            "does not read; pass --config.model.network.encoder.kind=vit, or data "
            "without images."
        )
    if episodes.rewards is not None and np.abs(episodes.rewards).max() > LARGEST:
        print(
            f"warning: rewards in {data} reach {np.abs(episodes.rewards).max():.4g}, "
            "beside which all others vanish; an algorithm that learns from them will "
            "fail. Correct them"
        )
    if episodes.normalizer is not None:
        constant = constant_columns(episodes.normalizer)
        if constant:
            print(
                f"note: columns {constant} of the observations are constant in {data}; "
                "policies see them clipped to that value"
            )
    return episodes


def about_data(config: ConfigDict, data: Episodes) -> dict[str, Any]:
    """What checkpoints say of the demonstrations of a run.

    Also what `collect` has measured of them, such as `replay_success`.
    """
    path = Path(data_path(config)).absolute()
    try:
        found = json.loads((path / MEASURED_FILE).read_text())
        measured = {x: float(found[x]) for x in _MEASURED if x in found}
        if found["digest"] != content_digest(path / DATA_FILE):
            measured = {}  # The demonstrations have been replaced.
    except (OSError, ValueError, TypeError, KeyError):
        measured = {}  # Demonstrations from elsewhere have none.
    return {
        "path": str(path),
        "digest": digest(data),
        "episodes": len(data.episode_lengths),
        "steps": len(data.actions),
        **measured,
    }


def about_policy(policy: LoadedPolicy, run_dir: str) -> dict[str, Any]:
    """What checkpoints say of the policy that a run started from, and of its data."""
    return {
        "policy": {
            "path": str(Path(run_dir).absolute()),
            "checkpoint": policy.iteration,
            "digest": digest((policy.params, policy.normalizer)),
        },
        "data": policy.about.get("data"),
    }


def as_observed(data: Episodes, normalizer: Normalizer) -> Episodes:
    """Normalise demonstrations as the environment of a policy does, clipping included.

    Args:
        data: normalised by bounds of their own, or in task units.
        normalizer: the bounds of the policy.
    """
    raw = unnormalize_episodes(data)
    state = np.asarray(policy_obs(normalizer, raw.observations["state"]), np.float32)
    data = normalize_episodes(raw, normalizer)
    return data._replace(observations={**data.observations, "state": state})


def make_raw_env(config: ConfigDict) -> VecEnv:
    """The environments of `config.rollout` in task units, one action per step."""
    env = time_limit(quarantine(make_single(config.env)), config.env.max_steps)
    return vectorize(env, config.rollout.num_envs)


def find_bounds(
    config: ConfigDict,
    run_dir: str,
    check: Callable[[Normalizer], Any] = lambda bounds: None,
) -> tuple[Normalizer, dict[str, Any]]:
    """Bounds for a policy with new networks, and the digest of the data, if any.

    The bounds are those of the run in `run_dir` if it is resumed, else of the data if
    there are any, else of random actions in [-1, 1].

    Args:
        check: called before the random actions, with bounds of the same sizes, so that
            wrong settings are refused before environments run.

    Raises:
        SettingsError: no data, for a task in host processes.
    """
    data, origin = None, {}
    if config.data or Path(data_path(config)).exists():
        data = load_data(config)
        origin["data"] = digest(data)
    if has_checkpoint(run_dir):
        return read_policy(run_dir).normalizer, origin
    if data is not None and data.normalizer is not None:
        print(f"bounds of observations and actions: those of {data_path(config)}")
        return data.normalizer, origin
    if is_host(config.env.task):
        raise SettingsError(
            f"policy={NO_POLICY}: bounds of {config.env.task} must come from "
            "demonstrations; pass --config.data=<file or folder>."
        )
    steps = config.rollout.random_steps
    print(
        f"bounds of observations: those of {steps} control steps under random actions; "
        "of actions: -1 and 1"
    )
    # One key for all seeds, so that a seed trains the same alone and among others.
    key, env = jax.random.key(0), make_raw_env(config)
    obs, action = np.ones(env.obs_shape["state"]), np.ones(env.action_shape)
    check(Normalizer(-obs, obs, -action, action))
    return random_bounds(env, key, num_control_steps=steps), origin


def policy_path(config: ConfigDict, stage: str) -> str:
    """The path of the policy that the config names, or else of that of `stage`."""
    return config.policy or default_path(config, "runs", stage, flag="policy")


def find_policy(
    config: ConfigDict, stage: str, checkpoint: int | str = "latest"
) -> LoadedPolicy:
    """Load the policy that the config names, or else that of `stage`.

    Args:
        checkpoint: an iteration, "latest" or "best".

    Raises:
        SettingsError: no policy there, or one that differs from the configured one.
    """
    run_dir = policy_path(config, stage)
    if not config.policy and load_config(run_dir) is None:
        raise SettingsError(
            f"no policy at {run_dir}; run experiments.{stage} first, or pass "
            "--config.policy=<run directory>."
        )
    trained = load_config(run_dir) or {}
    if "model" not in trained:
        read_policy(run_dir, checkpoint)  # Refuses a folder without a run.
        raise SettingsError(
            f"{run_dir} was written without a configuration; load it with "
            "dppo_jax.load_policy, or pass `config` to dppo_jax.train when training."
        )
    settings_of(trained, run_dir)  # Refuses a damaged file.
    is_tuned = trained.get("stage") == "finetune"
    settings = as_json(config)
    tuned_must_match: tuple[str, ...] = _TUNED_MUST_MATCH
    if not (_is_tuned_whole(trained["model"]) and _is_tuned_whole(settings["model"])):
        tuned_must_match += _SPLIT
    found = differences(trained, settings)
    notes = []
    for name, (saved, now) in sorted(found.items()):
        must_match = name.startswith(_MUST_MATCH) and not name.startswith(_MAY_DIFFER)
        if name == "env.task" and not saved:
            continue  # Cloned without a simulator.
        if must_match or (is_tuned and name in tuned_must_match):
            cure = f"pass {as_flag(name, saved)}, or train a policy that matches"
            if name == "model.kind":
                # An algorithm trains one kind, so another flag would be refused too.
                cure = (
                    f"name a policy of that kind, or pass --config.policy={NO_POLICY} "
                    f"for new networks, or {as_flag(name, saved)} if "
                    f"{config.algorithm.name} can train it"
                )
            if name == "env.task":
                cure = (
                    "name a policy of this task with --config.policy, or pass "
                    f"{as_flag(name, saved)} if both are the same task"
                )
            raise SettingsError(
                f"{run_dir} was trained with {name}={saved!r}, but the config says "
                f"{now!r}; {cure}."
            )
        if name.startswith(_WORTH_A_LINE) and name not in NOT_SCORED:
            notes.append(f"the policy was trained with {name}={saved!r}, not {now!r}")
    for note in notes:  # Only now, because an error would make them worthless.
        print(f"note: {note}")
    # Use the present settings: no weight depends on those that differ.
    name, acting = config.algorithm.name, None
    if name in config.algorithm and name == trained.get("algorithm", {}).get("name"):
        acting = config.algorithm[name]
    return load_policy(run_dir, checkpoint, model=config.model, acting=acting)


def _is_tuned_whole(model: dict[str, Any]) -> bool:
    """Whether the frozen network of a flow makes no step, so their number is free."""
    sampling = model.get("sampling", {})
    whole = sampling.get("num_tuned_steps") == sampling.get("flow_steps")
    return model.get("kind") == "flow" and whole


def build_policy(config: ConfigDict, action_dim: int) -> Any:
    """The policy that all stages share."""
    return make_policy(config.model, action_dim=action_dim)


def expected_params(config: ConfigDict, normalizer: Normalizer) -> Any:
    """Names and shapes of the parameters of the configured policy."""
    policy = build_policy(config, len(normalizer.action_min))
    obs = obs_like(
        config.model, history=config.env.history, obs_dim=len(normalizer.obs_min)
    )
    return jax.eval_shape(policy.init, jax.random.key(0), obs)
