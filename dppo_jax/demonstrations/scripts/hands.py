"""What the scripted demonstrators of the manipulation tasks share.

A script sees the observations that a policy sees, and nothing else. It goes through
phases (above the object, down, close, ...), each of which has a goal for the hand and a
condition that ends it. Because the goals follow the object, it corrects what noise and
slips change; if the object is lost, it starts again.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.envs.robots import rotations
from dppo_jax.envs.robots.kinematics import Pose, error
from dppo_jax.types import Array

# Per control step, how much of the noise stays.
MEMORY_OF_NOISE = 0.7
# Noise of rotations, as a share of that of positions.
NOISE_OF_ROTATION = 0.3
# Least speed of an episode, as a share of the greatest action.
MIN_SPEED = 0.7
OPEN, CLOSE = -1.0, 1.0


class View(NamedTuple):
    """The poses of the hand and of the object in the world."""

    hand: Pose
    body: Pose


class Memory(NamedTuple):
    """What a script remembers within an episode.

    phase, since: the number of the phase, and the control steps since it began.
    style: which of the ways to solve the task it shows, drawn at the start.
    speed: share of the greatest action, drawn at the start.
    jitter: [3] in [-1, 1], drawn at the start, which scripts use for small choices.
    yaw: an angle that a phase has fixed for the next ones.
    noise: [6] of the last action.
    """

    phase: Array
    since: Array
    style: Array
    speed: Array
    jitter: Array
    yaw: Array
    noise: Array


class Decision(NamedTuple):
    """goal, grip: where the hand goes, and `OPEN` or `CLOSE`.

    slow: factor [3] of the action's position.
    shake: factor of the noise.
    phase: the next one.
    yaw: see `Memory`.
    """

    goal: Pose
    grip: Array
    slow: Array
    shake: Array
    phase: Array
    yaw: Array


Decide = Callable[[Memory, View], Decision]


class Script(NamedTuple):
    """A scripted demonstrator of one task.

    num_styles: ways to solve the task.
    start: key -> memory, which has a field `style`; draws how an episode is shown.
    act: (memory, key, obs [Do], noise=, reach=) -> (action [Da], memory); `act` below
        explains the arguments.
    """

    num_styles: int
    start: Callable[[Array], Any]
    act: Callable[..., tuple[Array, Any]]


def one_arm_script(decide: Decide, *, num_styles: int) -> Script:
    """Make the script of an arm that `decide` tells where to go."""
    return Script(
        num_styles=num_styles,
        start=functools.partial(start, num_styles),
        act=functools.partial(act, decide),
    )


def start(num_styles: int, key: Array) -> Memory:
    """Draw how an episode is shown."""
    style_key, speed_key, jitter_key = jax.random.split(key, 3)
    return Memory(
        phase=jnp.int32(0),
        since=jnp.int32(0),
        style=jax.random.randint(style_key, (), 0, num_styles),
        speed=jax.random.uniform(speed_key, minval=MIN_SPEED, maxval=1.0),
        jitter=jax.random.uniform(jitter_key, (3,), minval=-1.0, maxval=1.0),
        yaw=jnp.float32(0),
        noise=jnp.zeros(6),
    )


def act(
    decide: Decide,
    memory: Memory,
    key: Array,
    obs: Array,
    *,
    noise: float,
    reach: tuple[float, float],
) -> tuple[Array, Memory]:
    """The next action [7] and memory.

    Args:
        obs: [Do] of the task, in task units.
        noise: see `shaken`.
        reach: metres and radians that the hand moves for an action of 1.
    """
    seen = view(obs)
    decision = decide(memory, seen)
    move = towards(seen.hand, decision.goal, reach) * memory.speed
    move *= jnp.concatenate([decision.slow, jnp.ones(3)])
    drift = drifted(memory.noise, key, noise)
    action = jnp.concatenate(
        [shaken(move, decision.shake * drift), decision.grip[None]]
    )
    stays = decision.phase == memory.phase
    return action, memory._replace(
        phase=decision.phase,
        since=jnp.where(stays, memory.since + 1, 0),
        yaw=decision.yaw,
        noise=drift,
    )


def drifted(last: Array, key: Array, noise: float) -> Array:
    """The next noise, a first-order autoregression.

    It drives the hand away for a while, so that the script has to come back.

    Args:
        last: noise of the last control step, of any shape.
        noise: standard deviation of what is added, as a share of the greatest action.
    """
    return MEMORY_OF_NOISE * last + noise * jax.random.normal(key, last.shape)


def shaken(move: Array, drift: Array) -> Array:
    """A move [6] with noise, which for its rotation is smaller, within [-1, 1]."""
    share = jnp.array([1.0] * 3 + [NOISE_OF_ROTATION] * 3)
    return jnp.clip(move + share * drift, -1.0, 1.0)


def view(obs: Array) -> View:
    """Read the poses from an observation, which starts with those of hand and object.

    The order is that of robomimic: grip [3], quaternion xyzw [4], fingers [2], object
    [3], quaternion xyzw [4].
    """

    return View(read_pose(obs[0:7]), read_pose(obs[9:16]))


def read_pose(part: Array) -> Pose:
    """The pose of a position [3] and a quaternion xyzw [4] in an observation."""
    return Pose(part[:3], rotations.to_matrix(jnp.roll(part[3:], 1)))


def towards(hand: Pose, goal: Pose, reach: tuple[float, float]) -> Array:
    """The action [6] towards a goal: all of the way, or its direction at full speed."""
    way = error(goal, hand)
    move = way / jnp.array([reach[0]] * 3 + [reach[1]] * 3)
    return move / jnp.maximum(1.0, jnp.abs(move).max())


def distances(hand: Pose, goal: Pose) -> tuple[Array, Array]:
    """Metres and radians from a hand to its goal."""
    way = error(goal, hand)
    return jnp.linalg.norm(way[:3]), jnp.linalg.norm(way[3:])


def pointing_down(yaw: Array) -> Array:
    """The rotation [3, 3] of a hand that points down; its x axis has this yaw."""
    cosine = np.diag([1.0, -1.0, 0.0]).astype(np.float32)
    sine = np.eye(3, dtype=np.float32)[[1, 0, 2]] * np.array([1, 1, 0], np.float32)
    down = np.diag([0.0, 0.0, -1.0]).astype(np.float32)
    return jnp.cos(yaw) * cosine + jnp.sin(yaw) * sine + down


def above(position: Array, height: float | Array) -> Array:
    """The place [3] above or below another one, metres."""
    return position + jnp.array([0.0, 0.0, 1.0]) * height


def at_height(position: Array, z: float | Array) -> Array:
    """The place [3] with the x and y of another one, and z in metres."""
    return position.at[2].set(z)
