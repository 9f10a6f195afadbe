"""Scripted demonstrations of Lift.

The styles differ in the faces of the cube that the fingers take: the pair that needs
the smaller turn of the hand, or the other one.
"""

import jax.numpy as jnp

from dppo_jax.demonstrations.scripts import hands
from dppo_jax.demonstrations.scripts.hands import Decision, Memory, View
from dppo_jax.envs.robots import rotations
from dppo_jax.envs.robots.kinematics import Pose
from dppo_jax.envs.tasks.lift import TABLE

ABOVE, DOWN, CLOSE, LIFT = range(4)
_SHAKE = (1.0, 1.0, 0.0, 1.0)
# Height of the grip above the cube at first, and above the table at the end, metres.
_APPROACH, _END = 0.09, 0.18
_GRASP = 0.008  # greatest distance of the grip from the centre of the cube, along z


def decide(memory: Memory, view: View) -> Decision:
    """Where the hand goes next, see `hands.Decision`."""
    phase, since = memory.phase, memory.since
    hand, cube = view
    near = rotations.wrap(rotations.yaw(cube.rotation), jnp.pi / 2)
    other = near - jnp.where(near > 0, 1.0, -1.0) * jnp.pi / 2
    grasp = hands.above(cube.position, _GRASP * memory.jitter[0])
    places = jnp.stack(
        [
            hands.above(cube.position, _APPROACH),
            grasp,
            grasp,
            hands.at_height(cube.position, TABLE + _END),
        ]
    )
    yaw = jnp.where(memory.style == 1, other, near)
    goal = Pose(places[phase], hands.pointing_down(yaw))
    distance, angle = hands.distances(hand, goal)
    done = jnp.stack(
        [
            (distance < 0.012) & (angle < 0.06),
            (distance < 0.006) | (since > 40),
            since >= 5,
            jnp.bool_(False),
        ]
    )
    slipped = jnp.linalg.norm(hand.position - cube.position) > 0.04
    return Decision(
        goal=goal,
        grip=jnp.where(phase >= CLOSE, hands.CLOSE, hands.OPEN),
        slow=jnp.ones(3),
        shake=jnp.array(_SHAKE)[phase],
        phase=jnp.where((phase == LIFT) & slipped, ABOVE, phase + done[phase]),
        yaw=memory.yaw,
    )


SCRIPT = hands.one_arm_script(decide, num_styles=2)
