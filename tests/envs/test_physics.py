"""A jointed arm with a contact and sensors, stepped by every engine of this machine."""

import functools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from dppo_jax.envs.physics import make_physics, mjx_engine, resolve_engine
from dppo_jax.envs.physics.build import split_engine
from dppo_jax.envs.physics.state import full
from dppo_jax.errors import SettingsError

ARM = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody>
    <geom name="floor" type="plane" size="1 1 1" pos="0 0 -0.55"/>
    <body>
      <joint name="shoulder" axis="0 1 0" damping="0.1"/>
      <geom type="capsule" fromto="0 0 0 0 0 -0.3" size="0.03" contype="0"
        conaffinity="0"/>
      <body pos="0 0 -0.3">
        <joint name="elbow" axis="0 1 0" damping="0.1"/>
        <geom name="hand" type="sphere" size="0.05" pos="0 0 -0.25"/>
        <site name="hand" pos="0 0 -0.25"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor joint="shoulder" gear="2"/>
    <general joint="elbow" gear="1" dyntype="filter" dynprm="0.05"/>
  </actuator>
  {sensors}
</mujoco>"""
SENSORS = """
  <sensor><framepos objtype="site" objname="hand"/><jointvel joint="elbow"/></sensor>
"""
ENGINES = ("mjx", "mujoco")


def arm(sensors=SENSORS):
    return mujoco.MjModel.from_xml_string(ARM.format(sensors=sensors))


def controls(num_steps, num_envs):
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (num_steps, num_envs, 2)).astype(np.float32)


@functools.cache
def program(reset, step):
    """Steps from rest by controls [T, B, nu]; compiled once for an engine and model."""

    def step_all(state, ctrl):
        state = jax.vmap(step)(state, ctrl)
        return state, state

    @jax.jit
    def run(qpos, ctrl):
        start = jax.vmap(reset)(qpos, jnp.zeros_like(qpos))
        return jax.lax.scan(step_all, start, ctrl)[1]

    return run


def roll(physics, ctrl):
    """All states [T, B] after starting at rest, the arms spread out."""
    num_envs = ctrl.shape[1]
    qpos = jnp.stack([jnp.linspace(-1, 1, num_envs), jnp.full(num_envs, 0.1)], 1)
    run = program(physics.reset, physics.step)
    return jax.tree.map(np.asarray, run(qpos, jnp.asarray(ctrl)))


@functools.cache
def two_substeps(engine):
    """The arm with sensors; tests share it, because MJX takes seconds to compile."""
    return make_physics(arm(), 2, engine)


def test_c_rows_survive_bit_for_bit():
    """Inside jit, scan and vmap the engine computes the same as a loop of mj_step."""
    model, ctrl = arm(), controls(20, 3)
    states = roll(make_physics(model, 4, "mujoco"), ctrl)
    spec = mujoco.mjtState.mjSTATE_INTEGRATION
    row = np.empty(mujoco.mj_stateSize(model, spec))
    for index, start in enumerate(np.linspace(-1, 1, 3, dtype=np.float32)):
        data = mujoco.MjData(model)
        data.qpos[:] = [start, np.float32(0.1)]
        for time in range(20):
            data.ctrl[:] = ctrl[time, index]
            for _ in range(4):
                mujoco.mj_step(model, data)
            mujoco.mj_getState(model, data, row, spec)
            np.testing.assert_array_equal(states.raw[time, index], row.view(np.uint32))
        np.testing.assert_array_equal(states.qpos[-1, index], np.float32(data.qpos))


@pytest.mark.parametrize("engine", ENGINES)
def test_sensors_are_read_at_the_new_state(engine):
    model = arm()
    states = roll(two_substeps(engine), controls(20, 3))
    data = mujoco.MjData(model)
    for time in range(5):
        data.qpos[:], data.qvel[:] = states.qpos[time, 1], states.qvel[time, 1]
        mujoco.mj_forward(model, data)
        np.testing.assert_allclose(
            states.sensordata[time, 1], data.sensordata, atol=2e-6
        )


def test_engines_agree():
    mjx, c = (roll(two_substeps(engine), controls(20, 3)) for engine in ENGINES)
    np.testing.assert_allclose(mjx.qpos, c.qpos, atol=2e-3)
    np.testing.assert_allclose(
        mjx.sensordata[:, :, :3], c.sensordata[:, :, :3], atol=1e-3
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_displacement_is_the_change_of_positions(engine):
    states = roll(two_substeps(engine), controls(20, 3))
    changed = np.diff(states.qpos[:5], axis=0)
    np.testing.assert_allclose(states.displacement[1:5], changed, atol=1e-6)


def test_displacement_is_exact_far_from_the_origin():
    """A thousand metres out, float32 positions are 0.06 mm apart."""
    model = mujoco.MjModel.from_xml_string(
        """<mujoco><option gravity="0 0 0"/><worldbody><body><joint type="slide"/>
        <geom size="0.1"/></body></worldbody></mujoco>"""
    )
    physics = make_physics(model, 1, "mujoco")
    state = physics.reset(jnp.array([1000.0]), jnp.array([0.0123]))
    assert state.displacement == 0.0
    state = physics.step(state, jnp.zeros(0))
    moved = 0.0123 * model.opt.timestep
    np.testing.assert_allclose(state.displacement, [moved], rtol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_two_control_steps_are_one_with_twice_the_substeps(engine):
    """The state that is carried between steps suffices to continue."""
    ctrl = controls(10, 3)
    short = roll(two_substeps(engine), np.repeat(ctrl, 2, axis=0))
    long = roll(make_physics(arm(""), 4, engine), ctrl)
    np.testing.assert_allclose(short.qpos[1:8:2], long.qpos[:4], atol=1e-6)
    assert long.sensordata.shape == (10, 3, 0)
    if engine == "mujoco":
        np.testing.assert_array_equal(short.raw[1::2], long.raw)


def test_nested_vmaps_make_one_call():
    """Leading axes of any number become one flat batch."""
    physics = make_physics(arm(), 2, "mujoco")
    qpos = jnp.linspace(-1, 1, 12).reshape(2, 3, 2)
    reset = jax.vmap(jax.vmap(physics.reset))
    step = jax.vmap(jax.vmap(physics.step))
    nested = jax.jit(step)(reset(qpos, 0 * qpos), 0.1 * qpos)
    assert nested.raw.shape[:2] == (2, 3)
    for i in range(2):
        for j in range(3):
            alone = physics.reset(qpos[i, j], jnp.zeros(2))
            alone = physics.step(alone, 0.1 * qpos[i, j])
            np.testing.assert_array_equal(nested.raw[i, j], alone.raw)
    calls = str(jax.make_jaxpr(step)(nested, qpos)).count("buffer_callback[")
    assert calls == 1


def test_other_backends_step_alike(monkeypatch):
    """Arrays of a GPU are no memory of NumPy, so there they are copied."""
    qpos = jnp.linspace(-1, 1, 12).reshape(2, 3, 2)
    ctrl = 0.1 * qpos

    def one_step():
        physics = make_physics(arm(), 2, "mujoco")
        reset = jax.vmap(jax.vmap(physics.reset))
        step = jax.vmap(jax.vmap(physics.step))
        program = str(jax.make_jaxpr(step)(reset(qpos, qpos), ctrl))
        return step(reset(qpos, qpos), ctrl), program

    shared, program = one_step()
    assert "buffer_callback[" in program and "pure_callback[" not in program
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    copied, program = one_step()
    assert "pure_callback[" in program and "buffer_callback[" not in program
    jax.tree.map(np.testing.assert_array_equal, shared, copied)


@pytest.mark.parametrize(
    "engine, num_envs", [("mjx", 3), ("mujoco", 1), ("mujoco", 64), ("mujoco", 2048)]
)
def test_falling_is_semi_implicit_euler(engine, num_envs):
    """After n substeps z = z0 + n dt v0 - g dt^2 n (n + 1) / 2, in every simulation.

    Hundreds of callbacks in one program, whatever the size of their batch.
    """
    model = mujoco.MjModel.from_xml_string(
        """<mujoco><option timestep="0.01" gravity="0 0 -10"/><worldbody><body>
        <joint type="slide" axis="0 0 1"/><geom size="0.1"/></body></worldbody></mujoco>
        """
    )
    physics = make_physics(model, 2, engine)
    height, speed = jnp.linspace(-1, 1, num_envs), jnp.linspace(0, 3, num_envs)

    @jax.jit
    def run(height, speed):
        start = jax.vmap(physics.reset)(height[:, None], speed[:, None])

        def step(state, _):
            state = jax.vmap(physics.step)(state, jnp.zeros((num_envs, 0)))
            return state, (state.qpos[:, 0], state.qvel[:, 0])

        return jax.lax.scan(step, start, length=200)[1]

    qpos, qvel = run(height, speed)
    count = 2 * np.arange(1, 201)[:, None]
    expected = height + 0.01 * count * speed - 10 * 1e-4 * count * (count + 1) / 2
    np.testing.assert_allclose(qpos, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(qvel, speed - 0.1 * count, rtol=1e-5, atol=1e-4)


# MJX compiles RK4, four evaluations of a substep, for longer than all else here.
@pytest.mark.parametrize(
    "engine", [pytest.param("mjx", marks=pytest.mark.slow), "mujoco"]
)
def test_a_frictionless_arm_keeps_its_energy(engine):
    """With RK4. C MuJoCo computes the energy for the states of either engine."""
    xml = ARM.format(sensors="").replace('damping="0.1"', "")
    xml = xml.replace("<option", '<option integrator="RK4"')
    model = mujoco.MjModel.from_xml_string(
        xml.replace('pos="0 0 -0.55"', 'pos="0 0 -2"')
    )
    states = roll(make_physics(model, 2, engine), np.zeros((50, 3, 2), np.float32))
    # MJX computes no energy itself.
    model.opt.enableflags |= mujoco.mjtEnableBit.mjENBL_ENERGY
    data = mujoco.MjData(model)
    energy = np.empty((50, 3))
    for index in np.ndindex(50, 3):
        data.qpos[:], data.qvel[:] = states.qpos[index], states.qvel[index]
        mujoco.mj_forward(model, data)
        energy[index] = data.energy.sum()
    # The arm swings through.
    assert np.ptp(states.qpos[:, 0, 0]) > 1
    np.testing.assert_allclose(
        energy, np.broadcast_to(energy[0], energy.shape), atol=2e-4
    )


def test_an_error_inside_the_callback_becomes_an_exception():
    physics = make_physics(arm(), 1, "mujoco")
    state = physics.reset(jnp.zeros(2), jnp.zeros(2))
    wrong = state._replace(raw=state.raw[:-2])
    with pytest.raises(Exception, match="reshape"):
        jax.block_until_ready(physics.step(wrong, jnp.zeros(2)))


def test_unusable_settings_are_named():
    with pytest.raises(ValueError, match="'bullet'.*mjx"):
        make_physics(arm(), 1, "bullet")
    with pytest.raises(ValueError, match="num_substeps=0"):
        make_physics(arm(), 0, "mjx")
    if jax.default_backend() != "gpu":
        with pytest.raises(ValueError, match="NVIDIA GPU"):
            make_physics(arm(), 1, "mjx-warp")


def test_the_space_of_warp_is_part_of_the_engine():
    full = "mjx-warp:contacts=64,constraints=256"
    assert split_engine(full) == ("mjx-warp", {"contacts": 64, "constraints": 256})
    assert split_engine("mjx-warp") == ("mjx-warp", {})
    assert split_engine("mujoco") == ("mujoco", {})
    twice = "contacts=1,contacts=2"
    for wrong in ("", "contacts", "contacts=0", "contacts=x", "bodies=3", twice):
        with pytest.raises(SettingsError, match="mjx-warp:contacts=64,constr"):
            split_engine(f"mjx-warp:{wrong}")
    with pytest.raises(SettingsError, match="Only 'mjx-warp' has one"):
        resolve_engine("mujoco:contacts=64", "mujoco")


def test_auto_takes_the_engine_of_the_task_on_cpu_and_mjx_elsewhere(monkeypatch):
    for backend, expected in (("cpu", "mujoco"), ("gpu", "mjx"), ("tpu", "mjx")):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert resolve_engine("auto", cpu_engine="mujoco") == expected
        assert resolve_engine("mujoco", cpu_engine="mjx") == "mujoco"


@pytest.mark.parametrize("engine", ENGINES)
def test_states_and_controls_of_another_shape_are_refused(engine):
    physics, two, three = make_physics(arm(), 1, engine), jnp.zeros(2), jnp.zeros(3)
    with pytest.raises(SettingsError, match=r"qpos has the shape \(3,\), .*\(2,\)"):
        jax.eval_shape(physics.reset, three, two)
    with pytest.raises(SettingsError, match=r"qvel has the shape \(1, 2\), .*vmap"):
        jax.eval_shape(physics.reset, two, two[None])
    state = jax.eval_shape(physics.reset, two, two)
    with pytest.raises(SettingsError, match=r"ctrl has the shape \(3,\), .*\(2,\)"):
        jax.eval_shape(physics.step, state, three)


def test_a_function_is_told_how_often_it_is_mapped():
    told = mjx_engine.counted(lambda num, x, tree: {"x": num * x, "y": tree["y"]})
    tree = {"y": jnp.zeros(()), "none": ()}
    assert told(2.0, tree)["x"] == 2
    once = jax.vmap(told, (0, None))
    np.testing.assert_array_equal(once(jnp.arange(3.0), tree)["x"], [0, 3, 6])
    trees = {"y": jnp.array([5.0, 7.0]), "none": ()}
    twice = jax.jit(jax.vmap(once, (1, 0)))(jnp.ones((3, 2)), trees)
    np.testing.assert_array_equal(twice["x"], np.full((2, 3), 6))
    np.testing.assert_array_equal(twice["y"], [[5, 5, 5], [7, 7, 7]])


# Two balls that overlap the ground and each other.
BALLS = """
<mujoco>
  <worldbody>
    <geom type="plane" size="5 5 .1"/>
    <body pos="0 0 .1"><freejoint/><geom type="sphere" size=".12"/></body>
    <body pos=".2 0 .1"><freejoint/><geom type="sphere" size=".12"/></body>
  </worldbody>
</mujoco>"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "contacts, constraints, expected",
    [(None, None, (0, 0)), (2, 64, (2, 0)), (8, 3, (0, 3))],
)
def test_warp_tells_that_contacts_were_left_out(contacts, constraints, expected, capfd):
    """Warp compiles its kernels for the CPU here, which no other test does."""
    pytest.importorskip("warp")
    model = mujoco.MjModel.from_xml_string(BALLS)
    reset, step, _ = mjx_engine.make_mjx(
        model, 1, impl="warp", max_contacts=contacts, max_constraints=constraints
    )
    qpos = jnp.tile(jnp.asarray(model.qpos0, jnp.float32), (2, 1))
    # In the second step the balls are far from everything.
    apart = qpos.at[:, 2].set(5.0).at[:, 9].set(9.0)

    def both(qpos, apart):
        state = reset(qpos, jnp.zeros(12), {}, {})
        assert set(full(state)) == {"contacts", "constraints"}
        touching = step(state, jnp.zeros(0), {})
        return full(touching), full(step(touching, jnp.zeros(0), {"qpos": apart}))

    for found in jax.jit(jax.vmap(both))(qpos, apart):
        # What was left out stays told until the reset.
        np.testing.assert_array_equal(found["contacts"], [expected[0]] * 2)
        np.testing.assert_array_equal(found["constraints"], [expected[1]] * 2)
    assert "overflow" not in capfd.readouterr().out


@pytest.mark.parametrize("max_contacts, expected", [(5, [5, 40]), (None, [None, 384])])
def test_warp_has_space_for_the_contacts_of_all_simulations(
    monkeypatch, max_contacts, expected
):
    """Simulations that run at once share it; 48 each are the default of MuJoCo Warp."""
    pytest.importorskip("warp")
    asked, make_data = [], mjx_engine.mjx.make_data

    def recorded(*args, **settings):
        asked.append(settings["naconmax"])
        return make_data(*args, **settings)

    monkeypatch.setattr(mjx_engine.mjx, "make_data", recorded)
    settings = dict(max_contacts=max_contacts, max_constraints=None)
    reset, *_ = mjx_engine.make_mjx(arm(sensors=""), 1, impl="warp", **settings)
    both = jax.ShapeDtypeStruct((8, 2), jnp.float32)
    jax.eval_shape(jax.vmap(lambda qpos, qvel: reset(qpos, qvel, {}, {})), both, both)
    assert asked == expected
