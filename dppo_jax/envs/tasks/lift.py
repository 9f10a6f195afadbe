"""robosuite's Lift: grasp a cube and lift it from the table."""

import jax.numpy as jnp

from dppo_jax.envs.tasks import tabletop, tabletop_mjcf
from dppo_jax.envs.tasks.tabletop import Arm, Body, Scene, TableTask
from dppo_jax.types import Array

MAX_STEPS = 300
TABLE = 0.8
# Half of an edge in metres; robosuite draws it from 0.020 to 0.022.
CUBE = 0.021
# The cube starts within this distance of the middle of the table, in x and in y.
REACH = 0.03
# Solved while the centre of the cube is this far above the table.
HEIGHT = 0.04
ARMS = (Arm((-0.56, 0.0, 0.912)),)


def mjcf() -> str:
    """MJCF of the table and the cube."""
    world = f"""
    <body name="cube" pos="0 0 {TABLE + CUBE}">
      <freejoint/>
      <geom name="cube" type="box" size="{CUBE} {CUBE} {CUBE}" mass="0.05"
        rgba="0.8 0.1 0.1 1"/>
    </body>"""
    pairs = tabletop_mjcf.pair("table", "cube", 1.0) + tabletop_mjcf.grasp_pairs("cube")
    return tabletop_mjcf.scene_mjcf(
        "lift",
        world=world,
        pairs=pairs,
        camera='pos="1.1 0 1.45" xyaxes="0 1 0 -0.43 0 0.9" fovy="45"',
        table_height=TABLE,
    )


def place(key: Array) -> dict[str, Body]:
    """Draw where the cube starts."""
    cube = tabletop.place_upright(
        key, low=(-REACH, -REACH), high=(REACH, REACH), height=TABLE + CUBE
    )
    return {"cube": cube}


def observe(scene: Scene) -> Array:
    """Position [3], quaternion [4] of the cube, and from it to the grip [3]."""
    cube, (hand,) = scene.bodies["cube"], scene.hands
    return jnp.concatenate(
        [
            cube.position,
            tabletop.xyzw(cube.quaternion),
            hand.position - cube.position,
        ]
    )


def solved(scene: Scene) -> Array:
    """Whether the cube is in the air."""
    return scene.bodies["cube"].position[2] > TABLE + HEIGHT


TASK = TableTask(mjcf(), ARMS, place, observe, solved)
