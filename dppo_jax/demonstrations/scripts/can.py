"""Scripted demonstrations of Can.

The styles differ in the yaw with which the hand takes the can.
"""

import jax.numpy as jnp

from dppo_jax.demonstrations.scripts import hands
from dppo_jax.demonstrations.scripts.hands import Decision, Memory, View
from dppo_jax.envs.robots.kinematics import Pose
from dppo_jax.envs.tasks.can import HALF_HEIGHT, TABLE, TARGET

ABOVE, DOWN, CLOSE, LIFT, CARRY, LOWER, RELEASE = range(7)
_SHAKE = (1.0, 0.5, 0.0, 1.0, 1.0, 0.5, 1.0)
_YAWS = (0.0, 0.8, -0.8)
# Where the can is put, from the middle of the target bin, and how far around, metres.
_SPOT, _AROUND = (0.08, 0.1), 0.03
_APPROACH, _CARRIED = 0.10, 0.24


def decide(memory: Memory, view: View) -> Decision:
    """Where the hand goes next, see `hands.Decision`."""
    phase, since = memory.phase, memory.since
    hand, can = view
    # Along the can the grip is between 5 mm below and 25 mm above its middle.
    offset = 0.01 + 0.015 * memory.jitter[0]
    grasp = hands.above(can.position, offset)
    spot = jnp.array(TARGET) + jnp.array(_SPOT) + _AROUND * memory.jitter[1:]
    carried = jnp.concatenate([spot, jnp.array([TABLE + _CARRIED])])
    put = hands.at_height(carried, TABLE + HALF_HEIGHT + offset + 0.012)
    places = jnp.stack(
        [
            hands.above(can.position, _APPROACH),
            grasp,
            grasp,
            hands.at_height(hand.position, TABLE + _CARRIED + 0.01),
            carried,
            put,
            carried,
        ]
    )
    yaw = jnp.where(phase >= CARRY, 0.0, jnp.array(_YAWS)[memory.style])
    goal = Pose(places[phase], hands.pointing_down(yaw))
    distance, angle = hands.distances(hand, goal)
    away = jnp.linalg.norm(can.position[:2] - spot)
    done = jnp.stack(
        [
            (distance < 0.012) & (angle < 0.08),
            (distance < 0.006) | (since > 40),
            since >= 5,
            hand.position[2] > TABLE + _CARRIED - 0.03,
            (away < 0.015) & (angle < 0.1),
            (distance < 0.012) | (since > 30),
            jnp.bool_(False),
        ]
    )
    is_held = (phase >= LIFT) & (phase <= LOWER)
    slipped = jnp.linalg.norm(hand.position - can.position) > 0.06
    return Decision(
        goal=goal,
        grip=jnp.where((phase >= CLOSE) & (phase <= LOWER), hands.CLOSE, hands.OPEN),
        slow=jnp.ones(3),
        shake=jnp.array(_SHAKE)[phase],
        phase=jnp.where(is_held & slipped, ABOVE, phase + done[phase]),
        yaw=memory.yaw,
    )


SCRIPT = hands.one_arm_script(decide, num_styles=len(_YAWS))
