"""Robosuite tasks as host tasks: `robosuite:Lift`, `robosuite:NutAssemblySquare`, ...

Robosuite (Zhu et al. 2020, arXiv 2009.12293) drives C MuJoCo from Python. Its random
draws come from NumPy's global stream, which is seeded before every reset, so that an
environment's episodes depend on its own seed alone.
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

from dppo_jax.envs.adapters.host import HostTask
from dppo_jax.envs.adapters.packages import require
from dppo_jax.errors import SettingsError

# What robomimic's low-dimensional data sets hold per arm, in their order; the object
# follows.
_ARM_KEYS = ("eef_pos", "eef_quat", "gripper_qpos")
_OBJECT_KEY = "object-state"


def make_robosuite(
    name: str,
    *,
    robots: str | Sequence[str] = "Panda",
    obs_keys: Sequence[str] = (),
    horizon: int | None = None,
    processes: int | None = None,
    **options: Any,
) -> HostTask:
    """A robosuite task without cameras; robomimic's limits are 300 to 700 steps.

    Action [Da] in [-1, 1], as robosuite's controller takes it. Observation
    `{"state": [Do]}`: the entries `obs_keys` side by side. Reward: robosuite's, by
    default 1 while the task is achieved. Metrics: `success`, 1 once it was. Nothing
    terminates an episode.

    Args:
        name: in robosuite's registry.
        robots: one name, or one per arm.
        obs_keys: entries of robosuite's observation; empty: per arm its
            `eef_pos`, `eef_quat` and `gripper_qpos`, then `object-state`, which is the
            order of robomimic's data.
        horizon: control steps until robosuite itself truncates; None: never, which
            leaves it to the time limit.
        processes: how many share the environments; None: one per core, 0: none.
        **options: further arguments of `robosuite.make`, e.g. `control_freq=20`,
            `reward_shaping=True`, `controller_configs`.

    Raises:
        SettingsError: robosuite is missing. What cannot be made is refused by
            `host_vec_env`, which makes one.
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
    """A robosuite task behind Gymnasium's interface, see `make_robosuite`."""

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
                f"robosuite:{name} has no observation {', '.join(unknown)}; "
                f"env.options.obs_keys may name {', '.join(observed)}."
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
    """Robosuite without its remarks, and on the MuJoCo of today."""
    # On import, and again at every reset, it says what it does not need.
    logging.getLogger("robosuite_logs").addFilter(_only_errors)
    import robosuite

    _mend_joint_addresses()
    _mend_mass_matrix()
    return robosuite


def _only_errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _mend_joint_addresses() -> None:
    """Robosuite 1.5 asks `type in (hinge, slide)`, where the type is a NumPy integer.

    From some version on MuJoCo's enumerations do not equal those, though Python's own
    integers; the question is the same with either.
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
    """Robosuite 1.5 calls `mj_fullM(model, out, data.qM)`; MuJoCo 4 has no `qM` and
    takes `(model, data, out)`."""
    from robosuite.controllers.parts import controller
    from robosuite.utils import binding_utils

    if hasattr(mujoco.MjData, "qM") or hasattr(binding_utils.MjData, "qM"):
        return
    # The data stand in for their matrix; all that robosuite does is pass it on.
    binding_utils.MjData.qM = property(lambda self: self._data)
    old = types.ModuleType("mujoco")
    old.__dict__.update(mujoco.__dict__)
    old.__dict__["mj_fullM"] = lambda model, out, data: mujoco.mj_fullM(
        model, data, out
    )
    controller.mujoco = old
