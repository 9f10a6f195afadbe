"""Recordings of robosuite, played again in this project's tasks.

A task is set to the first configuration of a recording: the object where it was, the
hand in its pose (by inverse kinematics, where the arm stands elsewhere here), the
fingers as open as they were. Velocities are not recorded in a form that would fit, so
everything starts at rest. Then the actions are executed in one of two ways:

- "actions": as they were recorded. They have the meaning that they have here
  (`envs.robots.control`), but robosuite's controller is a soft spring, so errors add
  up.
- "poses": in every control step the action that leads to the next recorded pose of the
  hand, with the recorded command of the gripper. This asks whether the recorded motion
  solves the task.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.demonstrations.formats.robosuite_scenes import (
    in_batches,
    scene_of_states,
    source_of,
)
from dppo_jax.demonstrations.scripts import hands
from dppo_jax.demonstrations.scripts.tabletop import reach_of
from dppo_jax.envs.robots import kinematics, panda, rotations
from dppo_jax.envs.robots.kinematics import Pose
from dppo_jax.envs.tasks import tabletop
from dppo_jax.envs.tasks.tabletop import Scene, TableState
from dppo_jax.errors import SettingsError
from dppo_jax.types import Array

WAYS = ("actions", "poses")


class Recording(NamedTuple):
    """Part of an episode, in coordinates of the task, T control steps.

    scene: leaves [T, ...], before the action with the same index.
    actions: [T, 7], with rotations of the sign that they have here.
    """

    scene: Scene
    actions: np.ndarray


class Replay(NamedTuple):
    """What happened when a recording was played, [T] each, after every control step.

    Entry t is compared with the recording before its action t + 1, so the last action
    is left out.

    hand: distance of the grip from the recorded one, metres.
    turn: angle between the hand and the recorded one, radians.
    body: distance of the object from the recorded one, metres.
    solved: whether the task is solved now.
    """

    hand: Array
    turn: Array
    body: Array
    solved: Array


def read_recording(
    states: np.ndarray, actions: np.ndarray, task: str, path: str
) -> Recording:
    """Make the scenes of robosuite's `states` [T, D].

    Args:
        actions: [T, 7] with the signs of `load_robomimic(path, task=task)`.

    Raises:
        SettingsError: see `scene_of_states`.
    """
    return Recording(scene_of_states(states, task, path), np.asarray(actions))


def solved_steps(recording: Recording, task: str) -> np.ndarray:
    """Whether the task is solved in the recorded scenes, by its rule here, [T]."""
    solved = jax.jit(jax.vmap(source_of(task).task.solved))
    return in_batches(solved, recording.scene)


def measured_response(recording: Recording, scale: float = 0.05) -> float:
    """Share of the commanded way that the recorded hand covers in a control step.

    The least-squares factor between the displacement of a control step and the
    commanded one, `scale` metres for an action of 1; 0 without commands.
    """
    moved = np.diff(recording.scene.hands[0].position, axis=0)
    wanted = scale * recording.actions[:-1, :3]
    return float((moved * wanted).sum() / max((wanted**2).sum(), 1e-12))


def replay(
    recording: Recording,
    task: str,
    *,
    way: str = "actions",
    engine: str = "auto",
    response: float = 0.3,
) -> Replay:
    """Play a recording in a task with one arm.

    Args:
        way: one of `WAYS`.
        engine: physics engine.
        response: see `make_table_env`.

    Raises:
        SettingsError: an unknown way, a task without recordings, or an engine that
            cannot run.
    """
    if way not in WAYS:
        raise SettingsError(f"way={way!r} must be one of {', '.join(WAYS)}.")
    table_task = source_of(task).task
    env = tabletop.make_table_env(table_task, engine=engine, response=response)
    reach = reach_of(dict(response=response))
    scene = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), recording.scene)
    follows = way == "poses"

    def advance(state: TableState, recorded: tuple[Array, Scene]):
        action, goal = recorded
        hand, (body,) = goal.hands[0], goal.bodies.values()
        pose = Pose(hand.position, rotations.to_matrix(hand.quaternion))
        if follows:
            now = hands.view(state.obs["state"]).hand
            move = hands.towards(now, pose, reach)
            action = jnp.concatenate([move, action[6:]])
        state, outcome = env.step(state, action)
        seen = hands.view(state.obs["state"])
        distance, turn = hands.distances(seen.hand, pose)
        away = jnp.linalg.norm(seen.body.position - body.position)
        return state, Replay(distance, turn, away, outcome.reward > 0)

    actions = jnp.asarray(recording.actions[:-1], jnp.float32)
    goals = jax.tree.map(lambda leaf: leaf[1:], scene)
    first = jax.tree.map(lambda leaf: leaf[0], scene)

    @jax.jit
    def play(start: TableState) -> Replay:
        return jax.lax.scan(advance, start, (actions, goals))[1]

    return jax.tree.map(np.asarray, play(start_like(first, task, engine)))


def start_like(scene: Scene, task: str, engine: str = "auto") -> TableState:
    """The state of a task at rest with the hand, fingers and object of a scene."""
    source = source_of(task)
    world = tabletop.make_world(source.task, engine)
    (hand,), (arm,) = scene.hands, source.task.arms
    target = Pose(hand.position, rotations.to_matrix(hand.quaternion))

    @jax.jit
    def start(target: Pose) -> TableState:
        joints = kinematics.inverse(
            jnp.array(panda.HOME, jnp.float32),
            target,
            kinematics.base_pose(arm.position, arm.yaw),
            num_steps=100,
            max_change=np.pi,
        )
        qpos = jnp.asarray(world.model.qpos0, jnp.float32)
        qpos = qpos.at[world.layout.joints[0]].set(joints)
        qpos = qpos.at[world.layout.fingers[0]].set(hand.fingers)
        for name, body in scene.bodies.items():
            pose = jnp.concatenate([body.position, body.quaternion])
            qpos = qpos.at[world.layout.bodies[name]].set(pose)
        return tabletop.state_at(world, source.task, qpos)

    return start(target)
