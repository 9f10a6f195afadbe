"""A Franka Emika Panda with a parallel gripper, as a MuJoCo model of primitives.

Kinematics and limits are those of Franka's data sheet (modified Denavit-Hartenberg
parameters), masses and inertias those identified by Gaz et al. (RA-L 2019). There are
no meshes: capsules are for pictures alone, and of the hand only the two pads touch
things.

Position servos hold the joints. Their natural frequency is 60 rad/s at the home
position, far above the control rate, and they are critically damped. The damping is
that of the joints and not of the actuators, because MuJoCo's Euler integrator treats it
implicitly; with explicit damping the arm oscillates by centimetres.
"""

from typing import NamedTuple

import mujoco
import numpy as np

NUM_JOINTS = 7
# Commands of one arm: seven joint angles and the positions of two fingers.
NUM_COMMANDS = 9


class Link(NamedTuple):
    """A link and the joint that moves it, about its z axis.

    position, quaternion: of the link in its parent, at joint angle 0; metres, wxyz.
    mass: kg.
    centre: of mass, metres.
    inertia: xx, yy, zz, xy, xz, yz about the centre of mass, kg m^2.
    limits: of the joint, rad.
    torque: limit of the joint, Nm.
    joint_inertia: diagonal entry of the mass matrix at `HOME`, with `ARMATURE`, kg m^2.
    capsule: two ends and a radius, for pictures.
    """

    position: tuple[float, ...]
    quaternion: tuple[float, ...]
    mass: float
    centre: tuple[float, ...]
    inertia: tuple[float, ...]
    limits: tuple[float, float]
    torque: float
    joint_inertia: float
    capsule: tuple[float, ...]


_H = float(np.sqrt(0.5))
LINKS = (
    Link(
        position=(0, 0, 0.333),
        quaternion=(1, 0, 0, 0),
        mass=4.970684,
        centre=(0.003875, 0.002081, -0.04762),
        inertia=(0.70337, 0.70661, 0.009117, -0.000139, 0.006772, 0.019169),
        limits=(-2.8973, 2.8973),
        torque=87.0,
        joint_inertia=1.122,
        capsule=(0, 0, -0.19, 0, 0, 0, 0.06),
    ),
    Link(
        position=(0, 0, 0),
        quaternion=(_H, -_H, 0, 0),
        mass=0.646926,
        centre=(-0.003141, -0.02872, 0.003495),
        inertia=(0.007962, 0.02811, 0.025995, -0.003925, 0.010254, 0.000704),
        limits=(-1.7628, 1.7628),
        torque=87.0,
        joint_inertia=1.540,
        capsule=(0, 0, 0, 0, -0.2, 0, 0.06),
    ),
    Link(
        position=(0, -0.316, 0),
        quaternion=(_H, _H, 0, 0),
        mass=3.228604,
        centre=(0.027518, 0.039252, -0.066502),
        inertia=(0.037242, 0.036155, 0.01083, -0.004761, -0.011396, -0.012805),
        limits=(-2.8973, 2.8973),
        torque=87.0,
        joint_inertia=1.030,
        capsule=(0, 0, -0.12, 0, 0, 0, 0.055),
    ),
    Link(
        position=(0.0825, 0, 0),
        quaternion=(_H, _H, 0, 0),
        mass=3.587895,
        centre=(-0.05317, 0.104419, 0.027454),
        inertia=(0.025853, 0.019552, 0.028323, 0.007796, -0.001332, 0.008641),
        limits=(-3.0718, -0.0698),
        torque=87.0,
        joint_inertia=1.110,
        capsule=(0, 0, 0, -0.0825, 0.08, 0, 0.055),
    ),
    Link(
        position=(-0.0825, 0.384, 0),
        quaternion=(_H, -_H, 0, 0),
        mass=1.225946,
        centre=(-0.011953, 0.041065, -0.038437),
        inertia=(0.035549, 0.029474, 0.008627, -0.002117, -0.004037, 0.000229),
        limits=(-2.8973, 2.8973),
        torque=12.0,
        joint_inertia=0.134,
        capsule=(0, 0.02, -0.26, 0, 0.05, -0.10, 0.05),
    ),
    Link(
        position=(0, 0, 0),
        quaternion=(_H, _H, 0, 0),
        mass=1.666555,
        centre=(0.060149, -0.014117, -0.010517),
        inertia=(0.001964, 0.004354, 0.005433, 0.000109, -0.001158, 0.000341),
        limits=(-0.0175, 3.7525),
        torque=12.0,
        joint_inertia=0.154,
        capsule=(0, 0, 0, 0.088, 0, 0, 0.05),
    ),
    Link(
        position=(0.088, 0, 0),
        quaternion=(_H, _H, 0, 0),
        mass=0.735522,
        centre=(0.010517, -0.004252, 0.061597),
        inertia=(0.012516, 0.010027, 0.004815, -0.000428, -0.001196, -0.000741),
        limits=(-2.8973, 2.8973),
        torque=12.0,
        joint_inertia=0.107,
        capsule=(0, 0, 0, 0, 0, 0.08, 0.045),
    ),
)
# The hand in the last link, and the grip, the point between the fingertips, in the
# hand.
HAND_POSITION = (0.0, 0.0, 0.107)
HAND_QUATERNION = (float(np.cos(np.pi / 8)), 0.0, 0.0, -float(np.sin(np.pi / 8)))
GRIP = (0.0, 0.0, 0.1034)

# Where episodes start, as in robosuite: the hand points down, fingers along y.
HOME = (0.0, np.pi / 16, 0.0, -np.pi / 2 - np.pi / 3, 0.0, np.pi - 0.2, np.pi / 4)
ARMATURE = 0.1
SERVO_FREQUENCY = 60.0  # rad/s
MAX_SPEED = 2.6  # rad/s, of all joints; the smallest limit of the data sheet is 2.175

# Positions of a finger, 0 where both touch. The command of a closed finger lies behind
# this, so that the fingers press on what is between them with FINGER_FORCE.
FINGER_OPEN = 0.04
FINGER_CLOSED = -0.01
FINGER_FORCE = 15.0  # N
_FINGER_STIFFNESS = 500.0
_FINGER_MASS = 0.115  # with its armature
# Half sizes of the pad of a finger: across, along the motion, along the hand.
PAD = (0.011, 0.005, 0.018)


def attach_panda(
    spec: mujoco.MjSpec,
    prefix: str,
    *,
    position: tuple[float, float, float],
    yaw: float = 0.0,
) -> None:
    """Put a Panda with its servos into a scene.

    Its joints are `{prefix}joint1` ... `{prefix}joint7`, `{prefix}finger_left` and
    `{prefix}finger_right`, its actuators are in the same order, the pads of its fingers
    are the geoms `{prefix}pad_left` and `{prefix}pad_right`, and `{prefix}grip` is a
    site.

    Args:
        spec: of the scene; changed in place.
        position: of the base in the world, metres.
        yaw: of the base about the vertical, radians.
    """
    half = yaw / 2
    frame = spec.worldbody.add_frame(
        pos=position, quat=(np.cos(half), 0.0, 0.0, np.sin(half))
    )
    spec.attach(mujoco.MjSpec.from_string(mjcf()), prefix=prefix, frame=frame)


def mjcf() -> str:
    """MJCF of one arm, with its base at the origin."""
    body, actuators = _hand(), ""
    for index, link in reversed(list(enumerate(LINKS, start=1))):
        body = _link(index, link, body)
    for index, link in enumerate(LINKS, start=1):
        actuators += _servo(index, link)
    for side in ("left", "right"):
        damping = 2 * np.sqrt(_FINGER_STIFFNESS * _FINGER_MASS)
        actuators += f"""
        <position name="finger_{side}" joint="finger_{side}"
          kp="{_FINGER_STIFFNESS}" kv="{damping:.4g}"
          ctrlrange="-0.03 {FINGER_OPEN}"
          forcerange="{-FINGER_FORCE} {FINGER_FORCE}"/>"""
    return f"""
    <mujoco model="panda">
      <compiler angle="radian" autolimits="true"/>
      <default>
        <geom contype="0" conaffinity="0" mass="0" rgba="0.9 0.9 0.9 1"/>
      </default>
      <worldbody>
        <body name="base">
          <geom type="capsule" fromto="0 0 0.06 0 0 0.14" size="0.06"/>
          {body}
        </body>
      </worldbody>
      <actuator>{actuators}</actuator>
    </mujoco>"""


def _link(index: int, link: Link, child: str) -> str:
    ends, radius = _words(link.capsule[:6]), link.capsule[6]
    damping = 2 * SERVO_FREQUENCY * link.joint_inertia
    return f"""
    <body name="link{index}" pos="{_words(link.position)}"
      quat="{_words(link.quaternion)}" gravcomp="1">
      <inertial mass="{link.mass}" pos="{_words(link.centre)}"
        fullinertia="{_words(link.inertia)}"/>
      <joint name="joint{index}" axis="0 0 1" range="{_words(link.limits)}"
        armature="{ARMATURE}" damping="{damping:.5g}"/>
      <geom type="capsule" fromto="{ends}" size="{radius}"/>
      {child}
    </body>"""


def _servo(index: int, link: Link) -> str:
    stiffness = SERVO_FREQUENCY**2 * link.joint_inertia
    # The damping of the joint stands for the servo's own, which is part of its torque.
    torque = link.torque + 2 * SERVO_FREQUENCY * link.joint_inertia * MAX_SPEED
    return f"""
    <position name="joint{index}" joint="joint{index}" kp="{stiffness:.6g}"
      ctrlrange="{_words(link.limits)}" forcerange="{-torque:.5g} {torque:.5g}"/>"""


def _hand() -> str:
    fingers = ""
    for side, quaternion in (("left", "1 0 0 0"), ("right", "0 0 0 1")):
        fingers += f"""
        <body name="finger_{side}" pos="0 0 0.0584" quat="{quaternion}" gravcomp="1">
          <inertial mass="0.015" pos="0 0.01 0.02"
            diaginertia="2.4e-6 2.4e-6 7.5e-7"/>
          <joint name="finger_{side}" type="slide" axis="0 1 0"
            range="0 {FINGER_OPEN}" armature="0.1" damping="5"/>
          <geom name="pad_{side}" type="box" pos="0 {PAD[1]} 0.035"
            size="{_words(PAD)}" rgba="0.3 0.3 0.35 1"/>
        </body>"""
    return f"""
    <body name="hand" pos="{_words(HAND_POSITION)}" quat="{_words(HAND_QUATERNION)}"
      gravcomp="1">
      <inertial mass="0.73" pos="-0.01 0 0.03" diaginertia="0.001 0.0025 0.0017"/>
      <geom name="palm" type="box" pos="0 0 0.033" size="0.02 0.1 0.03"/>
      <site name="grip" pos="{_words(GRIP)}" size="0.005" rgba="1 0 0 0.3"/>
      <camera name="wrist" pos="0.07 0 0.02" xyaxes="0 1 0 0.95 0 0.3" fovy="75"/>
      {fingers}
    </body>"""


def _words(numbers: tuple[float, ...]) -> str:
    return " ".join(f"{number:.9g}" for number in numbers)
