"""MJCF of the tables of the manipulation tasks: scene, walls and contact pairs."""

from dppo_jax.envs.tasks.tabletop import CONTROL_FREQUENCY, NUM_SUBSTEPS

_FINGER_CONTACT = 'solref="0.01 1" solimp="0.95 0.99 0.001 0.5 2"'


def scene_mjcf(
    model: str, *, world: str, pairs: str, camera: str, table_height: float
) -> str:
    """MJCF of a table, which is an endless plane, with a light and a camera `front`.

    Six iterations of the solver are needed: with two the squares of `square` fly apart.
    Elliptic friction cones give NaN at these settings.

    Args:
        model: its name.
        world: elements of the world body. Geoms touch nothing but what `pairs` list.
        pairs: elements `pair`.
        camera: attributes of the camera.
        table_height: metres.
    """
    return f"""
    <mujoco model="{model}">
      <compiler angle="radian" autolimits="true"/>
      <option timestep="{1 / CONTROL_FREQUENCY / NUM_SUBSTEPS}" integrator="Euler"
        cone="pyramidal" iterations="6" ls_iterations="8"/>
      <visual>
        <headlight ambient="0.4 0.4 0.4" diffuse="0.6 0.6 0.6"/>
        <quality shadowsize="0" offsamples="0"/>
        <map znear="0.01"/>
      </visual>
      <default><geom contype="0" conaffinity="0"/></default>
      <worldbody>
        <light pos="1 0 3.8" dir="-0.3 0 -1" castshadow="false"/>
        <camera name="front" {camera}/>
        <geom name="table" type="plane" size="0.6 0.6 0.05" pos="0 0 {table_height}"
          rgba="0.7 0.6 0.5 1"/>
        {world}
      </worldbody>
      <contact>{pairs}</contact>
    </mujoco>"""


def walls_mjcf(
    walls: dict[str, tuple[tuple[float, float], tuple[float, float]]],
    *,
    floor: float,
    height: float,
) -> str:
    """Boxes that stand on a floor, as MJCF.

    Args:
        walls: name -> (x, y) of the middle and half sizes along x and y, metres.
        floor: z of the floor, metres.
        height: metres.
    """
    half = height / 2
    return "".join(
        f"""
        <geom name="{name}" type="box" pos="{x} {y} {floor + half}"
          size="{width} {depth} {half}" rgba="0.5 0.5 0.8 1"/>"""
        for name, ((x, y), (width, depth)) in walls.items()
    )


def pair(first: str, second: str, friction: float, *, torsion: float = 0.0) -> str:
    """A pair of geoms that touch, as MJCF.

    Args:
        friction: coefficient of sliding.
        torsion: coefficient of turning about the normal, metres; with it, the contact
            is that of a finger, which has a stiffness of its own.
    """
    if not torsion:
        return (
            f'<pair geom1="{first}" geom2="{second}" condim="3" '
            f'friction="{friction} {friction} 0.005 0.0001 0.0001"/>'
        )
    return (
        f'<pair geom1="{first}" geom2="{second}" condim="4" {_FINGER_CONTACT} '
        f'friction="{friction} {friction} {torsion} 0.0001 0.0001"/>'
    )


def grasp_pairs(geom: str, *, num_arms: int = 1) -> str:
    """Pairs of the pads of all fingers with what they grasp, and with the table."""
    pads = [
        f"robot{index}_pad_{side}"
        for index in range(num_arms)
        for side in ("left", "right")
    ]
    return "".join(
        pair(pad, geom, 1.5, torsion=0.03) + pair("table", pad, 1.0) for pad in pads
    )
