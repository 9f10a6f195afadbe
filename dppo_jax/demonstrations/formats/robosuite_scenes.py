"""robosuite's recordings as observations of this project's manipulation tasks.

`convert` gives the observation that a task here has for the same poses of hands and
objects. What an observation derives from others, such as the object in the frame of the
hand, is computed again.

Facts are from the sources of robosuite 1.4.1 (`environments/manipulation`,
`models/assets`, `models/objects`), and for `states` from those of 1.0.1, which are the
same in this. In robomimic's `low_dim` files `object` is robosuite's `object-state`:

- Lift [10]: position, quaternion of the cube; from the cube to the grip.
- Can, Square [14]: position, quaternion of the object; both in the frame of the hand.
- Transport [41]: poses of hammer, trash and handle of the lid; places of two bins;
  vectors from the grips to them; whether hammer and trash are in their bins. Here only
  the three poses are read.

Quaternions are (x, y, z, w), of the hand those of the body `right_hand`, which has the
same axes here. What differs is in `SOURCES` and in the constants below.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from dppo_jax.demonstrations.dataset import Episodes
from dppo_jax.envs.robots import kinematics, panda
from dppo_jax.envs.tasks import can, lift, square, tabletop, transport
from dppo_jax.envs.tasks.tabletop import Body, Hand, Scene, TableTask
from dppo_jax.errors import SettingsError

# Metres by which the grip here is farther from the wrist than robosuite's `grip_site`,
# which is 0.1065 m and 0.097 m before it. Fingers are longer here too, and both grips
# are 1 cm or less from their tips, so a grip is taken for a grip.
GRIP_AHEAD = panda.HAND_POSITION[2] + panda.GRIP[2] - 0.2035
_ARM_SIZE = 9  # position, quaternion, fingers
_POSE_SIZE = 7
# The axes of the hammer and of the handle of the lid here, seen from robosuite's:
# the handle of the hammer is along x here and along z there, that of the lid along x
# here and along y there. Quaternions wxyz.
_HAMMER_AXES = np.array([0.5, -0.5, -0.5, -0.5])
_LID_AXES = np.array([np.sqrt(0.5), 0.0, 0.0, np.sqrt(0.5)])
_HALF_TURN_ABOUT_X = np.array([0.0, 1.0, 0.0, 0.0])
# Rows that one call of a compiled function takes.
_BATCH = 256


class Source(NamedTuple):
    """What robosuite has of a task.

    task: of this project.
    bodies: the free bodies that are read, in the order of `object`.
    object_size: entries of `object`.
    environments: robosuite's names.
    free_bodies: in `states`, the number of free bodies, and which of them is ours; None
        if `states` are not read.
    base: of the arm in robosuite, metres; where it stands does not matter to positions
        of the hand.
    higher: metres by which an object at rest lies higher in robosuite.
    """

    task: TableTask
    bodies: tuple[str, ...]
    object_size: int
    environments: tuple[str, ...]
    free_bodies: tuple[int, int] | None = None
    base: tuple[float, float, float] = (-0.56, 0.0, 0.912)
    higher: float = 0.0


SOURCES = {
    "lift": Source(lift.TASK, ("cube",), 10, ("Lift",), (1, 0)),
    # Bins have floors of 2 cm there, and half of the can is 4 cm and not 5.
    "can": Source(
        can.TASK,
        ("can",),
        14,
        ("PickPlaceCan", "PickPlace"),
        (4, 3),
        base=(-0.5, -0.1, 0.912),
        higher=0.01,
    ),
    "square": Source(
        square.TASK, ("nut",), 14, ("NutAssemblySquare", "NutAssembly"), (2, 0)
    ),
    "transport": Source(
        transport.TASK, ("payload", "trash", "lid"), 41, ("TwoArmTransport",)
    ),
}


def source_of(task: str) -> Source:
    """An entry of `SOURCES`.

    Raises:
        SettingsError: a task that robosuite does not have.
    """
    if task not in SOURCES:
        raise SettingsError(
            f"task={task!r} has no observation that robosuite's recordings could give; "
            f"use one of {', '.join(SOURCES)}."
        )
    return SOURCES[task]


def convert(episodes: Episodes, task: str, path: str, *, states: bool) -> Episodes:
    """Replace the state [N, D] of `episodes` by the observation [N, Do] of a task.

    Args:
        states: whether the state is robosuite's `states`; otherwise of each arm
            `eef_pos`, `eef_quat` and `gripper_qpos`, and then `object`.

    Raises:
        SettingsError: a state of another size, or quaternions that are none.
    """
    rows = episodes.observations["state"].astype(np.float64)
    if states:
        scene = scene_of_states(rows, task, path)
    else:
        scene = _scene_of_low_dim(rows, episodes.episode_lengths, task, path)
    observed = in_batches(_observe(task), scene)
    return episodes._replace(observations={"state": observed})


def scene_of_states(rows: np.ndarray, task: str, path: str) -> Scene:
    """The scenes of robosuite's `states`, leaves [N, ...], in coordinates of the task.

    Args:
        rows: [N, D] time, positions of arm, fingers and all free bodies, velocities.

    Raises:
        SettingsError: a task with two arms, or rows of another size.
    """
    source = source_of(task)
    if source.free_bodies is None:
        raise SettingsError(
            f"{path} has only simulator states, which are not read for task={task}; "
            "extract observations with robomimic's dataset_states_to_obs.py."
        )
    number, index = source.free_bodies
    size = 1 + 2 * _ARM_SIZE + number * (_POSE_SIZE + 6)
    if rows.shape[1] != size:
        raise SettingsError(
            f"{path}: states have {rows.shape[1]} entries, but those of "
            f"{source.environments[-1]} with a Panda have {size}; choose another task."
        )
    arm: Any = rows[:, 1 : 1 + _ARM_SIZE]
    first = 1 + _ARM_SIZE + index * _POSE_SIZE
    pose: Any = rows[:, first : first + _POSE_SIZE]
    position, quaternion = in_batches(_forward(source.base), arm[:, : panda.NUM_JOINTS])
    grip = position - GRIP_AHEAD * _axis_z(quaternion)
    hand = Hand(
        _lowered(grip, source),
        quaternion,
        arm[:, panda.NUM_JOINTS :] * np.array([1.0, -1.0]),
    )
    body = Body(_lowered(pose[:, :3], source), pose[:, 3:])
    return Scene((hand,), {source.bodies[0]: body})


def _scene_of_low_dim(
    rows: np.ndarray, episode_lengths: np.ndarray, task: str, path: str
) -> Scene:
    source = source_of(task)
    num_arms = len(source.task.arms)
    size = num_arms * _ARM_SIZE + source.object_size
    if rows.shape[1] != size:
        raise SettingsError(
            f"{path}: the observation of {num_arms} arm(s) and `object` has "
            f"{rows.shape[1]} entries, but task={task} needs {size}; choose another "
            "task, or extract the observations again."
        )
    hands = []
    for part in np.split(rows[:, : num_arms * _ARM_SIZE], num_arms, axis=1):
        hands.append(
            Hand(
                _lowered(part[:, :3], source),
                _wxyz(part[:, 3:7], "eef_quat", path),
                part[:, 7:9] * np.array([1.0, -1.0]),
            )
        )
    bodies = {}
    for index, name in enumerate(source.bodies):
        first = num_arms * _ARM_SIZE + index * _POSE_SIZE
        pose = rows[:, first : first + _POSE_SIZE]
        bodies[name] = Body(
            _lowered(pose[:, :3], source),
            _wxyz(pose[:, 3:], f"the quaternion of the {name} in object", path),
        )
    if task == "transport":
        bodies = _turned(bodies, episode_lengths)
    return Scene(tuple(hands), bodies)


def _turned(bodies: dict[str, Body], episode_lengths: np.ndarray) -> dict[str, Body]:
    """Hammer and lid in the axes that they have here.

    In robosuite the hammer starts on one of two sides, which are alike here. Where it
    starts on the other one, it is rolled by half a turn about its handle.
    """
    payload, lid = bodies["payload"], bodies["lid"]
    hammer = _times(payload.quaternion, _HAMMER_AXES)
    starts = np.cumsum(episode_lengths) - episode_lengths
    is_rolled = np.repeat(_axis_z(hammer[starts])[:, 2] < 0, episode_lengths)
    rolled = _times(hammer, _HALF_TURN_ABOUT_X)
    hammer = np.where(is_rolled[:, None], rolled, hammer)
    turned = _times(lid.quaternion, _LID_AXES)
    # robosuite observes the handle of the lid, and the lid is below it.
    below = lid.position - transport.LID_HANDLE * _axis_z(turned)
    return bodies | {
        "payload": payload._replace(quaternion=hammer),
        "lid": Body(below, turned),
    }


def in_batches(function: Callable[..., Any], tree: Any) -> Any:
    """Apply a function of rows to leaves [N, ...], so that it compiles once for all N.

    Args:
        function: compiled, of leaves [B, ...].
    """
    number = len(jax.tree.leaves(tree)[0])
    parts = []
    for first in range(0, number, _BATCH):
        # The last batch repeats the last row.
        index = np.minimum(np.arange(first, first + _BATCH), number - 1)
        chosen = jax.tree.map(lambda leaf: leaf[index].astype(np.float32), tree)
        parts.append(jax.tree.map(np.asarray, function(chosen)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:number], *parts)


@functools.cache
def _forward(base: tuple[float, float, float]) -> Callable[..., Any]:
    def hand(joints: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = kinematics.forward(joints, kinematics.base_pose(base))
        return state.pose.position, state.quaternion

    return jax.jit(jax.vmap(hand))


@functools.cache
def _observe(task: str) -> Callable[[Scene], jax.Array]:
    return jax.jit(
        jax.vmap(functools.partial(tabletop.observation, SOURCES[task].task))
    )


def _lowered(position: Any, source: Source) -> Any:
    return position - np.array([0.0, 0.0, source.higher])


def _wxyz(quaternion: Any, name: str, path: str) -> Any:
    """A quaternion xyzw in MuJoCo's order, if it is one."""
    length = np.linalg.norm(quaternion, axis=1)
    rows = np.flatnonzero(np.abs(length - 1) > 0.01)
    if len(rows):
        raise SettingsError(
            f"{path}: {name} has length {length[rows[0]]:.3g} in row {rows[0]} and is "
            "no quaternion; the file has another layout, choose entries with obs_keys."
        )
    return np.roll(quaternion, 1, axis=1)


def _axis_z(quaternion: Any) -> Any:
    """The z axis [N, 3] of bodies with these quaternions wxyz [N, 4]."""
    w, x, y, z = quaternion.T
    return np.stack(
        [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x**2 + y**2)], axis=1
    )


def _times(first: Any, second: np.ndarray) -> Any:
    """Products [N, 4] of quaternions wxyz [N, 4] and [4]."""
    w, x, y, z = first.T
    a, b, c, d = second
    return np.stack(
        [
            w * a - x * b - y * c - z * d,
            w * b + x * a + y * d - z * c,
            w * c - x * d + y * a + z * b,
            w * d + x * c - y * b + z * a,
        ],
        axis=1,
    )
