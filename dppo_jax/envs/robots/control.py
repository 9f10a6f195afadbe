"""Control of a hand by changes of its pose, as robosuite's controller OSC_POSE.

In robosuite an action of 1 sets a goal 0.05 m or 0.5 rad away from the *measured* pose.
Its controller pulls the hand there by a critically damped spring (kp = 150), which
after the start covers sqrt(150) / 2 * 0.05 s = 0.31 of the way within a control step of
20 Hz. Here stiff servos hold the joints. They get the joint angles, from differential
inverse kinematics, of the pose that is `response` of the way to the goal.
"""

import jax.numpy as jnp

from dppo_jax.envs.robots import kinematics, rotations
from dppo_jax.envs.robots.kinematics import Pose
from dppo_jax.envs.robots.panda import FINGER_CLOSED, FINGER_OPEN
from dppo_jax.types import Array

# Actions of one arm: three of position, three of rotation, one of the gripper.
NUM_ACTIONS = 7
ACTION_SCALE = (0.05, 0.5)  # metres, radians
RESPONSE = 0.3


def commands(
    joints: Array, action: Array, base: Pose, *, reach: tuple[float, float]
) -> Array:
    """Commands [9] of the servos of one arm: joint angles and positions of the fingers.

    Args:
        joints: [7] measured angles.
        action: [7], clipped to [-1, 1]: change of the position and rotation vector of
            the change of orientation, both along the world's axes, then the gripper: it
            closes for positive values and opens otherwise.
        base: pose of the arm's base.
        reach: metres and radians that the hand moves in a control step for an action
            of 1, the action scale times the response.
    """
    action = jnp.clip(action, -1.0, 1.0)
    pose = kinematics.forward(joints, base).pose
    turn = rotations.from_vector(reach[1] * action[3:6])
    target = Pose(
        pose.position + reach[0] * action[:3],
        jnp.matmul(turn, pose.rotation, precision="highest"),
    )
    angles = kinematics.inverse(joints, target, base)
    finger = jnp.where(action[6] > 0, FINGER_CLOSED, FINGER_OPEN)
    return jnp.concatenate([angles, jnp.stack([finger, finger])])
