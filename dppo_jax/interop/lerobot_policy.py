"""Read a `DiffusionPolicy` that LeRobot has trained and saved by `save_pretrained`.

Facts are those of github huggingface/lerobot (lerobot/policies/diffusion,
`configuration_diffusion.py` and `modeling_diffusion.py`), and of the schedulers of
github huggingface/diffusers that it makes:

- The observation of a step is `observation.state`, then
  `observation.environment_state`. A history of `n_obs_steps` of them is flattened, the
  oldest first, and stands after the embedding of the time.
- The U-Net predicts `horizon` actions. The first belongs to the oldest observation, so
  the present one has index n_obs_steps - 1. From there `n_action_steps` are executed.
- `squaredcos_cap_v2` is our cosine schedule: diffusers samples alpha_bar at the same
  points, with the same offset and the same cap.
- Both schedulers space `num_inference_steps` evenly from time 0 ("leading").
  `DDPMScheduler` over fewer steps than in training is DDIM with eta 1. `DDIMScheduler`
  has eta 0 and clips the clean action, but not the noise in the mean.
- Draws are not clipped.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dppo_jax.errors import SettingsError
from dppo_jax.interop.lerobot_normalizer import Feature, normalizer_from_lerobot
from dppo_jax.interop.lerobot_unet import NUM_OUT_GROUPS, params_from_lerobot
from dppo_jax.interop.safetensors_file import load_safetensors
from dppo_jax.normalize import Normalizer
from dppo_jax.types import PyTree

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_UNET = "diffusion.unet."
_COMPILED = "_orig_mod."  # in the names of weights of a compiled network
_NORMALIZATION = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
_BETA_SCHEDULES = {"squaredcos_cap_v2": "cosine", "linear": "linear"}
_KINDS = {
    "observation.state": "STATE",
    "observation.environment_state": "ENV",
    "action": "ACTION",
}
# A bound of draws that no float32 draw reaches.
_NO_DRAW_CLIP = 10.0

# Defaults of `DiffusionConfig`, for what an older `config.json` may lack.
_DEFAULTS: dict[str, Any] = dict(
    n_obs_steps=2,
    horizon=16,
    n_action_steps=8,
    down_dims=[512, 1024, 2048],
    kernel_size=5,
    n_groups=8,
    diffusion_step_embed_dim=128,
    use_film_scale_modulation=True,
    noise_scheduler_type="DDPM",
    num_train_timesteps=100,
    beta_schedule="squaredcos_cap_v2",
    beta_start=0.0001,
    beta_end=0.02,
    prediction_type="epsilon",
    clip_sample=True,
    clip_sample_range=1.0,
    normalization_mapping={
        "VISUAL": "MEAN_STD",
        "STATE": "MIN_MAX",
        "ACTION": "MIN_MAX",
    },
)
# Counts, and what no count of a policy exceeds; a damaged one would fill the memory.
_COUNTS = (
    *("horizon", "n_obs_steps", "n_action_steps", "n_groups", "kernel_size"),
    *("num_train_timesteps", "diffusion_step_embed_dim"),
)
_MOST = 1_000_000
# A wrong guess of these would go unnoticed: some defaults have changed.
_REQUIRED = ("horizon", "n_action_steps", "n_obs_steps", "down_dims")


class LerobotPolicy(NamedTuple):
    """A policy of LeRobot.

    params: of a `DiffusionUNet`.
    normalizer: of its observations and actions.
    settings: of our configuration, for example {"model.chunk": 16}; all that the policy
        decides.
    samples_ddpm: True if LeRobot samples by DDPM over fewer steps than in training,
        which is DDIM with eta 1 here and always has noise.
    """

    params: PyTree
    normalizer: Normalizer
    settings: dict[str, Any]
    samples_ddpm: bool


def load_lerobot_policy(folder: str | os.PathLike) -> LerobotPolicy:
    """Read a folder of `DiffusionPolicy.save_pretrained`.

    Raises:
        SettingsError: files that are missing, damaged or of another policy, or a
            setting that cannot be imported, such as images; the message names it.
    """
    folder = Path(folder)
    config = _read_config(folder / _CONFIG)
    inputs, action = _features(config, folder)
    settings, samples_ddpm = _settings(config, folder)
    weights = load_safetensors(folder / _WEIGHTS)
    unet = {
        name.removeprefix(_UNET).removeprefix(_COMPILED): array
        for name, array in weights.items()
        if name.startswith(_UNET)
    }
    other = [name for name in weights if not name.startswith((_UNET, *_NORMALIZATION))]
    if not unet or other:
        found = f"also {', '.join(sorted(other)[:3])}" if other else "none"
        raise SettingsError(
            f"{folder / _WEIGHTS} must hold the weights {_UNET}* of a DiffusionPolicy "
            f"without images; it has {found}."
        )
    try:
        params = params_from_lerobot(unet)
    except SettingsError as error:
        raise SettingsError(f"{folder / _WEIGHTS}: {error}") from None
    normalizer = normalizer_from_lerobot(
        folder, weights, config["normalization_mapping"], inputs=inputs, action=action
    )
    return LerobotPolicy(params, normalizer, settings, samples_ddpm)


def _read_config(path: Path) -> dict[str, Any]:
    """Read `config.json`, with defaults for what it lacks."""
    if not path.is_file():
        raise SettingsError(
            f"{path} does not exist; name the folder of save_pretrained, for example "
            "checkpoints/last/pretrained_model of a training run."
        )
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"{path} is not valid JSON: {error}.") from None
    kind = config.get("type") if isinstance(config, dict) else None
    if kind != "diffusion":
        raise SettingsError(
            f"{path} has type={kind!r}; only policies of the type 'diffusion' can be "
            "imported. If it is one from before 2025, convert it by LeRobot first."
        )
    missing = [name for name in _REQUIRED if name not in config]
    if missing:
        raise SettingsError(f"{path} lacks {', '.join(missing)}; restore the file.")
    config = _DEFAULTS | config
    for name, default in _DEFAULTS.items():
        value, wanted = config[name], type(default)
        is_number = isinstance(value, (int, float)) if wanted is float else False
        fits = (is_number or isinstance(value, wanted)) and (
            isinstance(value, bool) == (wanted is bool)
        )
        if not fits:
            raise SettingsError(
                f"{path}: {name}={value!r} must be of type {wanted.__name__}; restore "
                "the file."
            )
    return config


def _features(config: Mapping[str, Any], folder: Path) -> tuple[list[Feature], Feature]:
    """The parts of an observation, in their order, and the action."""
    path = folder / _CONFIG
    found: dict[str, Feature] = {}
    for section in ("input_features", "output_features"):
        features = config.get(section)
        if not isinstance(features, dict) or not features:
            raise SettingsError(
                f"{path} has {section}={features!r}; save the policy with the features "
                "that it was trained on. If it is from before 2025, convert it by "
                "LeRobot first."
            )
        for name, entry in features.items():
            entry = entry if isinstance(entry, dict) else {}
            feature = _feature(f"{path}: {section} has", name, entry)
            if feature is not None:
                found[name] = feature
    for name in ("observation.state", "action"):
        if name not in found:
            raise SettingsError(f"{path} has no {name}; LeRobot's network needs it.")
    names = ("observation.state", "observation.environment_state")
    inputs = [found[name] for name in names if name in found]
    return inputs, found["action"]


def _feature(where: str, name: str, entry: Mapping[str, Any]) -> Feature | None:
    """One of the features that the network has; None: LeRobot's does not read it."""
    kind, shape = entry.get("type"), entry.get("shape")
    if kind == "VISUAL":
        raise SettingsError(
            f"{where} the image {name}, which LeRobot encodes by vision_backbone and a "
            "spatial softmax; policies with images cannot be imported, only those with "
            "observation.state and observation.environment_state."
        )
    wanted = _KINDS.get(name)
    if wanted is None and kind != "ENV":
        return None
    is_vector = (
        isinstance(shape, list)
        and len(shape) == 1
        and _is_count(shape[0])
        and shape[0] <= _MOST
    )
    if shape is None or wanted is None or kind != wanted or not is_vector:
        raise SettingsError(
            f"{where} {name} of type {kind} and shape {shape}; only vectors "
            "observation.state (STATE), observation.environment_state (ENV) and action "
            "(ACTION) can be imported."
        )
    return Feature(name, wanted, shape[0])


def _settings(config: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], bool]:
    """Settings of our configuration, and `LerobotPolicy.samples_ddpm`."""

    def refuse(name: str, wanted: str) -> None:
        raise SettingsError(
            f"{folder / _CONFIG} has {name}={config[name]!r}; it must be {wanted}."
        )

    for name in _COUNTS:
        if not 1 <= config[name] <= _MOST:
            refuse(name, f"a number from 1 to {_MOST}")
    for name in ("beta_start", "beta_end", "clip_sample_range"):
        if not 0 <= config[name] <= _MOST:  # NaN is not.
            refuse(name, f"a number from 0 to {_MOST}")
    past = config["n_obs_steps"] - 1
    if config["n_action_steps"] > config["horizon"] - past:
        refuse(
            "n_action_steps",
            f"at most {config['horizon'] - past}, which is horizon - n_obs_steps + 1",
        )
    widths = config["down_dims"]
    if not widths or not all(map(_is_count, widths)):
        refuse("down_dims", "a list of positive numbers of channels")
    if any(width % widths[0] for width in widths):
        refuse("down_dims", f"multiples of the first, {widths[0]}, to be imported")
    for name, known in (
        ("beta_schedule", tuple(_BETA_SCHEDULES)),
        ("noise_scheduler_type", ("DDPM", "DDIM")),
        ("prediction_type", ("epsilon", "sample")),
    ):
        if config[name] not in known:
            refuse(name, f"one of {', '.join(known)} to be imported")
    trained, sampled = config["num_train_timesteps"], config.get("num_inference_steps")
    if sampled is not None and not (_is_count(sampled) and sampled <= trained):
        refuse("num_inference_steps", f"None or a number from 1 to {trained}")
    is_ddim = config["noise_scheduler_type"] == "DDIM"
    ddim_steps = trained if sampled is None else sampled
    samples_ddpm = not is_ddim and ddim_steps < trained
    settings = {
        "env.history": config["n_obs_steps"],
        "env.executed": config["n_action_steps"],
        "model.kind": "diffusion",
        "model.chunk": config["horizon"],
        "model.network.kind": "unet",
        "model.network.dim": widths[0],
        "model.network.dim_mults": tuple(width // widths[0] for width in widths),
        "model.network.kernel_size": config["kernel_size"],
        "model.network.num_groups": config["n_groups"],
        "model.network.num_out_groups": (
            None if config["n_groups"] == NUM_OUT_GROUPS else NUM_OUT_GROUPS
        ),
        "model.network.group_norm_eps": 1e-5,
        "model.network.predict_scale": config["use_film_scale_modulation"],
        "model.network.larger_encoder": False,
        "model.network.activation": "mish",
        "model.network.time_dim": config["diffusion_step_embed_dim"],
        "model.network.condition_sizes": None,
        "model.network.encoder.kind": "state",
        "model.diffusion.num_denoising_steps": trained,
        "model.diffusion.predict_noise": config["prediction_type"] == "epsilon",
        "model.diffusion.x0_clip": (
            float(config["clip_sample_range"]) if config["clip_sample"] else None
        ),
        "model.diffusion.beta_schedule": _BETA_SCHEDULES[config["beta_schedule"]],
        "model.diffusion.past_actions": past,
        "model.sampling.ddim_steps": ddim_steps if is_ddim or samples_ddpm else None,
        "model.sampling.rederive_noise": not is_ddim,
        "model.sampling.draw_clip": _NO_DRAW_CLIP,
        "model.sampling.noise_clip": None,
        "model.sampling.final_clip": None,
    }
    if config["beta_schedule"] == "linear":
        for name in ("beta_start", "beta_end"):
            settings[f"model.diffusion.{name}"] = float(config[name])
    if samples_ddpm:
        settings["model.sampling.eta"] = 1.0
    return settings, samples_ddpm


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0
