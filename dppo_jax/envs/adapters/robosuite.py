"""Robosuite tasks as host tasks: `robosuite:Lift`, `robosuite:NutAssemblySquare`, ...

Robosuite (Zhu et al. 2020, arXiv 2009.12293) runs C MuJoCo from Python. It draws random
numbers from NumPy's global generator, which is seeded here before every reset, so that
the episodes of an environment depend only on its own seed.
"""

import functools
import logging
import types
from collections.abc import Sequence
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

from dppo_jax.envs.adapters.host_task import HostTask
from dppo_jax.envs.adapters.packages import require
from dppo_jax.errors import SettingsError

# Observations per arm of robomimic's low-dimensional data sets, in their order; those
# of the object follow.
_ARM_KEYS = ("eef_pos", "eef_quat", "gripper_qpos")
_OBJECT_KEY = "object-state"


def make_robosuite(
    name: str,
    /,
    *,
    robots: str | Sequence[str] = "Panda",
    obs_keys: Sequence[str] = (),
    horizon: int | None = None,
    processes: int | None = None,
    **options: Any,
) -> HostTask:
    """Make a robosuite task without cameras; robomimic's limits are 300 to 700 steps.

    Action [Da] in [-1, 1], as robosuite's controller takes it. Observation
    `{"state": [Do]}`: the concatenated entries `obs_keys`. Reward: that of robosuite,
    by default 1 in every step in which the task is achieved. Metrics: `success`, 1 once
    the task has been achieved. Episodes never terminate.

    Args:
        name: in robosuite's registry.
        robots: one name, or one per arm.
        obs_keys: entries of robosuite's observation; empty: `eef_pos`, `eef_quat` and
            `gripper_qpos` of each arm, then `object-state`, in the order of robomimic's
            data.
        horizon: control steps until robosuite itself truncates; None: never, so only
            the time limit truncates.
        processes: how many processes share the environments; None: one per core, 0: run
            in the calling process.
        **options: further arguments of `robosuite.make`, e.g. `control_freq=20`,
            `reward_shaping=True`, `controller_configs`.

    Raises:
        SettingsError: robosuite is missing. Other errors are raised by `host_vec_env`,
            which makes the environment.
    """
    require("robosuite", task=f"robosuite:{name}", extra="robosuite")
    names = robots if isinstance(robots, str) else list(robots)
    make = functools.partial(
        RobosuiteEnv, name, names, obs_keys=tuple(obs_keys), horizon=horizon, **options
    )
    return HostTask(
        f"robosuite:{name}", make, metrics=("success",), processes=processes
    )


class RobosuiteEnv(gymnasium.Env):
    """A robosuite task with Gymnasium's interface, see `make_robosuite`."""

    def __init__(
        self,
        name: str,
        robots: str | list[str],
        *,
        obs_keys: tuple[str, ...] = (),
        horizon: int | None = None,
        **options: Any,
    ) -> None:
        robosuite = _import_robosuite()
        if name not in robosuite.ALL_ENVIRONMENTS:
            raise SettingsError(
                f"robosuite has no task {name!r}; it has "
                f"{', '.join(sorted(robosuite.ALL_ENVIRONMENTS))}."
            )
        settings: dict[str, Any] = dict(
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            ignore_done=horizon is None,
        )
        if horizon is not None:
            settings["horizon"] = horizon
        self.env = robosuite.make(name, robots=robots, **(settings | options))
        observed = self.env.observation_spec()
        arms = 1 if isinstance(robots, str) else len(robots)
        self.obs_keys = obs_keys or (
            *(f"robot{i}_{key}" for i in range(arms) for key in _ARM_KEYS),
            *([_OBJECT_KEY] if _OBJECT_KEY in observed else []),
        )
        unknown = [key for key in self.obs_keys if key not in observed]
        if unknown:
            raise SettingsError(
                f"robosuite:{name} has no observation {', '.join(unknown)}; set "
                f"env.options.obs_keys to some of {', '.join(observed)}."
            )
        size = sum(np.size(observed[key]) for key in self.obs_keys)
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        low, high = (bound.astype(np.float32) for bound in self.env.action_spec)
        self.action_space = spaces.Box(low, high)
        self.success = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        np.random.seed(self.np_random.integers(2**32, dtype=np.uint32))
        self.success = False
        return self._observe(self.env.reset()), {}

    def step(self, action: np.ndarray) -> Any:
        obs, reward, done, _ = self.env.step(action)
        self.success = self.success or bool(self.env._check_success())
        info = {"success": float(self.success)}
        return self._observe(obs), float(reward), False, bool(done), info

    def close(self) -> None:
        self.env.close()

    def _observe(self, obs: dict[str, Any]) -> np.ndarray:
        parts = [np.reshape(obs[key], -1) for key in self.obs_keys]
        return np.concatenate(parts).astype(np.float32)


def _import_robosuite() -> Any:
    """Import robosuite without its log messages, adapted to the current MuJoCo."""
    # On import and at every reset it logs which optional parts are missing.
    logging.getLogger("robosuite_logs").addFilter(_only_errors)
    import robosuite

    _mend_joint_addresses()
    _mend_mass_matrix()
    return robosuite


def _only_errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _mend_joint_addresses() -> None:
    """Replace robosuite 1.5's lookup of joint addresses if MuJoCo's enums break it.

    It tests `type in (hinge, slide)`, where the type is a NumPy integer. In newer
    versions of MuJoCo, enums equal Python integers but not NumPy integers.
    """
    from robosuite.utils import binding_utils

    hinge = mujoco.mjtJoint.mjJNT_HINGE
    if hinge == np.int32(hinge):
        return

    def mend(name: str, addresses: str, widths: dict[int, int]) -> None:
        def address(self: Any, joint: str) -> Any:
            index = self.joint_name2id(joint)
            start = getattr(self, addresses)[index]
            width = widths.get(int(self.jnt_type[index]), 1)
            return start if width == 1 else (start, start + width)

        setattr(binding_utils.MjModel, name, address)

    free, ball = int(mujoco.mjtJoint.mjJNT_FREE), int(mujoco.mjtJoint.mjJNT_BALL)
    mend("get_joint_qpos_addr", "jnt_qposadr", {free: 7, ball: 4})
    mend("get_joint_qvel_addr", "jnt_dofadr", {free: 6, ball: 3})


def _mend_mass_matrix() -> None:
    """Adapt robosuite 1.5's call of `mj_fullM` to MuJoCo 4.

    It calls `mj_fullM(model, out, data.qM)`; MuJoCo 4 has no `qM` and takes
    `(model, data, out)`.
    """
    from robosuite.controllers.parts import controller
    from robosuite.utils import binding_utils

    if hasattr(mujoco.MjData, "qM") or hasattr(binding_utils.MjData, "qM"):
        return
    # Let `qM` return the data: robosuite only passes it on to `mj_fullM`.
    binding_utils.MjData.qM = property(lambda self: self._data)
    old = types.ModuleType("mujoco")
    old.__dict__.update(mujoco.__dict__)
    old.__dict__["mj_fullM"] = lambda model, out, data: mujoco.mj_fullM(
        model, data, out
    )
    controller.mujoco = old
