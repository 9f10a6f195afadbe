"""What the manipulation tasks share: arms at a table, and free bodies on it.

The tasks are those of robosuite (Zhu et al. 2020, arXiv 2009.12293) in its coordinates,
with the observations of robomimic's low-dimensional data sets, in their order. The
models are made of primitives, so that every engine runs the same file: an arm of
`robots.panda`, boxes, capsules and a plane, and contacts between listed pairs only.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from dppo_jax.envs.physics import (
    Physics,
    PhysicsState,
    make_physics,
    resolve_engine,
)
from dppo_jax.envs.robots import control, kinematics, panda, rotations
from dppo_jax.errors import SettingsError
from dppo_jax.types import Array, Env, Obs, TimeStep, View

CONTROL_FREQUENCY = 20  # Hz
# A contact of a finger has the time constant 10 ms, and a third of it is the largest
# time step at which it is stable: a nut is lost in 3 % of all episodes at 5 ms.
NUM_SUBSTEPS = 15
# Standard deviation of the joint angles at the start, in radians, as in robosuite.
RESET_NOISE = 0.02


class Hand(NamedTuple):
    """position [3] of the grip, quaternion [4] wxyz, fingers [2], 0 where closed."""

    position: Array
    quaternion: Array
    fingers: Array


class Body(NamedTuple):
    """position [3] and quaternion [4] wxyz of a free body."""

    position: Array
    quaternion: Array


class Scene(NamedTuple):
    """What a task sees of a state.

    hands: one per arm.
    bodies: the free bodies by name.
    """

    hands: tuple[Hand, ...]
    bodies: dict[str, Body]


class Arm(NamedTuple):
    """Where an arm stands: its base in the world, metres, and its yaw, radians."""

    position: tuple[float, float, float]
    yaw: float = 0.0


class TableTask(NamedTuple):
    """What one task adds to the arms.

    mjcf: the scene without arms. Pairs of contacts may name the pads of the fingers,
        `robot0_pad_left`, `robot0_pad_right`, `robot1_pad_left`, ...
    arms: robot0, robot1, ...
    place: key -> the poses of all free bodies at the start of an episode.
    observe: scene -> the observation of the objects [N], which follows those of arms.
    solved: scene -> bool, whether the task is solved now.
    """

    mjcf: str
    arms: tuple[Arm, ...]
    place: Callable[[Array], dict[str, Body]]
    observe: Callable[[Scene], Array]
    solved: Callable[[Scene], Array]


class TableState(NamedTuple):
    """State of a task.

    obs: `{"state": [Do]}`.
    success: 1 once the task was solved in this episode.
    """

    physics: PhysicsState
    obs: Obs
    success: Array


def make_table_env(
    task: TableTask,
    *,
    engine: str = "auto",
    action_scale: tuple[float, float] = control.ACTION_SCALE,
    response: float = control.RESPONSE,
    end_on_success: bool = False,
    initial_noise: float = 0.0,
) -> Env:
    """Make a task; its time limit is set by `time_limit`.

    Action [7 per arm] in [-1, 1], at 20 Hz: see `robots.control`.

    Observation `{"state": [Do]}`: of each arm the position of its grip [3], the
    quaternion of its hand [4] and the positions of its fingers [2], then the objects.
    Quaternions are (x, y, z, w) as in robosuite, unlike MuJoCo's.

    Reward: 1 in every control step in which the task is solved, as in the paper.

    Metrics: `solved` in this control step, and `success`, solved so far.

    Args:
        engine: physics engine; "auto" is C MuJoCo on CPU.
        action_scale: metres and radians by which an action of 1 moves the goal.
        response: share of the way to the goal that the hand covers in a control step.
        end_on_success: terminate an episode as soon as it is solved; its return is
            then 1. False: episodes go on to the time limit, as in the paper.
        initial_noise: added to `RESET_NOISE`, the standard deviation of the angles of
            the joints at the start, in radians.

    Raises:
        SettingsError: a scale or response that is not positive, or an engine that
            cannot run.
    """
    if not (len(action_scale) == 2 and min(action_scale) > 0):
        raise SettingsError(
            f"action_scale={tuple(action_scale)} must be two positive numbers, metres "
            "and radians; robosuite has (0.05, 0.5)."
        )
    if not 0 < response <= 1:
        raise SettingsError(f"response={response} must lie in (0, 1].")
    reach = (response * action_scale[0], response * action_scale[1])
    world = make_world(task, engine)
    model, layout, physics = world
    bases = [kinematics.base_pose(arm.position, arm.yaw) for arm in task.arms]

    def reset(key: Array) -> TableState:
        arm_key, object_key = jax.random.split(key)
        noise = jax.random.normal(arm_key, (len(task.arms), panda.NUM_JOINTS))
        spread = RESET_NOISE + initial_noise
        qpos = jnp.asarray(model.qpos0, jnp.float32)
        for joints, fingers, turn in zip(layout.joints, layout.fingers, noise):
            qpos = qpos.at[joints].set(jnp.array(panda.HOME) + spread * turn)
            qpos = qpos.at[fingers].set(panda.FINGER_OPEN)
        for name, body in task.place(object_key).items():
            pose = jnp.concatenate([body.position, body.quaternion])
            qpos = qpos.at[layout.bodies[name]].set(pose)
        return state_at(world, task, qpos)

    def step(state: TableState, action: Array) -> tuple[TableState, TimeStep]:
        chex.assert_shape(action, (control.NUM_ACTIONS * len(task.arms),))
        ctrl = [
            control.commands(state.physics.qpos[joints], part, base, reach=reach)
            for joints, part, base in zip(
                layout.joints, jnp.split(action, len(task.arms)), bases
            )
        ]
        physics_state = physics.step(state.physics, jnp.concatenate(ctrl))
        scene = look(layout, task, physics_state.qpos)
        solved = task.solved(scene).astype(jnp.float32)
        success = jnp.maximum(state.success, solved)
        obs = {"state": observation(task, scene)}
        state = TableState(physics_state, obs, success)
        return state, TimeStep(
            obs=state.obs,
            reward=solved,
            terminated=solved if end_on_success else jnp.float32(0),
            truncated=jnp.float32(0),
            metrics={"success": success, "solved": solved},
            trace={
                "position": jnp.stack([hand.position for hand in scene.hands]),
                "qpos": physics_state.qpos,
            },
        )

    shape = jax.eval_shape(reset, jax.random.key(0)).obs["state"].shape
    return Env(
        reset=reset,
        step=step,
        obs_shape={"state": shape},
        action_shape=(control.NUM_ACTIONS * len(task.arms),),
        max_steps=None,
        view=View(model, 1 / CONTROL_FREQUENCY, "front"),
        action_range=(-1.0, 1.0),
        physics=physics,
    )


class World(NamedTuple):
    """The compiled scene of a task, where things are in its qpos, and its physics."""

    model: mujoco.MjModel
    layout: "Layout"
    physics: Physics


class Layout(NamedTuple):
    """Indices into qpos.

    joints: [7] of each arm; fingers: [2] of each arm; bodies: [7] of each free body.
    """

    joints: tuple[np.ndarray, ...]
    fingers: tuple[np.ndarray, ...]
    bodies: dict[str, np.ndarray]


def make_world(task: TableTask, engine: str = "auto") -> World:
    """Compile the scene of a task for an engine.

    Raises:
        SettingsError: an engine that cannot run.
    """
    model = build_model(task)
    physics = make_physics(
        model, NUM_SUBSTEPS, resolve_engine(engine, cpu_engine="mujoco")
    )
    return World(model, find_layout(model, task), physics)


def state_at(world: World, task: TableTask, qpos: Array) -> TableState:
    """The state of a task that begins at rest in a configuration [nq]."""
    physics_state = world.physics.reset(qpos, jnp.zeros(world.model.nv))
    scene = look(world.layout, task, physics_state.qpos)
    return TableState(
        physics_state, {"state": observation(task, scene)}, jnp.float32(0)
    )


def build_model(task: TableTask) -> mujoco.MjModel:
    """Compile the scene of a task with its arms."""
    spec = mujoco.MjSpec.from_string(task.mjcf)
    for index, arm in enumerate(task.arms):
        panda.attach_panda(spec, f"robot{index}_", position=arm.position, yaw=arm.yaw)
    return spec.compile()


def find_layout(model: mujoco.MjModel, task: TableTask) -> Layout:
    """Where the joints of the arms and the free bodies are in qpos."""

    def address(name: str) -> int:
        return int(model.joint(name).qposadr[0])

    arms = [f"robot{index}_" for index in range(len(task.arms))]
    free = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
    return Layout(
        joints=tuple(
            np.array([address(f"{arm}joint{1 + i}") for i in range(panda.NUM_JOINTS)])
            for arm in arms
        ),
        fingers=tuple(
            np.array([address(f"{arm}finger_{side}") for side in ("left", "right")])
            for arm in arms
        ),
        bodies={
            model.body(model.jnt_bodyid[joint]).name: (
                model.jnt_qposadr[joint] + np.arange(7)
            )
            for joint in free
        },
    )


def look(layout: Layout, task: TableTask, qpos: Array) -> Scene:
    """The scene of a configuration [nq]; no engine has to compute sensors for it."""
    hands = []
    for arm, joints, fingers in zip(task.arms, layout.joints, layout.fingers):
        base = kinematics.base_pose(arm.position, arm.yaw)
        hand = kinematics.forward(qpos[joints], base)
        hands.append(Hand(hand.pose.position, hand.quaternion, qpos[fingers]))
    bodies = {
        name: Body(qpos[index[:3]], qpos[index[3:]])
        for name, index in layout.bodies.items()
    }
    return Scene(tuple(hands), bodies)


def observation(task: TableTask, scene: Scene) -> Array:
    """What a policy sees of a scene [Do], see `make_table_env`."""
    parts = [
        part
        for hand in scene.hands
        for part in (
            hand.position,
            xyzw(hand.quaternion),
            # The second finger moves the other way in robosuite.
            hand.fingers * jnp.array([1.0, -1.0]),
        )
    ]
    return jnp.concatenate([*parts, task.observe(scene)])


def xyzw(quaternion: Array) -> Array:
    """A quaternion in robosuite's order."""
    return jnp.roll(quaternion, -1)


def pose_seen_from_hand(body: Body, hand: Hand) -> Array:
    """Position [3] and quaternion [4] xyzw of a body in the frame of a hand, [7].

    The scalar part of the quaternion is not negative, as in robosuite.
    """
    inverse = rotations.conjugate(hand.quaternion)
    position = jnp.matmul(
        rotations.to_matrix(inverse),
        body.position - hand.position,
        precision="highest",
    )
    turn = rotations.multiply(inverse, body.quaternion)
    turn = jnp.where(turn[0] < 0, -turn, turn)
    return jnp.concatenate([position, xyzw(turn)])


def place_upright(
    key: Array,
    *,
    low: tuple[float, float],
    high: tuple[float, float],
    height: float,
) -> Body:
    """A body at a uniform place in a rectangle, turned about the vertical at random.

    Args:
        low, high: least and greatest x, y in metres.
        height: z of the body in metres.
    """
    place_key, turn_key = jax.random.split(key)
    place = jax.random.uniform(
        place_key, (2,), minval=jnp.array(low), maxval=jnp.array(high)
    )
    turn = jax.random.uniform(turn_key, minval=-jnp.pi, maxval=jnp.pi)
    position = jnp.concatenate([place, jnp.array([height])])
    return Body(position, rotations.about_z(turn))
