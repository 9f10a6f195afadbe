"""Scripted demonstrations of Transport: each arm has its own phases.

In the first style both arms work at once, in the second one the arm that clears the
target bin starts after the other has put the lid away. In both, the first arm holds the
hammer at a meeting place until the second one has grasped it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dppo_jax.demonstrations.scripts import hands
from dppo_jax.demonstrations.scripts.hands import Script
from dppo_jax.envs.robots import rotations
from dppo_jax.envs.robots.kinematics import Pose
from dppo_jax.envs.tasks.transport import TABLE, TARGET, TRASH
from dppo_jax.types import Array

# Phases of the first arm ...
LID_ABOVE, LID_DOWN, LID_CLOSE, LID_LIFT, LID_ASIDE, LID_PUT, LID_LEAVE = range(7)
HAMMER_ABOVE, HAMMER_DOWN, HAMMER_CLOSE, HAMMER_LIFT, OFFER, RETREAT = range(7, 13)
# ... and of the second one.
TRASH_ABOVE, TRASH_DOWN, TRASH_CLOSE, TRASH_LIFT, TRASH_CARRY, TRASH_DROP = range(6)
COME, TAKE, TAKE_CLOSE, TAKE_WAIT, CARRY, LOWER, LET_GO = range(6, 13)
_PHASES = 13
# Where the lid is put, where hammers are handed over, and where the first arm retreats.
_ASIDE, _MEETING, _AWAY = (-0.2, -0.45), (0.0, -0.06, 0.30), (0.0, -0.25, 0.35)
_WAITING = (0.0, 0.22, 0.36)
# The first arm holds the hammer behind its middle, the second one before it, metres.
_BEHIND, _BEFORE = 0.045, 0.035


class Memory(NamedTuple):
    """What the script remembers; entries of arms are [2], first and second.

    phase, since: of each arm, see `hands.Memory`, as `style` and `speed`.
    noise: [2, 6] of the last action.
    """

    phase: Array
    since: Array
    style: Array
    speed: Array
    noise: Array


class Scene(NamedTuple):
    """What the script sees: poses of both hands and of the objects."""

    first: Pose
    second: Pose
    hammer: Pose
    trash: Pose
    lid_handle: Pose


class Way(NamedTuple):
    """Of one arm: goal, gripper, and the next phase."""

    goal: Pose
    grip: Array
    phase: Array


def start(key: Array) -> Memory:
    """Draw how an episode is shown."""
    style_key, speed_key = jax.random.split(key)
    return Memory(
        phase=jnp.zeros(2, jnp.int32),
        since=jnp.zeros(2, jnp.int32),
        style=jax.random.randint(style_key, (), 0, 2),
        speed=jax.random.uniform(speed_key, minval=hands.MIN_SPEED, maxval=1.0),
        noise=jnp.zeros((2, 6)),
    )


def act(
    memory: Memory, key: Array, obs: Array, *, noise: float, reach: tuple[float, float]
) -> tuple[Array, Memory]:
    """The next action [14] and memory; arguments are those of `hands.act`."""
    scene = Scene(
        first=hands.read_pose(obs[0:7]),
        second=hands.read_pose(obs[9:16]),
        hammer=hands.read_pose(obs[18:25]),
        trash=hands.read_pose(obs[25:32]),
        lid_handle=hands.read_pose(obs[32:39]),
    )
    drift = hands.drifted(memory.noise, key, noise)
    ways = (first_arm(memory, scene), second_arm(memory, scene))
    parts = []
    for way, hand, shift in zip(ways, (scene.first, scene.second), drift):
        move = hands.towards(hand, way.goal, reach) * memory.speed
        parts += [hands.shaken(move, shift), way.grip[None]]
    phase = jnp.stack([way.phase for way in ways])
    return jnp.concatenate(parts), memory._replace(
        phase=phase,
        since=jnp.where(phase == memory.phase, memory.since + 1, 0),
        noise=drift,
    )


def first_arm(memory: Memory, scene: Scene) -> Way:
    """Takes off the lid, and takes the hammer to the meeting place."""
    phase, since = memory.phase[0], memory.since[0]
    hand, handle = scene.first, scene.lid_handle.position
    hammer = scene.hammer.position - _BEHIND * scene.hammer.rotation[:, 0]
    places = jnp.stack(
        [
            hands.above(handle, 0.09),
            handle,
            handle,
            hands.at_height(hand.position, TABLE + 0.24),
            _place(*_ASIDE, 0.14),
            _place(*_ASIDE, 0.045),
            _place(*_ASIDE, 0.22),
            hands.above(hammer, 0.14),
            hammer,
            hammer,
            hands.at_height(hand.position, TABLE + 0.30),
            _place(*_MEETING),
            _place(*_AWAY),
        ]
    )
    lid_yaw = rotations.wrap(rotations.yaw(scene.lid_handle.rotation), jnp.pi)
    lid_yaw = lid_yaw + jnp.where(lid_yaw < -0.8, jnp.pi, 0.0)
    hammer_yaw = jnp.mod(rotations.yaw(scene.hammer.rotation), jnp.pi)
    yaw = jnp.where(phase <= LID_LEAVE, lid_yaw, hammer_yaw)
    yaw = jnp.where(phase >= OFFER, jnp.pi / 2, yaw)
    goal = Pose(places[phase], hands.pointing_down(yaw))
    distance, angle = hands.distances(hand, goal)
    has_been_taken = (memory.phase[1] >= TAKE_WAIT) & (memory.since[1] >= 3)
    done = jnp.stack(
        [
            (distance < 0.012) & (angle < 0.08),
            (distance < 0.006) | (since > 40),
            since >= 5,
            hand.position[2] > TABLE + 0.225,
            distance < 0.02,
            (distance < 0.015) | (since > 25),
            distance < 0.03,
            (distance < 0.012) & (angle < 0.08),
            (distance < 0.006) | (since > 40),
            since >= 6,
            hand.position[2] > TABLE + 0.28,
            has_been_taken,
            jnp.bool_(False),
        ]
    )
    holds_lid = (phase >= LID_CLOSE) & (phase <= LID_ASIDE)
    holds_hammer = (phase >= HAMMER_CLOSE) & (phase <= OFFER)
    return Way(goal, _grip(holds_lid | holds_hammer), phase + done[phase])


def second_arm(memory: Memory, scene: Scene) -> Way:
    """Throws the trash away, and takes the hammer to the target bin."""
    phase, since = memory.phase[1], memory.since[1]
    hand, trash = scene.second, scene.trash.position
    hammer = scene.hammer.position + _BEFORE * scene.hammer.rotation[:, 0]
    # The hammer is carried by its middle, which is beside the hand.
    over_target = hand.position - scene.hammer.position + jnp.array([*TARGET, 0.0])
    places = jnp.stack(
        [
            hands.above(trash, 0.10),
            trash,
            trash,
            hands.at_height(hand.position, TABLE + 0.24),
            _place(*TRASH, 0.24),
            _place(*TRASH, 0.20),
            _place(*_WAITING),
            hammer,
            hammer,
            hand.position,
            hands.at_height(over_target, TABLE + 0.26),
            hands.at_height(over_target, TABLE + 0.06),
            hands.at_height(hand.position, TABLE + 0.26),
        ]
    )
    trash_yaw = rotations.yaw(scene.trash.rotation)
    trash_yaw = rotations.wrap(trash_yaw, jnp.pi / 2) - jnp.pi / 2
    hammer_yaw = rotations.wrap(rotations.yaw(scene.hammer.rotation), jnp.pi)
    hammer_yaw = hammer_yaw - jnp.where(hammer_yaw > 0.3, jnp.pi, 0.0)
    yaw = jnp.where(phase <= TRASH_LIFT, trash_yaw, -jnp.pi / 2)
    yaw = jnp.where((phase >= COME) & (phase <= TAKE_WAIT), hammer_yaw, yaw)
    goal = Pose(places[phase], hands.pointing_down(yaw))
    distance, angle = hands.distances(hand, goal)
    may_start = (memory.style == 0) | (memory.phase[0] >= LID_LEAVE)
    is_offered = (memory.phase[0] == OFFER) & (
        jnp.linalg.norm(scene.first.position - _place(*_MEETING)) < 0.015
    )
    done = jnp.stack(
        [
            (distance < 0.012) & (angle < 0.08) & may_start,
            (distance < 0.006) | (since > 40),
            since >= 5,
            hand.position[2] > TABLE + 0.225,
            distance < 0.02,
            since >= 6,
            is_offered & (distance < 0.03),
            (distance < 0.007) | (since > 60),
            since >= 6,
            (memory.phase[0] >= RETREAT) & (memory.since[0] >= 6),
            (distance < 0.03) & (angle < 0.15),
            (distance < 0.02) | (since > 30),
            jnp.bool_(False),
        ]
    )
    holds_trash = (phase >= TRASH_CLOSE) & (phase <= TRASH_CARRY)
    holds_hammer = (phase >= TAKE_CLOSE) & (phase <= LOWER)
    return Way(goal, _grip(holds_trash | holds_hammer), phase + done[phase])


def _place(x: float, y: float, height: float) -> Array:
    """A place in the world, by its height above the table."""
    return jnp.array([x, y, TABLE + height])


def _grip(holds: Array) -> Array:
    return jnp.where(holds, hands.CLOSE, hands.OPEN)


SCRIPT = Script(num_styles=2, start=start, act=act)
