"""Pictures of the avoidance task from above, computed from the position of the rod.

The picture is a function of two numbers, so it costs no renderer, runs on every device
inside the compiled program, and can be added to demonstrations that have none.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.envs.tasks import avoid
from dppo_jax.errors import SettingsError
from dppo_jax.types import Array, Env, Obs, TimeStep

# The visible part of the table in metres, (x, y) of its corner and its side: a square
# that holds the start, all cylinders and the reward line.
CORNER, SIDE = (0.05, -0.35), 0.9
_TABLE, _LINE = (230.0, 230.0, 230.0), (60.0, 180.0, 60.0)
_CYLINDER, _ROD = (205.0, 50.0, 50.0), (50.0, 75.0, 205.0)
# At its true size the rod would be two pixels wide in a picture of 96 pixels.
_ROD_RADIUS = 0.02


class CameraState(NamedTuple):
    env: Any
    obs: Obs


def picture(position: Array, size: int) -> Array:
    """Draw the rod among the cylinders, with soft edges of about a pixel.

    Args:
        position: [2] x, y of the rod in metres; outside of the visible part the rod is
            not seen.
        size: S, pixels per side.

    Returns:
        [S, S, 3] uint8; x goes to the right and y upwards.
    """
    rod = _disc(position, _ROD_RADIUS, size, xp=jnp)
    image = rod * jnp.array(_ROD) + (1 - rod) * _background(size)
    return jnp.round(image).astype(jnp.uint8)


def with_camera(env: Env, size: int = 96) -> Env:
    """Add `"rgb": [S, S, 3]` to the observations of `avoid`; a wrapper of the task.

    `config.env.wrappers = ("dppo_jax.envs.tasks.avoid_camera:with_camera",)` names it.

    Args:
        env: the task, whose observation ends with x, y of the rod in metres.
        size: S, pixels per side; 96 are those of the paper's pixel policies.

    Raises:
        SettingsError: the observations of `env` are not those of `avoid`, or the
            pictures would be too small.
    """
    if env.obs_shape != {"state": (4,)}:
        raise SettingsError(
            f"with_camera draws the task avoid, whose observation is state [4], not "
            f"{env.obs_shape}; put it first in env.wrappers, and only there."
        )
    if size < 16:
        raise SettingsError(
            f"size={size} pixels per side show no gaps; use at least 16, for example "
            "96."
        )

    def seen(obs: Obs) -> Obs:
        return {**obs, "rgb": picture(obs["state"][2:], size)}

    def reset(key: Array) -> CameraState:
        state = env.reset(key)
        return CameraState(state, seen(state.obs))

    def step(state: CameraState, action: Array) -> tuple[CameraState, TimeStep]:
        env_state, time_step = env.step(state.env, action)
        obs = seen(time_step.obs)
        return CameraState(env_state, obs), time_step._replace(obs=obs)

    obs_shape = {**env.obs_shape, "rgb": (size, size, 3)}
    return env._replace(reset=reset, step=step, obs_shape=obs_shape)


def pictures(states: np.ndarray, size: int = 96) -> np.ndarray:
    """What `with_camera` shows in recorded states, [N, 4] in metres -> [N, S, S, 3]."""
    draw = jax.jit(jax.vmap(functools.partial(picture, size=size)))
    return np.asarray(draw(jnp.asarray(states)[:, 2:]))


@functools.cache
def _background(size: int) -> np.ndarray:
    """The picture without the rod, [S, S, 3]."""
    image = np.tile(np.array(_TABLE, np.float32), (size, size, 1))
    _, y = _grid(size)
    for height in (avoid.FINISH_Y, avoid.REWARD_Y):
        line = np.clip(1.5 - np.abs(y - height) * size / SIDE, 0, 1)[..., None]
        image = line * np.array(_LINE) + (1 - line) * image
    for *centre, radius in avoid.CYLINDERS:
        disc = _disc(np.array(centre), radius, size, xp=np)
        image = disc * np.array(_CYLINDER) + (1 - disc) * image
    return image.astype(np.float32)


def _disc(centre: Any, radius: float, size: int, *, xp: Any) -> Any:
    """How much of each pixel a disc covers, about, [S, S, 1]; xp: NumPy or JAX's."""
    x, y = _grid(size)
    distance = xp.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2)
    return xp.clip(0.5 + (radius - distance) * size / SIDE, 0, 1)[..., None]


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the centres of all pixels, each [S, S]; the first row is on top."""
    along = ((np.arange(size) + 0.5) / size * SIDE).astype(np.float32)
    x, y = np.meshgrid(CORNER[0] + along, CORNER[1] + along[::-1])
    return x, y
