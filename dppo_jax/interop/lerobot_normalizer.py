"""The normalisation of a LeRobot policy -> the bounds of a `Normalizer`.

LeRobot (github huggingface/lerobot) saves it in one of two ways:

- Today as steps of pipelines. `policy_preprocessor.json` and
  `policy_postprocessor.json` list the steps, and a step names the `.safetensors` file
  of its statistics (`processor/normalize_processor.py`).
- Before version 0.4 among the weights, as `normalize_inputs.buffer_FEATURE.STATISTIC`
  and `unnormalize_outputs.buffer_FEATURE.STATISTIC` (`policies/normalize.py`).

With z for the normalised value, it computes for observations and actions

| mode       | z of an observation x    | an action from z              |
|------------|--------------------------|-------------------------------|
| `MIN_MAX`  | 2 (x - min) / width - 1  | (z + 1) / 2 (max - min) + min |
| `MEAN_STD` | (x - mean) / (std + eps) | std z + mean                  |
| `IDENTITY` | x                        | z                             |

where width is max - min, to which versions before 0.4 add 1e-8. `QUANTILES` and
`QUANTILE10` are `MIN_MAX` with other statistics. All are affine, and so is
`policy_obs`, 2 (x - low) / (high - low + EPSILON) - 1, inside its limits.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dppo_jax.errors import SettingsError
from dppo_jax.interop.safetensors_file import load_safetensors
from dppo_jax.normalize import EPSILON, NARROW, OBS_LIMIT, Normalizer

PREPROCESSOR = "policy_preprocessor.json"
POSTPROCESSOR = "policy_postprocessor.json"

# Modes -> the statistics that become -1 and 1.
_RANGES = {
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
_EPS = 1e-8
# Steps of a pipeline that change no value of a vector.
_HARMLESS = ("rename_observations_processor", "to_batch_processor", "device_processor")
# Largest departure of a normalised value from LeRobot's at its own -1 and 1, which is
# due to float32 bounds.
_TOLERANCE = 1e-4


class Feature(NamedTuple):
    """An input or an output of a policy, and how LeRobot normalises it.

    name: for example observation.state.
    kind: its FeatureType, STATE, ENV or ACTION, by which LeRobot chooses the mode.
    size: of the vector.
    """

    name: str
    kind: str
    size: int


class _Scaling(NamedTuple):
    """How a feature is normalised.

    stats: statistic -> [size]; of IDENTITY they may be missing.
    eps: of MEAN_STD.
    widening: what is added to every range.
    """

    mode: str
    stats: Mapping[str, np.ndarray]
    eps: float = _EPS
    widening: float = 0.0


def normalizer_from_lerobot(
    folder: Path,
    weights: Mapping[str, np.ndarray],
    modes: Mapping[str, Any],
    *,
    inputs: Sequence[Feature],
    action: Feature,
) -> Normalizer:
    """Bounds with which our functions compute what LeRobot's normalisation computes.

    Off the data our policies see other values: observations are clipped, see
    `policy_obs`.

    Args:
        folder: of `save_pretrained`.
        weights: of `model.safetensors`, all of them.
        modes: `normalization_mapping` of `config.json`, for folders without pipelines.
        inputs: in the order of the observation.

    Raises:
        SettingsError: files or statistics that are missing or damaged, an unknown mode
            or step, or a feature that no bounds can normalise in the same way. The
            message names it.
    """
    if (folder / PREPROCESSOR).is_file():
        of_input = _pipeline(folder / PREPROCESSOR, "normalizer_processor")
        of_output = _pipeline(folder / POSTPROCESSOR, "unnormalizer_processor")
    else:
        of_input, of_output = (
            _buffers(weights, modes, prefix)
            for prefix in ("normalize_inputs", "unnormalize_outputs")
        )
    obs = [_obs_bounds(feature, _scaling(feature, of_input)) for feature in inputs]
    action_min, action_max = _action_bounds(action, _scaling(action, of_output))
    obs_min, obs_max = (np.concatenate(bounds) for bounds in zip(*obs))
    return Normalizer(obs_min, obs_max, action_min, action_max)


class _Saved(NamedTuple):
    """What a folder says of one direction.

    where: of the statistics, for messages.
    modes: kind of feature -> mode.
    stats: feature -> statistic -> [size].
    keys: features that are normalised; None: all.
    needs_stats: False if a feature without statistics stays as it is.
    """

    where: str
    modes: Mapping[str, Any]
    stats: Mapping[str, Mapping[str, np.ndarray]]
    keys: Sequence[str] | None
    needs_stats: bool
    eps: float
    widening: float


def _pipeline(path: Path, wanted: str) -> _Saved:
    """Read the step `wanted` of a pipeline; refuse steps that change values."""
    steps = _steps(path)
    found = [step for step in steps if step.get("registry_name") == wanted]
    for step in steps:
        name = step.get("registry_name", step.get("class"))
        dtype = _options(step).get("float_dtype")
        if name != wanted and (name not in _HARMLESS or dtype not in (None, "float32")):
            said = f"{name} with float_dtype={dtype}" if dtype else f"{name}"
            raise SettingsError(
                f"{path} has the step {said}; only {', '.join(_HARMLESS)} (float32) "
                f"and {wanted} can be imported."
            )
    if len(found) != 1:
        raise SettingsError(
            f"{path} has {len(found)} steps {wanted}; a policy with one of them can be "
            "imported."
        )
    options, file = _options(found[0]), found[0].get("state_file")
    stats: dict[str, dict[str, np.ndarray]] = {}
    if file is not None:
        if not isinstance(file, str) or Path(file).name != file:
            raise SettingsError(
                f"{path} names the statistics {file!r}; they must be a file in the "
                "same folder."
            )
        for name, array in load_safetensors(path.parent / file).items():
            feature, _, statistic = name.rpartition(".")
            stats.setdefault(feature, {})[statistic] = array
    modes, eps = options.get("norm_map", {}), options.get("eps", _EPS)
    keys = options.get("normalize_observation_keys")
    if not (
        isinstance(modes, dict)
        and isinstance(eps, (int, float))
        and 0 <= eps <= 1
        and (keys is None or isinstance(keys, list))
    ):
        raise SettingsError(
            f"{path}: norm_map={modes!r}, eps={eps!r} and normalize_observation_keys="
            f"{keys!r} of {wanted} are no settings of LeRobot's; restore the file."
        )
    return _Saved(
        where=str(path.parent / (file or path.name)),
        modes=modes,
        stats=stats,
        keys=keys,
        needs_stats=False,
        eps=float(eps),
        widening=0.0,
    )


def _steps(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise SettingsError(
            f"{path} does not exist; copy the whole folder of save_pretrained."
        )
    try:
        steps = json.loads(path.read_text())["steps"]
        if all(isinstance(step, dict) for step in steps):
            return list(steps)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise SettingsError(f"{path} is no pipeline of LeRobot; copy it again.")


def _options(step: Mapping[str, Any]) -> Mapping[str, Any]:
    options = step.get("config")
    return options if isinstance(options, dict) else {}


def _buffers(
    weights: Mapping[str, np.ndarray], modes: Mapping[str, Any], prefix: str
) -> _Saved:
    """Statistics among the weights, as versions before 0.4 save them."""
    prefix = f"{prefix}.buffer_"
    stats: dict[str, dict[str, np.ndarray]] = {}
    for name, array in weights.items():
        if name.startswith(prefix):
            # A name has _ where that of its feature has a dot.
            feature, _, statistic = name.removeprefix(prefix).rpartition(".")
            stats.setdefault(feature, {})[statistic] = array
    return _Saved(
        where=f"the weights {prefix}*",
        modes=modes,
        stats=stats,
        keys=None,
        needs_stats=True,
        eps=_EPS,
        widening=_EPS,
    )


def _scaling(feature: Feature, saved: _Saved) -> _Scaling:
    """The mode and the statistics of a feature."""
    name = feature.name
    mode = str(saved.modes.get(feature.kind, "IDENTITY"))
    stats = saved.stats.get(name, saved.stats.get(name.replace(".", "_"), {}))
    is_skipped = feature.kind != "ACTION" and (
        saved.keys is not None and name not in saved.keys
    )
    if is_skipped or (not stats and not saved.needs_stats):
        mode = "IDENTITY"
    needed: tuple[str, ...] = ()
    if mode == "MEAN_STD":
        needed = ("mean", "std")
    elif mode in _RANGES:
        needed = _RANGES[mode]
    elif mode != "IDENTITY":
        known = ("IDENTITY", "MEAN_STD", *_RANGES)
        raise SettingsError(
            f"{name} has the normalisation {mode!r} (normalization_mapping of "
            f"{feature.kind}); only {', '.join(known)} can be imported."
        )
    for statistic in needed:
        array = stats.get(statistic)
        if array is None or array.shape != (feature.size,):
            found = "none" if array is None else f"of shape {array.shape}"
            raise SettingsError(
                f"{name} is normalised by {mode}, which needs {statistic} of "
                f"{feature.size} numbers; {saved.where} has {found}. Save the policy "
                "with the statistics of its data."
            )
        if not np.isfinite(array).all():
            raise SettingsError(
                f"{saved.where}: {statistic} of {name} is not finite; save the policy "
                "with the statistics of its data."
            )
    stats = {key: np.asarray(array, np.float64) for key, array in stats.items()}
    return _Scaling(mode, stats, saved.eps, saved.widening)


def _obs_bounds(feature: Feature, scaling: _Scaling) -> tuple[np.ndarray, np.ndarray]:
    """The bounds with which `policy_obs` normalises a feature as LeRobot does."""
    constant = np.zeros(feature.size, bool)
    if scaling.mode == "IDENTITY":
        low, width = np.full(feature.size, -1.0), np.full(feature.size, 2.0)
        _check_identity(feature, scaling)
    elif scaling.mode == "MEAN_STD":
        scale = scaling.stats["std"] + scaling.eps
        low, width = scaling.stats["mean"] - scale, 2 * scale
        # Such columns are clipped to [-1, 1], here one standard deviation.
        _refuse(feature, scaling, width < NARROW * (1 + _TOLERANCE))
    else:
        low, high = (scaling.stats[key] for key in _RANGES[scaling.mode])
        _refuse(feature, scaling, high < low)
        # Here both give -1 at the only value of the data.
        constant = high == low
        width = high - low + scaling.widening
    obs_min = low.astype(np.float32)
    obs_max = np.maximum(obs_min + width - EPSILON, obs_min).astype(np.float32)
    obs_max = np.where(constant, obs_min, obs_max)
    # As `policy_obs` computes it.
    ours = obs_max - obs_min + np.float32(EPSILON)
    ends = ((low, -1), (low + width, 1))
    errors = [2 * (x - obs_min) / ours - 1 - z for x, z in ends]
    _refuse(feature, scaling, (np.abs(errors).max(axis=0) > _TOLERANCE) & ~constant)
    return obs_min, obs_max


def _action_bounds(
    feature: Feature, scaling: _Scaling
) -> tuple[np.ndarray, np.ndarray]:
    """The bounds with which `unnormalize_action` does what LeRobot does."""
    if scaling.mode == "IDENTITY":
        low, high = np.full(feature.size, -1.0), np.full(feature.size, 1.0)
    elif scaling.mode == "MEAN_STD":
        mean, std = (scaling.stats[key] for key in ("mean", "std"))
        low, high = mean - std, mean + std
    else:
        low, high = (scaling.stats[key] for key in _RANGES[scaling.mode])
    action_min, action_max = low.astype(np.float32), high.astype(np.float32)
    error = np.abs(action_max - action_min - (high - low))
    is_wrong = (error > _TOLERANCE * (high - low)) | (high < low)
    _refuse(feature, scaling, is_wrong)
    return action_min, action_max


def _check_identity(feature: Feature, scaling: _Scaling) -> None:
    """Refuse data that `policy_obs` would clip, if their range is known."""
    for key in ("min", "max"):
        found = scaling.stats.get(key)
        if found is not None and found.shape == (feature.size,):
            beyond = np.flatnonzero(np.abs(found) > OBS_LIMIT)
            if len(beyond):
                raise SettingsError(
                    f"{feature.name} is not normalised (IDENTITY), and {key} of its "
                    f"data is {found[beyond[0]]:g} in column {beyond[0]}; policies "
                    f"here see observations clipped to +-{OBS_LIMIT:g}."
                )


def _refuse(feature: Feature, scaling: _Scaling, columns: np.ndarray) -> None:
    """Refuse columns whose scaling no float32 bounds have."""
    bad = np.flatnonzero(columns)
    if not len(bad):
        return
    keys = _RANGES.get(scaling.mode, ("mean", "std"))
    numbers = ", ".join(f"{key}={scaling.stats[key][bad[0]]:.7g}" for key in keys)
    raise SettingsError(
        f"{feature.name} is normalised by {scaling.mode} with {numbers} in column "
        f"{bad[0]}, which bounds in float32 cannot do in the same way: the range must "
        f"not be negative, or so small that it is below {EPSILON:g} (a standard "
        f"deviation below {NARROW / 2:g}) or below the rounding of the values."
    )
