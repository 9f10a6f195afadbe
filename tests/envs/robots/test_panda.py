import mujoco
import numpy as np
import pytest

from dppo_jax.envs.robots import panda


@pytest.fixture(scope="module")
def model():
    spec = mujoco.MjSpec()
    for index, place in enumerate(((0.0, -0.8, 0.1), (0.0, 0.8, 0.1))):
        panda.attach_panda(spec, f"robot{index}_", position=place, yaw=index * np.pi)
    return spec.compile()


def test_two_arms_have_joints_and_servos_of_their_own(model):
    assert model.nq == model.nu == 2 * panda.NUM_COMMANDS
    for index in range(2):
        names = [f"joint{i}" for i in range(1, 8)] + ["finger_left", "finger_right"]
        for offset, name in enumerate(names):
            joint = model.joint(f"robot{index}_{name}")
            servo = model.actuator(f"robot{index}_{name}")
            assert servo.id == index * panda.NUM_COMMANDS + offset
            assert servo.trnid[0] == joint.id


def test_servos_are_critically_damped_at_home(model):
    """Their inertias are the diagonal of the mass matrix at the home position."""
    data = mujoco.MjData(model)
    data.qpos[:7] = data.qpos[9:16] = panda.HOME
    mujoco.mj_forward(model, data)
    mass = np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, data, mass)
    expected = [link.joint_inertia for link in panda.LINKS]
    np.testing.assert_allclose(np.diag(mass)[:7], expected, rtol=0.01)
    stiffness, damping = model.actuator_gainprm[:7, 0], model.dof_damping[:7]
    np.testing.assert_allclose(damping, 2 * np.sqrt(stiffness * expected), rtol=1e-3)


def test_the_arm_holds_its_place_and_follows_a_step(model):
    """Gravity is compensated, and 0.1 rad is covered within 0.1 s without overshoot."""
    model.opt.timestep = 1 / 300
    data = mujoco.MjData(model)
    data.qpos[:7] = data.qpos[9:16] = panda.HOME
    data.ctrl[:7] = data.ctrl[9:16] = panda.HOME
    mujoco.mj_step(model, data, 60)
    np.testing.assert_allclose(data.qpos[:7], panda.HOME, atol=1e-3)
    data.ctrl[:7] += 0.1
    path = []
    for _ in range(60):
        mujoco.mj_step(model, data)
        path.append(data.qpos[:7] - panda.HOME)
    assert np.min(path[30]) > 0.08 and np.max(path) < 0.11
    np.testing.assert_allclose(path[-1], 0.1, atol=2e-3)


def test_closed_fingers_meet_in_the_middle(model):
    data = mujoco.MjData(model)
    data.qpos[:7] = data.ctrl[:7] = panda.HOME
    data.qpos[7:9], data.ctrl[7:9] = panda.FINGER_OPEN, panda.FINGER_CLOSED
    model.opt.timestep = 1 / 300
    mujoco.mj_step(model, data, 300)
    left, right = (data.geom(f"robot0_pad_{side}").xpos for side in ("left", "right"))
    assert np.linalg.norm(left - right) == pytest.approx(2 * panda.PAD[1], abs=2e-3)
    grip = data.site("robot0_grip").xpos
    assert np.linalg.norm((left + right) / 2 - grip) == pytest.approx(0.01, abs=1e-3)
