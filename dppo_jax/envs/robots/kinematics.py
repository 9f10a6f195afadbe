"""Forward and differential inverse kinematics of the Panda, in JAX.

All functions are for one arm; use `vmap` for more. Products are computed in full
float32 precision, because the fast formats of accelerators would move the hand by
millimetres.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.envs.robots import rotations
from dppo_jax.envs.robots.panda import (
    GRIP,
    HAND_POSITION,
    HAND_QUATERNION,
    HOME,
    LINKS,
)
from dppo_jax.envs.robots.rotations import CROSS
from dppo_jax.types import Array

# Inverse kinematics stays this far from the limits of the joints, in radians.
_MARGIN = 0.02


class Pose(NamedTuple):
    """position: [3] metres; rotation: [3, 3] matrix; both in the world."""

    position: Array
    rotation: Array


class Frame(NamedTuple):
    """position [3], rotation [3, 3] and the same as a quaternion [4], in the world."""

    position: Array
    rotation: Array
    quaternion: Array


class HandState(NamedTuple):
    """The grip of an arm in the world, and how it moves with the joints.

    pose: of the grip; its z axis points along the hand, the fingers move along y.
    quaternion: [4] wxyz of the same rotation. Its sign is a continuous function of the
        joints, as in MuJoCo.
    jacobian: [6, 7] velocity of the grip, then angular velocity of the hand, per joint
        velocity.
    """

    pose: Pose
    quaternion: Array
    jacobian: Array


def base_pose(position: tuple[float, float, float], yaw: float = 0.0) -> Pose:
    """The pose of the base of an arm that stands upright."""
    c, s = np.cos(yaw), np.sin(yaw)
    rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)
    return Pose(jnp.array(position, jnp.float32), jnp.asarray(rotation))


def forward(joints: Array, base: Pose) -> HandState:
    """Where the grip is, for joint angles [7]."""

    def onward(last: Frame, link: tuple[Array, Array, Array]) -> tuple[Frame, Frame]:
        """From the frame of a link to that of the next one."""
        place, rest, angle = link
        turn = rotations.multiply(rest, rotations.about_z(angle))
        now = Frame(
            last.position + _dot(last.rotation, place),
            _dot(last.rotation, rotations.to_matrix(turn)),
            rotations.multiply(last.quaternion, turn),
        )
        return now, now

    start = Frame(
        base.position,
        base.rotation,
        rotations.about_z(rotations.yaw(base.rotation)),
    )
    places = jnp.array([link.position for link in LINKS], jnp.float32)
    rests = jnp.array([link.quaternion for link in LINKS], jnp.float32)
    last, frames = jax.lax.scan(onward, start, (places, rests, joints))
    # The hand turns about the line to the grip, so both have one place in the link.
    grip = jnp.array(np.add(HAND_POSITION, GRIP), jnp.float32)
    turn = jnp.array(HAND_QUATERNION, jnp.float32)
    hand, _ = onward(last, (grip, turn, jnp.float32(0)))
    axes = frames.rotation[:, :, 2]
    arms = hand.position - frames.position
    moved = jnp.einsum("na,nb,abc->cn", axes, arms, CROSS, precision="highest")
    return HandState(
        Pose(hand.position, hand.rotation),
        hand.quaternion,
        jnp.concatenate([moved, axes.T]),
    )


def error(target: Pose, pose: Pose) -> Array:
    """The motion [6] from `pose` to `target`: metres, then a rotation vector."""
    turn = _dot(target.rotation, pose.rotation.T)
    return jnp.concatenate([target.position - pose.position, rotations.to_vector(turn)])


def inverse(
    joints: Array,
    target: Pose,
    base: Pose,
    *,
    num_steps: int = 2,
    damping: float = 0.01,
    home_gain: float = 0.02,
    max_change: float = 0.13,
) -> Array:
    """Joint angles [7] that bring the grip to `target`, near the present ones.

    Damped least squares (Wampler 1986): dq = J^T (J J^T + damping^2 I)^-1 e, with a
    pull towards `HOME` in the null space of J. Far targets are approached only: the
    change is shortened as a whole until no joint changes by more than `max_change`, so
    that the grip keeps its direction.

    Args:
        joints: [7] present angles.
        num_steps: how often to linearise.
        damping: metres or radians; the larger, the slower near singular positions.
        home_gain: share of the way to `HOME` per step.
        max_change: radians.
    """

    def approach(joints: Array, _: None) -> tuple[Array, None]:
        hand = forward(joints, base)
        jacobian = hand.jacobian
        pull = home_gain * (jnp.array(HOME, jnp.float32) - joints)
        wanted = error(target, hand.pose) - _dot(jacobian, pull)
        squared = _dot(jacobian, jacobian.T) + damping**2 * jnp.eye(6)
        return joints + _dot(jacobian.T, solve(squared, wanted)) + pull, None

    start = joints
    joints, _ = jax.lax.scan(approach, joints, length=num_steps)
    change = joints - start
    change *= jnp.minimum(1.0, max_change / jnp.maximum(jnp.abs(change).max(), 1e-6))
    low, high = np.array([link.limits for link in LINKS], np.float32).T
    return jnp.clip(start + change, low + _MARGIN, high - _MARGIN)


def solve(matrix: Array, right: Array) -> Array:
    """Solve `matrix` x = `right` for a positive definite matrix [N, N].

    Gauss-Jordan elimination, which needs no pivots for such a matrix. Under `vmap` it
    is a few operations for the whole batch, in place of a call of LAPACK for each
    matrix.
    """
    size = len(right)

    def eliminate(index: Array, rows: Array) -> Array:
        unit = jnp.arange(size) == index
        pivot = rows[index] / rows[index, index]
        # Row `index` becomes `pivot`, the others get a zero in column `index`.
        return rows - (rows[:, index] - unit)[:, None] * pivot

    rows = jnp.concatenate([matrix, right[:, None]], axis=1)
    return jax.lax.fori_loop(0, size, eliminate, rows)[:, -1]


def _dot(first: Array, second: Array) -> Array:
    return jnp.matmul(first, second, precision="highest")
