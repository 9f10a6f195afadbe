"""D3IL obstacle avoidance (Jia et al., ICLR 2024, arXiv 2402.14606).

A rod moves through three rows of cylinders; every combination of gaps is a mode, 24 in
all. The plane, the cylinders, the rows, the rewards and the control rate are those of
D3IL. In D3IL a Panda arm with Cartesian impedance control holds the rod. Here it is a
point mass on two slides. A servo pulls it to the desired position; its gains were
fitted to the 96 recorded human episodes (`dppo_jax.envs.tasks.avoid_servo`).
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from dppo_jax.envs.physics import PhysicsState, make_physics, resolve_engine
from dppo_jax.errors import SettingsError
from dppo_jax.types import Array, Env, Obs, TimeStep, View

# x, y, radius of the cylinders in metres, row by row.
CYLINDERS = np.array(
    [
        [0.5, -0.1, 0.03],
        [0.425, 0.08, 0.025],
        [0.575, 0.08, 0.025],
        [0.35, 0.26, 0.025],
        [0.5, 0.26, 0.025],
        [0.65, 0.26, 0.025],
    ],
    np.float32,
)
ROW_Y = (-0.1, 0.08, 0.26)
# Codes of the gaps of each row.
ROW_CODES = ((0, 1), (2, 3, 4), (5, 6, 7, 8))
ROW_HALF_WIDTH = 0.03
ROD_RADIUS = 0.01
PLANE_HEIGHT = 0.12
START = (0.52493, -0.27974)
FINISH_Y = 0.35
REWARD_Y = 0.4
X_RANGE = (0.2, 0.8)

CONTROL_PERIOD = 0.035
NUM_SUBSTEPS = 7
# Just above the largest change of the desired position in the human episodes.
MAX_ACTION = 0.012501
MAX_STEPS = 100
# Limits of the desired position [x, y] in metres: the table. No recorded one is near
# its edge, and the reach of D3IL's arm is limited too. Without limits a policy may run
# away: the time limit bootstraps V(last observation), and an extrapolating critic may
# rate each state as better the farther it is from the data.
WORKSPACE_MIN = (0.1, -0.4)
WORKSPACE_MAX = (0.9, 0.6)

# Servo per axis: acceleration = STIFFNESS (target - x) - DAMPING v, where
# target = desired position + LEAD * (its last change).
STIFFNESS = (157.13, 45.18)
DAMPING = (11.78, 3.561)
LEAD = 1.0


class AvoidState(NamedTuple):
    """State of the task.

    obs: `{"state": [4]}`, desired x, y and actual x, y in metres.
    desired: [2] desired position.
    gaps: [3] code of the gap taken in each row; -1 before a row is reached.
    collision: 1 after the rod has touched a cylinder.
    finished: 1 after the rod has crossed the finish line.
    solved: 1 after a step has earned both rewards.
    """

    physics: PhysicsState
    obs: Obs
    desired: Array
    gaps: Array
    collision: Array
    finished: Array
    solved: Array


def mjcf() -> str:
    """MJCF of the scene: a rod on two slides and six fixed cylinders.

    In collisions the rod is a sphere and the cylinders are capsules, because every
    engine supports these. In the plane of motion they have the same distances.
    """
    obstacles = "\n".join(
        f"""
        <geom name="obstacle{i}" type="capsule" size="{radius} 0.06"
          pos="{x} {y} {PLANE_HEIGHT}" group="3"/>
        <geom name="cylinder{i}" type="cylinder" size="{radius} 0.06"
          pos="{x} {y} 0.06" rgba="0.8 0.2 0.2 1"/>"""
        for i, (x, y, radius) in enumerate(CYLINDERS.tolist())
    )
    pairs = "\n".join(
        f'<pair geom1="rod" geom2="obstacle{i}" condim="1"/>'
        for i in range(len(CYLINDERS))
    )
    return f"""
    <mujoco model="avoid">
      <option timestep="{CONTROL_PERIOD / NUM_SUBSTEPS}" gravity="0 0 0"
        iterations="2" ls_iterations="4"/>
      <default><geom contype="0" conaffinity="0"/></default>
      <worldbody>
        <light pos="0.5 0 2" dir="0 0 -1"/>
        <camera name="top" pos="0.5 0.1 1.35" fovy="45"/>
        <geom name="table" type="box" size="0.4 0.5 0.01" pos="0.5 0.1 -0.01"
          rgba="0.9 0.9 0.9 1"/>
        <geom name="finish" type="box" size="0.3 0.004 0.001"
          pos="0.5 {FINISH_Y} 0.001" rgba="0.2 0.7 0.2 1"/>
        {obstacles}
        <body name="rod" pos="0 0 {PLANE_HEIGHT}">
          <joint name="x" type="slide" axis="1 0 0" damping="{DAMPING[0]}"/>
          <joint name="y" type="slide" axis="0 1 0" damping="{DAMPING[1]}"/>
          <geom name="rod" type="sphere" size="{ROD_RADIUS}" mass="1" group="3"/>
          <geom name="stick" type="cylinder" size="{ROD_RADIUS} 0.06" mass="0"
            pos="0 0 0.03" rgba="0.2 0.3 0.8 1"/>
        </body>
      </worldbody>
      <contact>{pairs}</contact>
      <actuator>
        <position name="x" joint="x" kp="{STIFFNESS[0]}"/>
        <position name="y" joint="y" kp="{STIFFNESS[1]}"/>
      </actuator>
    </mujoco>"""


def gap_codes(gaps: Array, position: Array) -> Array:
    """Update the gap codes [3] by a control step that ends at `position` [2].

    The first position inside the band of a row sets the code of that row. Rows 1 and 2
    are bands of half-width 3 cm; row 3 is the region beyond its line (D3IL).
    """
    x, y = position
    near = jnp.stack(
        [
            jnp.abs(y - ROW_Y[0]) <= ROW_HALF_WIDTH,
            jnp.abs(y - ROW_Y[1]) <= ROW_HALF_WIDTH,
            y >= ROW_Y[2],
        ]
    )
    centres = [CYLINDERS[0:1, 0], CYLINDERS[1:3, 0], CYLINDERS[3:6, 0]]
    codes = jnp.stack(
        [
            codes[0] + jnp.sum(x > centre).astype(jnp.float32)
            for codes, centre in zip(ROW_CODES, centres)
        ]
    )
    # If x is exactly that of a cylinder, the next position decides the gap.
    decided = jnp.stack([jnp.all(x != centre) for centre in centres])
    return jnp.where((gaps < 0) & near & decided, codes, gaps)


def touches(position: Array) -> Array:
    """1 if the rod at `position` [2] overlaps a cylinder, else 0."""
    distance = jnp.linalg.norm(position - CYLINDERS[:, :2], axis=-1)
    return jnp.any(distance < CYLINDERS[:, 2] + ROD_RADIUS).astype(jnp.float32)


def outside(position: Array) -> Array:
    """1 if the rod at `position` [2] is outside `X_RANGE`, else 0."""
    x = position[0]
    return ((x < X_RANGE[0]) | (x > X_RANGE[1])).astype(jnp.float32)


def reward(position: Array, gaps: Array, collision: Array, rewarded_gap: int) -> Array:
    """Reward of one control step, as in the DPPO variants of the task.

    -0.1 outside `X_RANGE` and in all steps from a collision on. Otherwise the sum of 1
    if row 3 was passed through the rewarded gap, and 1 beyond the reward line.
    """
    penalized = (collision > 0) | (outside(position) > 0)
    earned = (gaps[2] == rewarded_gap).astype(jnp.float32) + (position[1] > REWARD_Y)
    return jnp.where(penalized, -0.1, earned)


def make_avoid(
    *, engine: str = "auto", rewarded_gap: int = 5, initial_noise: float = 0.0
) -> Env:
    """Make the avoidance task; its time limit is `time_limit(env, MAX_STEPS)`.

    Action [2]: change of the desired position in metres, clipped to +- `MAX_ACTION`;
    the desired position is clipped to the workspace.
    Observation `{"state": [4]}`: desired x, y, actual x, y in metres.
    Metrics: `success` (rewarded gap passed and finish line crossed without a collision
    so far), `solved` (both rewards earned in one step, for which x must also be in
    `X_RANGE`; close to what DPPO's reference code counts as success), `collision`,
    `outside` (x is outside `X_RANGE`, where the reward is -0.1) and `gap_row1..3`
    (codes; -1 before a row is reached). Trace: `position` [2] in metres.

    Args:
        engine: physics engine; "auto" is C MuJoCo on CPU, because MJX runs its contact
            solver for the whole batch as soon as one rod touches a cylinder.
        rewarded_gap: code of the rewarded gap in row 3, 5 to 8.
        initial_noise: half-width in metres of uniform noise on the start, in x and y.

    Raises:
        SettingsError: a gap that row 3 does not have, or an engine that cannot run.
    """
    if rewarded_gap not in ROW_CODES[2]:
        raise SettingsError(
            f"rewarded_gap={rewarded_gap} is not in row 3, which has the gaps "
            f"{list(ROW_CODES[2])}."
        )
    model = mujoco.MjModel.from_xml_string(mjcf())
    physics = make_physics(
        model, NUM_SUBSTEPS, resolve_engine(engine, cpu_engine="mujoco")
    )

    def observe(desired: Array, position: Array) -> Obs:
        return {"state": jnp.concatenate([desired, position])}

    def reset(key: Array) -> AvoidState:
        start = jnp.array(START, jnp.float32)
        if initial_noise:  # The task itself always starts at the same point.
            start += jax.random.uniform(
                key, (2,), minval=-initial_noise, maxval=initial_noise
            )
        return AvoidState(
            physics=physics.reset(start, jnp.zeros(2)),
            obs=observe(start, start),
            desired=start,
            gaps=-jnp.ones(3),
            collision=jnp.float32(0),
            finished=jnp.float32(0),
            solved=jnp.float32(0),
        )

    def step(state: AvoidState, action: Array) -> tuple[AvoidState, TimeStep]:
        chex.assert_shape(action, (2,))
        change = jnp.clip(action, -MAX_ACTION, MAX_ACTION)
        desired = jnp.clip(
            state.desired + change, jnp.array(WORKSPACE_MIN), jnp.array(WORKSPACE_MAX)
        )
        target = desired + LEAD * (desired - state.desired)
        physics_state = physics.step(state.physics, target)
        position = physics_state.qpos
        gaps = gap_codes(state.gaps, position)
        # Collisions are checked once per control step, as in D3IL.
        collision = jnp.maximum(state.collision, touches(position))
        crossed = (position[1] > FINISH_Y).astype(jnp.float32)
        finished = jnp.maximum(state.finished, crossed)
        through = (gaps[2] == rewarded_gap).astype(jnp.float32)
        earned = reward(position, gaps, collision, rewarded_gap)
        state = AvoidState(
            physics=physics_state,
            obs=observe(desired, position),
            desired=desired,
            gaps=gaps,
            collision=collision,
            finished=finished,
            solved=jnp.maximum(state.solved, (earned >= 2).astype(jnp.float32)),
        )
        return state, TimeStep(
            obs=state.obs,
            reward=earned,
            terminated=jnp.float32(0),
            truncated=jnp.float32(0),
            metrics={
                "success": through * finished * (1 - collision),
                "solved": state.solved,
                "collision": collision,
                "outside": outside(position),
                "gap_row1": gaps[0],
                "gap_row2": gaps[1],
                "gap_row3": gaps[2],
            },
            trace={"position": position, "qpos": position},
        )

    return Env(
        reset=reset,
        step=step,
        obs_shape={"state": (4,)},
        action_shape=(2,),
        max_steps=None,
        view=View(model, CONTROL_PERIOD, "top"),
        action_range=(-MAX_ACTION, MAX_ACTION),
        physics=physics,
    )
