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
from dppo_jax.types import Array

# Inverse kinematics stays this far from the limits of the joints, in radians.
_MARGIN = 0.02


class Pose(NamedTuple):
    """position: [3] metres; rotation: [3, 3] matrix; both in the world."""

    position: Array | np.ndarray
    rotation: Array | np.ndarray


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
    return Pose(np.array(position, np.float32), rotation)


def forward(joints: Array, base: Pose) -> HandState:
    """Where the grip is, for joint angles [7]."""
    position, rotation = base
    # All links at once: this is compiled in a fraction of the time of one by one.
    places = jnp.array([link.position for link in LINKS], jnp.float32)
    resting = jnp.array([link.quaternion for link in LINKS], jnp.float32)
    turns = jax.vmap(rotations.multiply)(resting, jax.vmap(rotations.about_z)(joints))
    quaternion = rotations.about_z(rotations.yaw(rotation))
    origins, axes = [], []
    for place, turn, matrix in zip(places, turns, jax.vmap(rotations.to_matrix)(turns)):
        position = position + _dot(rotation, place)
        rotation = _dot(rotation, matrix)
        quaternion = rotations.multiply(quaternion, turn)
        origins.append(position)
        axes.append(rotation[:, 2])
    grip = np.add(HAND_POSITION, GRIP)  # The hand turns about this line.
    position = position + _dot(rotation, jnp.array(grip, jnp.float32))
    hand = jnp.array(HAND_QUATERNION, jnp.float32)
    rotation = _dot(rotation, rotations.to_matrix(hand))
    quaternion = rotations.multiply(quaternion, hand)
    arms, lines = position - jnp.stack(origins), jnp.stack(axes)
    jacobian = jnp.concatenate([jnp.cross(lines, arms), lines], axis=1).T
    return HandState(Pose(position, rotation), quaternion, jacobian)


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
    start = joints
    for _ in range(num_steps):
        hand = forward(joints, base)
        jacobian = hand.jacobian
        pull = home_gain * (jnp.array(HOME, jnp.float32) - joints)
        wanted = error(target, hand.pose) - _dot(jacobian, pull)
        squared = _dot(jacobian, jacobian.T) + damping**2 * jnp.eye(6)
        joints = joints + _dot(jacobian.T, solve(squared, wanted)) + pull
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
    rows = jnp.concatenate([matrix, right[:, None]], axis=1)
    for index, unit in enumerate(np.eye(size, dtype=np.float32)):
        pivot = rows[index] / rows[index, index]
        # Row `index` becomes `pivot`, the others get a zero in column `index`.
        rows = rows - (rows[:, index] - unit)[:, None] * pivot
    return rows[:, -1]


def _dot(first: Array, second: Array) -> Array:
    return jnp.matmul(first, second, precision="highest")
