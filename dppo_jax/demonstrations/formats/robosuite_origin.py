"""What a file of robosuite or robomimic says of the environment it was recorded in."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from dppo_jax.demonstrations.formats.robosuite_scenes import source_of
from dppo_jax.envs.robots.control import ACTION_SCALE, NUM_ACTIONS
from dppo_jax.errors import SettingsError

_SCALE = [ACTION_SCALE[0]] * 3 + [ACTION_SCALE[1]] * 3


def check_origin(attributes: Mapping[str, Any], task: str, path: str) -> None:
    """Check environment and controller that a file names, if it does.

    Args:
        attributes: of its group `data`: `env_args` (robomimic) or `env` and `env_info`
            (robosuite).
        task: a key of `SOURCES`.

    Raises:
        SettingsError: another environment, or a controller whose actions are not
            changes of the pose of up to 0.05 m and 0.5 rad along the world's axes.
    """
    source = source_of(task)
    recorded = _described(attributes, path)
    name = recorded.get("env_name", attributes.get("env"))
    if name is not None and name not in source.environments:
        raise SettingsError(
            f"{path} was recorded in {name}, but task={task} reads "
            f"{' or '.join(source.environments)}; choose another task."
        )
    settings = (recorded.get("env_kwargs") or recorded).get("controller_configs")
    for controller in _controllers(settings):
        unfit = _unfit(controller, has_turned_bases=len(source.task.arms) > 1)
        if unfit:
            raise SettingsError(
                f"{path} was recorded with a controller of {unfit}; task={task} needs "
                "OSC_POSE with changes of the pose along the world's axes of at most "
                f"{_SCALE}."
            )


def convert_actions(
    actions: np.ndarray, attributes: Mapping[str, Any], path: str
) -> np.ndarray:
    """Give the rotations in actions [N, 7 per arm] the sign that they have here.

    Up to version 1.1, robosuite's controller turned the hand by the inverse of the
    commanded rotation (`set_goal_orientation` in `utils/control_utils.py`).
    """
    told = _described(attributes, path).get("env_version", "")
    version = str(attributes.get("repository_version", told))
    if not version.startswith(("1.0.", "1.1.")):
        return actions
    signs = np.array([1, 1, 1, -1, -1, -1, 1], actions.dtype)
    return actions * np.tile(signs, actions.shape[1] // NUM_ACTIONS)


def _described(attributes: Mapping[str, Any], path: str) -> dict[str, Any]:
    text = attributes.get("env_args") or attributes.get("env_info") or "{}"
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"{text!r:.100} has no names")
    except (ValueError, TypeError, RecursionError) as error:
        raise SettingsError(
            f"{path}: the description of the environment is no JSON ({error}); correct "
            "or remove the attribute of data."
        ) from error
    return found


def _controllers(settings: Any) -> list[dict[str, Any]]:
    """Settings of the arms' controllers, which robosuite 1.5 lists as parts."""
    many = settings if isinstance(settings, list) else [settings or {}]
    found = []
    for one in many:
        parts = one.get("body_parts")
        arms = ("right", "left")
        found += [parts[arm] for arm in arms if arm in parts] if parts else [one]
    return [one for one in found if "type" in one]


def _unfit(controller: dict[str, Any], *, has_turned_bases: bool) -> str:
    """Which setting of a controller gives actions another meaning; empty if none."""
    if controller["type"] != "OSC_POSE":
        return f"the type {controller['type']}"
    if not controller.get("control_delta", True):
        return "control_delta=False"
    if controller.get("input_type", "delta") != "delta":
        return f"input_type={controller['input_type']}"
    # Since 1.5 the axes may be those of the base.
    frame = controller.get("input_ref_frame", "world")
    if frame != "world" and has_turned_bases:
        return f"input_ref_frame={frame}"
    scale = controller.get("output_max", _SCALE)
    scale = scale if isinstance(scale, list) else [scale] * len(_SCALE)
    return "" if scale == _SCALE else f"output_max={scale}"
