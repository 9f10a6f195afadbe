"""Scripted demonstrations of Square.

The styles differ in the side from which the hand takes the handle, where its joints
allow both. The nut goes onto the peg with the nearest multiple of a quarter turn.
"""

import jax.numpy as jnp

from dppo_jax.demonstrations.scripts import hands
from dppo_jax.demonstrations.scripts.hands import Decision, Memory, View
from dppo_jax.envs.robots import rotations
from dppo_jax.envs.robots.kinematics import Pose
from dppo_jax.envs.tasks.square import HANDLE, PEG, PEG_HEIGHT, TABLE
from dppo_jax.types import Array

ABOVE, DOWN, CLOSE, LIFT, HOVER, INSERT, RELEASE = range(7)
_SHAKE = (1.0, 0.5, 0.0, 1.0, 0.4, 0.2, 1.0)
_APPROACH, _CARRIED = 0.08, 0.09
_TOP = TABLE + PEG_HEIGHT
# Heights of the nut before it is put onto the peg, and where it is let go.
_HOVER, _LOW = _TOP + 0.04, TABLE + 0.035
# The last joint turns the hand this far, in radians, and by a quarter turn more.
_MAX_YAW = 2.0
# Speed of putting the nut onto the peg.
_SLOW = 0.35


def decide(memory: Memory, view: View) -> Decision:
    """Where the hand goes next, see `hands.Decision`."""
    phase, since = memory.phase, memory.since
    hand, nut = view
    yaw = rotations.yaw(nut.rotation)
    handle = nut.position + HANDLE * nut.rotation[:, 0]
    grasp = hands.above(handle, 0.001 + 0.003 * memory.jitter[0])
    # Before the grasp the hand follows the handle; then it is turned with the nut.
    side = rotations.wrap(yaw, jnp.pi)
    other = side - jnp.where(side > 0, 1.0, -1.0) * jnp.pi
    takes_other = (memory.style == 1) & (jnp.abs(other) < _MAX_YAW)
    grasp_yaw = jnp.where(takes_other, other, side)
    goal_yaw = jnp.where(phase <= LIFT, _nearest_quarter(yaw), memory.yaw)
    turn = jnp.matmul(_about_z(goal_yaw), nut.rotation.T, precision="highest")
    from_nut = jnp.matmul(turn, hand.position - nut.position, precision="highest")

    def over_peg(height: float) -> Array:
        """Where the hand is when the nut is over the peg at this height."""
        return jnp.array([*PEG, height]) + from_nut

    places = jnp.stack(
        [
            hands.above(handle, _APPROACH),
            grasp,
            grasp,
            hands.at_height(hand.position, _TOP + _CARRIED),
            over_peg(_HOVER),
            over_peg(_LOW),
            hands.at_height(hand.position, _TOP + 0.1),
        ]
    )
    hand_yaw = jnp.where(phase <= CLOSE, grasp_yaw, rotations.yaw(hand.rotation))
    is_turning = (phase == HOVER) | (phase == INSERT)
    turned = jnp.matmul(turn, hand.rotation, precision="highest")
    goal = Pose(
        places[phase], jnp.where(is_turning, turned, hands.pointing_down(hand_yaw))
    )
    distance, angle = hands.distances(hand, goal)
    away = jnp.linalg.norm(nut.position[:2] - jnp.array(PEG))
    done = jnp.stack(
        [
            (distance < 0.010) & (angle < 0.06),
            (distance < 0.005) | (since > 40),
            since >= 5,
            hand.position[2] > _TOP + _CARRIED - 0.015,
            (away < 0.0018) & (angle < 0.05) & (distance < 0.006),
            nut.position[2] < _LOW + 0.01,
            jnp.bool_(False),
        ]
    )
    is_held = (phase >= LIFT) & (phase <= INSERT)
    slipped = jnp.linalg.norm(hand.position - handle) > 0.04
    next_phase = phase + done[phase]
    next_phase = jnp.where((phase == INSERT) & (since > 60), HOVER, next_phase)
    return Decision(
        goal=goal,
        grip=jnp.where((phase >= CLOSE) & (phase <= INSERT), hands.CLOSE, hands.OPEN),
        slow=jnp.where(phase == INSERT, jnp.array([1.0, 1.0, _SLOW]), 1.0),
        shake=jnp.array(_SHAKE)[phase],
        phase=jnp.where(is_held & slipped, ABOVE, next_phase),
        yaw=goal_yaw,
    )


def _nearest_quarter(yaw: Array) -> Array:
    return jnp.round(yaw / (jnp.pi / 2)) * (jnp.pi / 2)


def _about_z(angle: Array) -> Array:
    return rotations.to_matrix(rotations.about_z(angle))


SCRIPT = hands.one_arm_script(decide, num_styles=2)
