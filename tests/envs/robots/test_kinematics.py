"""Kinematics in JAX against MuJoCo's own, for random joint angles and bases."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from dppo_jax.envs.robots import control, kinematics, panda, rotations

BASES = (((-0.56, 0.0, 0.912), 0.0), ((0.1, -0.8, 0.912), np.pi / 2))
NUM = 32


@pytest.fixture(scope="module", params=BASES)
def arm(request):
    """A model with one arm, its data, the pose of its base and joint angles [N, 7]."""
    position, yaw = request.param
    spec = mujoco.MjSpec()
    panda.attach_panda(spec, "arm_", position=position, yaw=yaw)
    model = spec.compile()
    low, high = model.jnt_range[:7].T
    joints = np.random.default_rng(0).uniform(low, high, (NUM, 7))
    base = kinematics.base_pose(position, yaw)
    return model, mujoco.MjData(model), base, joints.astype(np.float32)


forward = jax.jit(jax.vmap(kinematics.forward, (0, None)))
inverse = jax.jit(jax.vmap(kinematics.inverse, (0, 0, None)))


def mujoco_grip(model, data, joints):
    """Position, rotation and Jacobian of the grip, as MuJoCo computes them."""
    data.qpos[:7] = joints
    mujoco.mj_forward(model, data)
    jacobian = np.zeros((6, model.nv))
    grip = model.site("arm_grip").id
    mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], grip)
    rotation = data.site_xmat[grip].reshape(3, 3)
    return data.site_xpos[grip].copy(), rotation.copy(), jacobian[:, :7]


def test_forward_kinematics_and_jacobian_are_those_of_mujoco(arm):
    model, data, base, joints = arm
    hand = forward(joints, base)
    for index, angles in enumerate(joints):
        position, rotation, jacobian = mujoco_grip(model, data, angles)
        np.testing.assert_allclose(hand.pose.position[index], position, atol=2e-6)
        np.testing.assert_allclose(hand.pose.rotation[index], rotation, atol=2e-6)
        np.testing.assert_allclose(hand.jacobian[index], jacobian, atol=5e-6)
        # The sign of the quaternion too, because policies see it.
        quaternion = data.body("arm_hand").xquat
        np.testing.assert_allclose(hand.quaternion[index], quaternion, atol=2e-6)


def test_the_hand_points_down_at_home(arm):
    _, _, base, _ = arm
    pose = kinematics.forward(jnp.array(panda.HOME), base).pose
    # robosuite's home position tilts it by 0.127 rad.
    np.testing.assert_allclose(np.arccos(-pose.rotation[2, 2]), 0.127, atol=1e-3)


def test_inverse_kinematics_meets_targets_of_one_control_step(arm):
    """Errors are below 1 mm and 0.5 degrees where the change is not shortened."""
    model, data, base, _ = arm
    rng = np.random.default_rng(1)
    joints = np.float32(np.array(panda.HOME) + rng.normal(0, 0.1, (NUM, 7)))
    hand = forward(joints, base)
    step = 0.015 * rng.uniform(-1, 1, (NUM, 3)).astype(np.float32)
    turn = 0.05 * rng.uniform(-1, 1, (NUM, 3)).astype(np.float32)
    rotation = jax.vmap(rotations.from_vector)(turn) @ hand.pose.rotation
    target = kinematics.Pose(hand.pose.position + step, rotation)
    found = np.asarray(inverse(joints, target, base))
    is_whole = np.abs(found - joints).max(axis=1) < 0.129
    assert is_whole.sum() > NUM / 2
    for index in np.flatnonzero(is_whole):
        position, rotation, _ = mujoco_grip(model, data, found[index])
        assert np.linalg.norm(position - target.position[index]) < 1e-3
        turn = rotation @ np.asarray(target.rotation[index]).T
        # For small angles this norm is the angle times the root of two.
        assert np.linalg.norm(turn - np.eye(3)) < np.sqrt(2) * np.deg2rad(0.5)


def test_far_targets_are_approached_by_the_largest_change(arm):
    """No joint exceeds the limit of the change, and the grip moves to the target."""
    *_, base, _ = arm
    joints = np.tile(np.float32(panda.HOME), (3, 1))
    hand = forward(joints, base)
    way = 0.2 * np.eye(3, dtype=np.float32)
    target = kinematics.Pose(hand.pose.position + way, hand.pose.rotation)
    found = inverse(joints, target, base)
    np.testing.assert_allclose(np.abs(found - joints).max(axis=1), 0.13, rtol=1e-3)
    moved = forward(found, base).pose.position - hand.pose.position
    direction = np.diagonal(moved) / np.linalg.norm(moved, axis=1)
    assert (direction > 0.95).all()


def test_joint_angles_stay_within_their_limits(arm):
    model, _, base, joints = arm
    hand = forward(joints, base)
    away = kinematics.Pose(hand.pose.position + 1.0, hand.pose.rotation)
    found = np.asarray(inverse(joints, away, base))
    low, high = model.jnt_range[:7].T
    assert (found >= low + 0.0199).all() and (found <= high - 0.0199).all()


def test_solve_is_the_solution_of_the_linear_system():
    root = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    matrix = root @ root.T + 0.1 * np.eye(6, dtype=np.float32)
    right = np.arange(6, dtype=np.float32)
    np.testing.assert_allclose(
        kinematics.solve(matrix, right), np.linalg.solve(matrix, right), rtol=2e-3
    )


def test_an_action_moves_the_goal_and_the_gripper():
    base = kinematics.base_pose((0.0, 0.0, 0.0))
    joints = jnp.array(panda.HOME)
    before = kinematics.forward(joints, base).pose
    reach = (0.015, 0.1)

    def after(action):
        ctrl = control.commands(joints, jnp.array(action), base, reach=reach)
        pose = kinematics.forward(ctrl[:7], base).pose
        return kinematics.error(pose, before), ctrl[7:]

    moved, fingers = after([1.0, -0.5, 0.0, 0.0, 0.0, 0.5, 0.2])
    wanted = [0.015, -0.0075, 0.0, 0.0, 0.0, 0.05]
    np.testing.assert_allclose(moved, wanted, atol=2e-4)
    np.testing.assert_allclose(fingers, panda.FINGER_CLOSED)
    # Beyond 1 an action does no more, and the gripper opens.
    clipped, fingers = after([7.0, -0.5, 0.0, 0.0, 0.0, 0.5, -0.2])
    np.testing.assert_allclose(clipped, moved, atol=1e-6)
    np.testing.assert_allclose(fingers, panda.FINGER_OPEN)
