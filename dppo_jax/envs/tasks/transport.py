"""robosuite's TwoArmTransport: two arms move a hammer and a piece of trash.

The first arm takes the lid off the start bin and the hammer out of it, and hands the
hammer to the second arm. This one has thrown the trash out of the target bin into the
trash bin, and puts the hammer into the target bin.

The bins are smaller than robosuite's (22 cm wide and 10 cm high; there 30 and 15), and
the fingers pass through their walls.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.envs.robots import rotations
from dppo_jax.envs.tasks import tabletop, tabletop_mjcf
from dppo_jax.envs.tasks.tabletop import Arm, Body, Scene, TableTask
from dppo_jax.types import Array

MAX_STEPS = 800
TABLE = 0.8
# Centres of the bins in x and y, half of their width, and their height.
START, TARGET, TRASH = (0.2, -0.45), (-0.2, 0.45), (0.2, 0.45)
HALF_BIN, BIN_HEIGHT, HALF_WALL = 0.11, 0.1, 0.005
# The handle of the lid, above its middle; halves of the hammer's handle and of the
# trash.
LID_HANDLE = 0.03
HALF_LENGTH, HALF_GRIP = 0.08, 0.013
HALF_TRASH = 0.02
# An object is in a bin if its centre is this near to the table.
LOW = 0.05
ARMS = (
    Arm((0.0, -0.81, 0.912), np.pi / 2),
    Arm((0.0, 0.81, 0.912), -np.pi / 2),
)
_TILT = np.pi / 6  # greatest turn of the hammer at the start
_TRASH_TURN = 0.3 * np.pi
_SPREAD = 0.005  # greatest distance of an object from where it starts, in x and in y


def mjcf() -> str:
    """MJCF of bins, lid, hammer and trash.

    Walls meet the hammer as a capsule and the trash as a sphere, because pairs of boxes
    are the slowest contacts. The lid rests on a block that fills the start bin.
    """
    half = BIN_HEIGHT / 2
    boxes = tabletop_mjcf.walls_mjcf(walls(), floor=TABLE, height=BIN_HEIGHT)
    world = f"""{boxes}
    <geom name="block" type="box" pos="{START[0]} {START[1]} {TABLE + half}"
      size="{HALF_BIN} {HALF_BIN} {half}" rgba="0 0 0 0" group="3"/>
    <body name="lid" pos="{START[0]} {START[1]} {TABLE + BIN_HEIGHT + 0.006}">
      <freejoint/>
      <geom name="lid" type="box" size="{HALF_BIN} {HALF_BIN} 0.005" mass="0.1"
        rgba="0.7 0.5 0.3 1"/>
      <geom name="lid_handle" type="box" pos="0 0 {LID_HANDLE}" mass="0.03"
        size="0.04 0.01 0.012" rgba="0.8 0.2 0.2 1"/>
    </body>
    <body name="payload" pos="{START[0]} {START[1]} {TABLE + 0.016}">
      <freejoint/>
      <geom name="handle" type="box" size="{HALF_LENGTH} {HALF_GRIP} {HALF_GRIP}"
        mass="0.04" rgba="0.6 0.4 0.2 1"/>
      <geom name="handle_side" type="capsule" size="{HALF_GRIP}" mass="0"
        fromto="-0.07 0 0 0.07 0 0" rgba="0 0 0 0" group="3"/>
      <geom name="head" type="box" pos="{HALF_LENGTH} 0 0" size="0.015 0.03 0.015"
        mass="0.03" rgba="0.4 0.4 0.4 1"/>
    </body>
    <body name="trash" pos="{TARGET[0]} {TARGET[1]} {TABLE + 0.021}">
      <freejoint/>
      <geom name="trash" type="box" size="{HALF_TRASH} {HALF_TRASH} {HALF_TRASH}"
        mass="0.04" rgba="0.2 0.2 0.8 1"/>
      <geom name="trash_side" type="sphere" size="0.022" mass="0" rgba="0 0 0 0"
        group="3"/>
    </body>"""
    return tabletop_mjcf.scene_mjcf(
        "transport",
        world=world,
        pairs=_pairs(),
        camera='pos="1.6 0 1.9" xyaxes="0 1 0 -0.5 0 0.866" fovy="50"',
        table_height=TABLE,
    )


def walls() -> dict[str, tuple[tuple[float, float], tuple[float, float]]]:
    """Centre and half widths of every wall, in x and y, by name."""
    across, along = (HALF_BIN, HALF_WALL), (HALF_WALL, HALF_BIN)
    found = {}
    for name, (x, y) in (("start", START), ("target", TARGET), ("trash", TRASH)):
        found[f"{name}_front"] = ((x + HALF_BIN, y), along)
        found[f"{name}_back"] = ((x - HALF_BIN, y), along)
        found[f"{name}_left"] = ((x, y + HALF_BIN), across)
        found[f"{name}_right"] = ((x, y - HALF_BIN), across)
    return found


def _pairs() -> str:
    grasps = [(0, "lid_handle"), (0, "handle"), (1, "handle"), (1, "trash")]
    pads = [
        (f"robot{arm}_pad_{side}", geom)
        for arm, geom in grasps
        for side in ("left", "right")
    ]
    rests = ["lid", "handle", "head", "trash"]
    sides = [
        *(("handle_side", x) for x in walls() if x.startswith(("start", "target"))),
        *(("trash_side", x) for x in walls() if x.startswith(("target", "trash"))),
    ]
    return (
        "".join(tabletop_mjcf.pair(*names, 1.5, torsion=0.03) for names in pads)
        + "".join(
            tabletop_mjcf.pair("table", pad, 1.0)
            for pad in sorted({x for x, _ in pads})
        )
        + "".join(tabletop_mjcf.pair("table", geom, 1.0) for geom in rests)
        + tabletop_mjcf.pair("block", "lid", 1.0)
        + "".join(tabletop_mjcf.pair(*names, 1.0) for names in sides)
    )


def place(key: Array) -> dict[str, Body]:
    """Draw where lid, hammer and trash start."""
    place_key, turn_key = jax.random.split(key)
    shift = _SPREAD * jax.random.uniform(place_key, (3, 2), minval=-1.0, maxval=1.0)
    turn = jax.random.uniform(turn_key, (2,), minval=-1.0, maxval=1.0)

    def body(index: int, where: tuple[float, float], height: float, yaw: Array) -> Body:
        position = jnp.array([*where, TABLE + height]).at[:2].add(shift[index])
        return Body(position, rotations.about_z(yaw))

    # The middle of the hammer is 2 cm off, so that its head fits into the bin too.
    hammer = (START[0] - 0.02, START[1] - 0.02)
    return {
        "lid": body(0, START, BIN_HEIGHT + 0.006, jnp.float32(0)),
        "payload": body(1, hammer, 0.016, jnp.pi / 2 + _TILT * turn[0]),
        "trash": body(2, TARGET, HALF_TRASH + 0.001, _TRASH_TURN * turn[1]),
    }


def lid_handle(lid: Body) -> Body:
    """The handle of the lid."""
    up = rotations.to_matrix(lid.quaternion)[:, 2]
    return lid._replace(position=lid.position + LID_HANDLE * up)


def is_in(body: Body, centre: tuple[float, float]) -> Array:
    """Whether a body lies in the bin with this centre."""
    beside = jnp.abs(body.position[:2] - jnp.array(centre)).max()
    return (beside < HALF_BIN) & (body.position[2] < TABLE + LOW)


def observe(scene: Scene) -> Array:
    """What robosuite observes of the objects, [41].

    Poses of payload, trash and handle of the lid [7 each], places of target and trash
    bin [3 each], whether payload and trash are where they belong [2]; then, from the
    first grip to payload and handle of the lid and from the second to payload and
    trash, [3 each].
    """
    payload, trash = scene.bodies["payload"], scene.bodies["trash"]
    handle = lid_handle(scene.bodies["lid"])
    first, second = (hand.position for hand in scene.hands)
    poses = [
        part
        for body in (payload, trash, handle)
        for part in (body.position, tabletop.xyzw(body.quaternion))
    ]
    done = jnp.stack([is_in(payload, TARGET), is_in(trash, TRASH)])
    return jnp.concatenate(
        [
            *poses,
            jnp.array([*TARGET, TABLE, *TRASH, TABLE]),
            done.astype(jnp.float32),
            payload.position - first,
            handle.position - first,
            payload.position - second,
            trash.position - second,
        ]
    )


def solved(scene: Scene) -> Array:
    """Whether the hammer is in the target bin and the trash in the trash bin."""
    return is_in(scene.bodies["payload"], TARGET) & is_in(scene.bodies["trash"], TRASH)


TASK = TableTask(mjcf(), ARMS, place, observe, solved)
