"""robosuite's NutAssemblySquare: put a square nut over a square peg.

The arm stands 12 cm nearer to the peg than robosuite's, because a hand that points down
reaches the peg there only with a stretched arm, near a singular position.
"""

import jax.numpy as jnp

from dppo_jax.envs.tasks import tabletop, tabletop_mjcf
from dppo_jax.envs.tasks.can import RELEASED
from dppo_jax.envs.tasks.tabletop import Arm, Body, Scene, TableTask
from dppo_jax.types import Array

MAX_STEPS = 400
TABLE = 0.82
PEG = (0.23, 0.1)
PEG_HEIGHT, HALF_PEG = 0.13, 0.0165
# Half of the hole of the nut, and half of the width and of the height of its walls.
HALF_HOLE, HALF_WALL, HALF_HEIGHT = 0.019, 0.009, 0.01
# Half of the length and of the width of the handle, and its centre, along the x axis of
# the nut.
HALF_HANDLE, HALF_HANDLE_WIDTH = 0.022, 0.0085
HANDLE = HALF_HOLE + 2 * HALF_WALL + HALF_HANDLE
# Where the nut starts: least and greatest x and y, as in robosuite.
START_LOW, START_HIGH = (-0.115, 0.11), (-0.11, 0.225)
# Solved while the nut is this near to the peg in x and in y and this low.
NEAR, LOW = 0.03, 0.05
ARMS = (Arm((-0.44, 0.0, 0.912)),)


def mjcf() -> str:
    """MJCF of the nut and the peg.

    Five boxes are the nut for the peg. A sixth one, which has its outline without the
    hole, is the nut for the table, so that these two have one pair of contacts.
    """
    outer = HALF_HOLE + 2 * HALF_WALL
    middle = HALF_HOLE + HALF_WALL
    sides = (
        ((middle, 0), (HALF_WALL, outer)),
        ((-middle, 0), (HALF_WALL, outer)),
        ((0, middle), (HALF_HOLE, HALF_WALL)),
        ((0, -middle), (HALF_HOLE, HALF_WALL)),
    )
    boxes = "".join(
        f"""
        <geom name="side{index}" type="box" pos="{x} {y} 0" mass="0.012"
          size="{width} {depth} {HALF_HEIGHT}" rgba="0.2 0.5 0.2 1"/>"""
        for index, ((x, y), (width, depth)) in enumerate(sides)
    )
    world = f"""
    <geom name="peg" type="box" pos="{PEG[0]} {PEG[1]} {TABLE + PEG_HEIGHT / 2}"
      size="{HALF_PEG} {HALF_PEG} {PEG_HEIGHT / 2}" rgba="0.3 0.3 0.8 1"/>
    <body name="nut" pos="{START_LOW[0]} {START_LOW[1]} {TABLE + HALF_HEIGHT}">
      <freejoint/>
      {boxes}
      <geom name="handle" type="box" pos="{HANDLE} 0 0" mass="0.015"
        size="{HALF_HANDLE} {HALF_HANDLE_WIDTH} {HALF_HEIGHT}" rgba="0.2 0.6 0.2 1"/>
      <geom name="foot" type="box" pos="{HALF_HANDLE} 0 0" mass="0"
        size="{outer + HALF_HANDLE} {outer} {HALF_HEIGHT}" rgba="0 0 0 0" group="3"/>
    </body>"""
    parts = [*(f"side{index}" for index in range(len(sides))), "handle"]
    pairs = tabletop_mjcf.pair("table", "foot", 1.0) + tabletop_mjcf.grasp_pairs(
        "handle"
    )
    pairs += "".join(tabletop_mjcf.pair("peg", part, 0.4) for part in parts)
    return tabletop_mjcf.scene_mjcf(
        "square",
        world=world,
        pairs=pairs,
        camera='pos="1.1 0.1 1.45" xyaxes="0 1 0 -0.43 0 0.9" fovy="45"',
        table_height=TABLE,
    )


def place(key: Array) -> dict[str, Body]:
    """Draw where the nut starts."""
    nut = tabletop.place_upright(
        key, low=START_LOW, high=START_HIGH, height=TABLE + HALF_HEIGHT
    )
    return {"nut": nut}


def observe(scene: Scene) -> Array:
    """Position, quaternion of the nut in the world [7], and in the hand's frame [7]."""
    nut, (hand,) = scene.bodies["nut"], scene.hands
    world = jnp.concatenate([nut.position, tabletop.xyzw(nut.quaternion)])
    return jnp.concatenate([world, tabletop.pose_seen_from_hand(nut, hand)])


def solved(scene: Scene) -> Array:
    """Whether the nut is around the peg, near the table, and the grip is not in it."""
    nut, (hand,) = scene.bodies["nut"], scene.hands
    near = jnp.all(jnp.abs(nut.position[:2] - jnp.array(PEG)) < NEAR)
    is_low = nut.position[2] < TABLE + LOW
    is_free = jnp.linalg.norm(hand.position - nut.position) > RELEASED
    return near & is_low & is_free


TASK = TableTask(mjcf(), ARMS, place, observe, solved)
