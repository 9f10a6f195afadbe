"""D3IL obstacle avoidance (Jia et al., ICLR 2024, arXiv 2402.14606).

A rod is led through three rows of cylinders; every combination of gaps is a mode,
24 in all. The plane, the cylinders, the rows, the rewards and the control rate are
those of D3IL. There the rod is held by a Panda arm under Cartesian impedance
control; here it is a point mass on two slides, drawn to the desired position by a
servo whose gains were fitted to the 96 recorded human episodes
(`dppo_jax.envs.tasks.avoid_servo`).
"""

from typing import NamedTuple

import chex
import jax.numpy as jnp
import mujoco
import numpy as np

from dppo_jax.envs.physics import PhysicsState, make_physics, resolve_engine
from dppo_jax.errors import SettingsError
from dppo_jax.types import Array, Env, Obs, TimeStep

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
# Gap codes of a row count on from the codes of the row before.
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
# Just above the largest change of the desired position that a human commanded.
MAX_ACTION = 0.012501
MAX_STEPS = 100
# Commands stay on the table, [x, y] in metres; no recorded one is near its edge. The
# arm of D3IL has a limited reach as well. On an endless plane a time limit that
# bootstraps V(last observation) rewards running away: a critic that extrapolates
# finds every state beyond the data better than the one before.
WORKSPACE_MIN = (0.1, -0.4)
WORKSPACE_MAX = (0.9, 0.6)

# Servo per axis: acceleration = STIFFNESS (target - x) - DAMPING v, where the target
# leads the desired position by LEAD times its latest change.
STIFFNESS = (157.13, 45.18)
DAMPING = (11.78, 3.561)
LEAD = 1.0


class AvoidState(NamedTuple):
    """State of the task.

    obs: `{"state": [4]}`, desired x, y and actual x, y in metres.
    desired: [2] commanded position.
    gaps: [3] code of the gap taken in each row, -1 before.
    collision: 1 once the rod touched a cylinder.
    finished: 1 once the rod crossed the finish line.
    solved: 1 once a step earned both rewards.
    """

    physics: PhysicsState
    obs: Obs
    desired: Array
    gaps: Array
    collision: Array
    finished: Array
    solved: Array


def mjcf() -> str:
    """The scene: a rod on two slides and six fixed cylinders.

    The rod collides as a sphere and the cylinders as capsules, which every engine
    supports; in the plane of motion their distances are those of the cylinders.
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
        <camera name="top" pos="0.5 0.05 1.2" fovy="45"/>
        <geom name="table" type="box" size="0.4 0.4 0.01" pos="0.5 0.05 -0.01"
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
    """Gap codes [3] after the rod was seen at `position` [2].

    The first sample inside the band of a row fixes the code of that row: rows 1 and
    2 are bands of half-width 3 cm, row 3 starts at its line (D3IL).
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
    # On a cylinder's very axis the gap is undecided; the next sample decides.
    decided = jnp.stack([jnp.all(x != centre) for centre in centres])
    return jnp.where((gaps < 0) & near & decided, codes, gaps)


def touches(position: Array) -> Array:
    """1 where the rod at `position` [2] reaches into a cylinder."""
    distance = jnp.linalg.norm(position - CYLINDERS[:, :2], axis=-1)
    return jnp.any(distance < CYLINDERS[:, 2] + ROD_RADIUS).astype(jnp.float32)


def outside(position: Array) -> Array:
    """1 where the rod at `position` [2] is outside of `X_RANGE`."""
    x = position[0]
    return ((x < X_RANGE[0]) | (x > X_RANGE[1])).astype(jnp.float32)


def reward(position: Array, gaps: Array, collision: Array, rewarded_gap: int) -> Array:
    """Reward of one control step, as in the DPPO variants of the task.

    -0.1 for ever after a collision and outside of `X_RANGE`; otherwise 1 once row 3
    was passed through the rewarded gap, and 1 more beyond the reward line.
    """
    penalized = (collision > 0) | (outside(position) > 0)
    earned = (gaps[2] == rewarded_gap).astype(jnp.float32) + (position[1] > REWARD_Y)
    return jnp.where(penalized, -0.1, earned)


def make_avoid(*, engine: str = "auto", rewarded_gap: int = 5) -> Env:
    """The avoidance task; `time_limit(env, MAX_STEPS)` makes episodes of 100 steps.

    Action [2]: change of the desired position in metres, clipped to `MAX_ACTION`;
    the desired position stays in the workspace.
    Observation `{"state": [4]}`: desired x, y, actual x, y in metres.
    Metrics: `success` (rewarded gap passed and finish line crossed without a
    collision so far), `solved` (both rewards earned in one step, for which x must be
    in `X_RANGE` too; close to what DPPO's reference code counts as success),
    `collision`, `outside` (x is where nothing is rewarded) and `gap_row1..3` (codes, -1
    before). Trace: `position` [2] in metres.

    Args:
        engine: physics engine; "auto" is C MuJoCo on CPU: as soon as one rod of a
            batch touches a cylinder, MJX runs its contact solver for all of them.
        rewarded_gap: code of the rewarded gap in row 3, 5 to 8.

    Raises:
        SettingsError: for a gap that row 3 does not have or an unusable engine.
    """
    if rewarded_gap not in ROW_CODES[2]:
        raise SettingsError(
            f"rewarded_gap={rewarded_gap} is not in row 3, which has the gaps "
            f"{list(ROW_CODES[2])}."
        )
    physics = make_physics(
        mujoco.MjModel.from_xml_string(mjcf()),
        NUM_SUBSTEPS,
        resolve_engine(engine, cpu_engine="mujoco"),
    )

    def observe(desired: Array, position: Array) -> Obs:
        return {"state": jnp.concatenate([desired, position])}

    def reset(key: Array) -> AvoidState:
        del key  # The task always starts at the same point.
        start = jnp.array(START, jnp.float32)
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
        # Read at control samples, as D3IL does.
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
            trace={"position": position},
        )

    return Env(
        reset=reset,
        step=step,
        obs_shape={"state": (4,)},
        action_shape=(2,),
        max_steps=None,
    )
