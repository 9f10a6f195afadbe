"""Overrides and inputs of each simulation, compared with a plain loop of C MuJoCo."""

import copy

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dppo_jax.envs.physics import change_names, make_physics, override_names

# A puck that slides on a floor, an arm with a joint limit, a lid held by a weld, a
# sphere welded to a mocap body, and a box that spins on a ball joint.
BENCH = """
<mujoco>
  <option timestep="0.01" iterations="10" ls_iterations="10"/>
  <default><geom contype="0" conaffinity="0"/></default>
  <worldbody>
    <geom name="floor" type="plane" size="2 2 1" friction="0.1"/>
    <body name="puck" pos="0 0 0.0995">
      <joint type="slide" axis="1 0 0" damping="2"/>
      <joint type="slide" axis="0 0 1"/>
      <geom name="puck" type="sphere" size="0.1" mass="{mass}" friction="{friction}"/>
    </body>
    <body name="upper" pos="0 1 1">
      <joint name="shoulder" axis="0 1 0" damping="0.1" stiffness="1"
        frictionloss="0.1" armature="0.01"/>
      <geom type="capsule" fromto="0 0 0 0 0 -0.3" size="0.03"/>
      <body name="lower" pos="0 0 -0.3">
        <joint name="elbow" axis="0 1 0" range="-0.5 0.5" damping="0.1"/>
        <geom type="capsule" fromto="0 0 0 0.1 0 -0.3" size="0.03"/>
      </body>
    </body>
    <body name="lid" pos="1 0 1">
      <joint name="lid_slide" type="slide" axis="0 0 1"/>
      <geom type="sphere" size="0.1"/>
    </body>
    <body name="carried" pos="-1 0 1">
      <joint name="carried_slide" type="slide" axis="0 0 1"/>
      <geom type="sphere" size="0.1"/>
    </body>
    <body name="hand" mocap="true" pos="-1 0 1"/>
    <body name="top" pos="-1 1 1">
      <joint type="ball"/><geom type="box" size="0.1 0.05 0.03" pos="0.1 0 0"/>
    </body>
  </worldbody>
  <contact>
    <pair geom1="floor" geom2="puck" condim="3" {pair}/>
  </contact>
  <equality>
    <weld name="holds" body1="lid" solref="0.05 1"/>
    <weld name="carries" body1="carried" body2="hand"/>
  </equality>
  <actuator>
    <position joint="shoulder" kp="5" ctrlrange="-1 1" forcerange="-2 2"/>
    <motor joint="elbow" gear="0.2"/>
  </actuator>
  <sensor><jointpos joint="elbow"/><subtreecom body="upper"/></sensor>
</mujoco>"""
# One body that a motor pushes along a slide.
SLIDER = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody>
    <body>
      <joint name="slide" type="slide" axis="1 0 0" damping="2"/>
      <geom size="0.1" mass="0.5" contype="0"/>
    </body>
  </worldbody>
  <actuator><motor joint="slide"/></actuator>
</mujoco>"""
ENGINES = ("mjx", "mujoco")
# Each of these compiles MJX for half a minute; one override of every kind stays fast.
SLOW_ENGINES = (pytest.param("mjx", marks=pytest.mark.slow), "mujoco")
NUM_SUBSTEPS = 2
# How far MJX may depart because of float32 in these few steps.
ROUNDING = 2e-4
SPEC = mujoco.mjtState.mjSTATE_INTEGRATION


def bench(mass=0.5, friction=0.5, pair=True):
    """The model; with `pair` its contact is a pair with its own parameters."""
    own = f'friction="{friction} {friction}"' if pair else ""
    xml = BENCH.format(mass=mass, friction=friction, pair=own)
    if not pair:
        # A pair has its own parameters; a contact found by masks uses those of geoms.
        start, end = xml.index("<contact>"), xml.index("</contact>")
        xml = xml[:start] + xml[end + len("</contact>") :]
        for name in ("floor", "puck"):
            xml = xml.replace(
                f'<geom name="{name}"',
                f'<geom contype="1" conaffinity="1" name="{name}"',
            )
    return mujoco.MjModel.from_xml_string(xml)


def read(model, name):
    owner = model.opt if name.startswith("opt.") else model
    return getattr(owner, name.removeprefix("opt."))


def altered(model, name):
    """A copy with one changed field, whose values float32 represents exactly."""
    # Contacts cannot become stiffer than two time steps allow, so make them softer.
    other, factor = copy.copy(model), 3.0 if name.endswith("solref") else 0.5
    field = read(other, name)
    field[...] = np.float32(field) * np.float32(factor)
    if name == "body_quat":
        field[...] = read(model, name)
        # Do not rotate the welded bodies, because a slide joint cannot follow.
        field[[model.body("upper").id, model.body("top").id]] = 0.5, 0.5, 0.5, 0.5
    if name in ("body_pos", "body_quat"):
        # Keep the mocap bodies and the world where they are.
        kept = model.body_mocapid >= 0
        kept[0] = True
        field[kept] = read(model, name)[kept]
    mujoco.mj_setConst(other, mujoco.MjData(other))
    # mj_setConst has set the welds to the poses at qpos0; restore them.
    other.eq_data[...] = model.eq_data
    if name == "eq_data":
        other.eq_data[:, 3:6] += np.float32(0.0625)
    return other


def start(model):
    """All bodies move, and the elbow is at its limit."""
    qpos, qvel = model.qpos0.astype(np.float32), np.zeros(model.nv, np.float32)
    if model.nq == 1:  # SLIDER
        return qpos, qvel + 1
    qpos[model.joint("elbow").qposadr] = 0.5
    qvel[:4] = 2.0, 0.0, 1.0, 1.0
    qvel[-3:] = 1.0, -2.0, 3.0
    return qpos, qvel


CTRL = np.float32([[0.5, -0.5], [2.0, 1.0], [-1.0, 0.25], [0.0, 1.0], [1.0, 1.0]])


def run(physics, overrides, ctrl=CTRL):
    """All states [T, B] under `ctrl` [T, nu], a model for each entry of `overrides`."""
    qpos, qvel = start(physics.model)

    @jax.jit
    @jax.vmap
    def roll(overrides):
        state = physics.reset(qpos, qvel, overrides=overrides)

        def step(state, ctrl):
            state = physics.step(state, ctrl)
            return state, state

        return jax.lax.scan(step, state, jnp.asarray(ctrl))[1]

    states = roll(overrides)
    return jax.tree.map(lambda x: np.swapaxes(np.asarray(x), 0, 1), states)


def plain(model, ctrl=CTRL):
    """Rows [T, nstate] and qpos [T, nq] of a loop of mj_step."""
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = start(model)
    rows, qpos = [], []
    for values in ctrl:
        data.ctrl[:] = values
        for _ in range(NUM_SUBSTEPS):
            mujoco.mj_step(model, data)
        row = np.empty(mujoco.mj_stateSize(model, SPEC))
        mujoco.mj_getState(model, data, row, SPEC)
        rows.append(row)
        qpos.append(data.qpos.copy())
    return np.array(rows), np.array(qpos)


def batch_of(models, names):
    return {
        name: jnp.stack([np.float32(read(model, name)) for model in models])
        for name in names
    }


@pytest.mark.parametrize(
    "engine, pair",
    [
        ("mujoco", True),
        ("mujoco", False),
        pytest.param("mjx", True, marks=pytest.mark.slow),
        pytest.param("mjx", False, marks=pytest.mark.slow),
    ],
)
def test_an_override_equals_a_model_with_the_changed_field(engine, pair):
    """In this batch each simulation overrides another field, and one none."""
    model = bench(pair=pair)
    names = override_names(model)
    models = [model] + [altered(model, name) for name in names]
    states = run(make_physics(model, NUM_SUBSTEPS, engine), batch_of(models, names))
    unchanged = plain(model)[1]
    for index, (name, other) in enumerate(zip(["nothing", *names], models)):
        rows, qpos = plain(other)
        if engine == "mujoco":
            expected = rows.view(np.uint32)
            np.testing.assert_array_equal(states.raw[:, index], expected, name)
        np.testing.assert_allclose(
            states.qpos[:, index], qpos, atol=ROUNDING, err_msg=name
        )
        # All fields but those of geoms in a pair have a far larger effect than that.
        if name != "nothing" and not (pair and name.startswith("geom_")):
            assert np.abs(qpos - unchanged).max() > 4 * ROUNDING, name


def test_mjx_takes_overrides_of_a_model_that_compiles_in_seconds():
    """Of two fields; the slow tests change every field of the bench."""
    model, ctrl = mujoco.MjModel.from_xml_string(SLIDER), CTRL[:, :1]
    names = ["body_mass", "dof_damping"]
    models = [model, *(altered(model, name) for name in names)]
    physics = make_physics(model, NUM_SUBSTEPS, "mjx")
    states = run(physics, batch_of(models, names), ctrl)
    for index, other in enumerate(models):
        qpos = plain(other, ctrl)[1]
        np.testing.assert_allclose(states.qpos[:, index], qpos, atol=ROUNDING)
        moved = np.abs(qpos - plain(model, ctrl)[1]).max()
        assert (moved > 4 * ROUNDING) == (index > 0)


@pytest.mark.parametrize("engine", SLOW_ENGINES)
def test_an_override_equals_a_model_compiled_with_the_value(engine):
    """Mass and friction of the puck, written into the file."""
    model = bench(pair=False)
    compiled = [bench(mass=1.0, pair=False), bench(friction=0.25, pair=False)]
    overrides = batch_of(compiled, ["body_mass", "body_inertia", "geom_friction"])
    states = run(make_physics(model, NUM_SUBSTEPS, engine), overrides)
    for index, other in enumerate(compiled):
        np.testing.assert_allclose(
            states.qpos[:, index], plain(other)[1], atol=ROUNDING
        )
        assert np.abs(plain(other)[1] - plain(model)[1]).max() > 4 * ROUNDING


@pytest.mark.slow
def test_mjx_derives_the_constants_that_c_mujoco_derives():
    model = bench()
    other = altered(model, "body_mass")
    physics = make_physics(model, NUM_SUBSTEPS, "mjx")
    overrides = physics.reset(
        *(np.float32(x) for x in start(model)),
        overrides={"body_mass": np.float32(other.body_mass)},
    ).overrides
    derived = set(overrides) - {"body_mass"}
    assert {"dof_invweight0", "body_invweight0", "body_subtreemass"} <= derived
    for name in derived:
        np.testing.assert_allclose(
            overrides[name], getattr(other, name), rtol=2e-5, atol=1e-6, err_msg=name
        )


def test_a_restored_state_continues_in_any_engine(tmp_path):
    """It holds overrides and switched-off welds; the engine keeps nothing of them."""
    model = bench()
    masses = batch_of([model, altered(model, "body_mass")], ["body_mass"])["body_mass"]

    def make():
        physics = make_physics(model, NUM_SUBSTEPS, "mujoco")
        ctrl = jnp.zeros(model.nu)
        return physics, jax.jit(jax.vmap(lambda state: physics.step(state, ctrl)))

    physics, step = make()
    qpos, qvel = start(model)

    @jax.vmap
    def begin(mass):
        off = jnp.array([0, 1])
        state = physics.reset(qpos, qvel, overrides={"body_mass": mass}, eq_active=off)
        return physics.step(state, jnp.zeros(model.nu))

    state = begin(masses)
    other = begin(2 * masses)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", state)
    expected = step(step(state))
    # In between the same engine steps another batch of simulations.
    step(other)
    jax.tree.map(np.testing.assert_array_equal, step(step(restored)), expected)
    _, fresh_step = make()
    jax.tree.map(np.testing.assert_array_equal, fresh_step(fresh_step(state)), expected)
    # The lid without its weld has fallen, whatever its mass.
    lid = int(model.joint("lid_slide").qposadr[0])
    np.testing.assert_allclose(expected.qpos[:, lid], fallen(6), rtol=1e-5)


def fallen(num_steps, dt=0.01, gravity=-9.81):
    """Height after so many steps of semi-implicit Euler from rest at 0."""
    return gravity * dt**2 * num_steps * (num_steps + 1) / 2


@pytest.mark.parametrize("engine", SLOW_ENGINES)
def test_welds_can_be_switched_off_and_on(engine):
    """It keeps its setting until it is switched; every simulation has its own."""
    model = bench()
    physics = make_physics(model, 1, engine)
    lid = int(model.joint("lid_slide").qposadr[0])
    qpos, qvel = start(model)
    ctrl = jnp.zeros(model.nu)
    state = jax.vmap(lambda _: physics.reset(qpos, qvel))(jnp.arange(3))

    @jax.jit
    @jax.vmap
    def switch(state, active):
        return physics.step(state, ctrl, eq_active=active)

    @jax.jit
    def wait(state):
        step = jax.vmap(lambda state: physics.step(state, ctrl))
        return jax.lax.scan(lambda s, _: (step(s), None), state, length=9)[0]

    state = wait(switch(state, jnp.array([[True, True], [False, True], [False, True]])))
    np.testing.assert_allclose(state.qpos[1:, lid], fallen(10), rtol=1e-4)
    assert abs(state.qpos[0, lid]) < 0.1 * abs(fallen(10))
    held = jnp.array([[True, True], [False, True], [True, True]])
    state = switch(state, held)
    for _ in range(11):
        state = wait(state)
    np.testing.assert_allclose(state.qpos[1, lid], fallen(110), rtol=1e-4)
    # The weld of the third simulation pulls its lid back.
    np.testing.assert_allclose(state.qpos[2, lid], state.qpos[0, lid], atol=2e-3)
    assert abs(state.qvel[2, lid]) < 2e-2


@pytest.mark.parametrize("engine", SLOW_ENGINES)
def test_inputs_act_for_one_step_or_permanently(engine):
    """Forces act for one step, mocap poses stay; the step starts at a given qpos."""
    model = bench()
    physics = make_physics(model, 1, engine)
    lid = int(model.joint("lid_slide").dofadr[0])
    qpos_lid = int(model.joint("lid_slide").qposadr[0])
    carried = int(model.joint("carried_slide").qposadr[0])
    ctrl, (qpos, qvel) = jnp.zeros(model.nu), start(model)
    mass = float(model.body("lid").mass[0])
    hand = jnp.float32(model.body("hand").pos + [0, 0, 0.05])[None]
    force = jnp.zeros((model.nbody, 6)).at[model.body("lid").id, 2].set(3.0)

    @jax.jit
    def push(state, qpos, force, generalized):
        return physics.step(
            state,
            ctrl,
            eq_active=jnp.array([0, 1]),
            qpos=qpos,
            xfrc_applied=force,
            qfrc_applied=generalized,
            mocap_pos=hand,
        )

    step = jax.jit(lambda state: physics.step(state, ctrl))
    state = jax.jit(physics.reset)(qpos, qvel)
    higher = state.qpos.at[qpos_lid].add(0.25)
    generalized = jnp.zeros(model.nv).at[lid].set(2.0)
    state = push(state, higher, force, generalized)
    dt = model.opt.timestep
    pushed = dt * (5.0 / mass - 9.81)
    np.testing.assert_allclose(state.qvel[lid], pushed, rtol=1e-4)
    np.testing.assert_allclose(state.qpos[qpos_lid], 0.25 + dt * pushed, rtol=1e-5)
    np.testing.assert_allclose(state.displacement[qpos_lid], dt * pushed, rtol=1e-3)
    state = step(state)
    np.testing.assert_allclose(state.qvel[lid], pushed - dt * 9.81, rtol=1e-4)
    for _ in range(60):
        state = step(state)
    np.testing.assert_allclose(state.qpos[carried], 0.05, atol=5e-3)


def test_c_mujoco_keeps_float64_values_that_are_passed_back():
    model = bench()
    physics = make_physics(model, NUM_SUBSTEPS, "mujoco")
    ctrl = jnp.ones(model.nu)
    state = physics.step(physics.reset(*start(model)), ctrl)
    expected = physics.step(state, ctrl)
    again = physics.step(state, ctrl, qpos=state.qpos, qvel=state.qvel)
    np.testing.assert_array_equal(again.raw, expected.raw)
    moved = physics.step(state, ctrl, qpos=state.qpos.at[0].add(0.5))
    assert np.any(moved.raw != expected.raw)
    own = {name: np.float32(read(model, name)) for name in override_names(model)}
    start_own = physics.reset(*start(model), overrides=own)
    np.testing.assert_array_equal(
        physics.step(physics.step(start_own, ctrl), ctrl).raw, expected.raw
    )


def test_without_overrides_nothing_is_added():
    """The callback gets only a row and controls; the state has no further arrays."""
    model = bench()
    physics = make_physics(model, NUM_SUBSTEPS, "mujoco")
    state = physics.reset(*start(model))
    assert len(jax.tree.leaves(state)) == 5
    program = jax.make_jaxpr(physics.step)(state, jnp.zeros(model.nu))
    (call,) = [eqn for eqn in program.eqns if eqn.primitive.name == "buffer_callback"]
    assert [v.aval.shape for v in call.invars] == [state.raw.shape, (model.nu,)]
    assert len(program.eqns) == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_unknown_overrides_and_inputs_are_named(engine):
    model = bench()
    physics = make_physics(model, NUM_SUBSTEPS, engine)
    qpos, qvel = start(model)
    with pytest.raises(ValueError, match="'body_weight'.*possible.*body_mass"):
        physics.reset(qpos, qvel, overrides={"body_weight": 1.0})
    with pytest.raises(ValueError, match=r"body_mass.*\(\), but.*\(8,\)"):
        physics.reset(qpos, qvel, overrides={"body_mass": 1.0})
    with pytest.raises(ValueError, match="'xfrc_applied'.*possible.*eq_active"):
        physics.reset(qpos, qvel, xfrc_applied=jnp.zeros((8, 6)))
    state = jax.eval_shape(physics.reset, qpos, qvel)
    ctrl = jnp.zeros(model.nu)
    with pytest.raises(ValueError, match="'eq_activ'.*possible.*eq_active"):
        physics.step(state, ctrl, eq_activ=0)
    with pytest.raises(ValueError, match=r"eq_active.*\(3,\), but.*\(2,\)"):
        physics.step(state, ctrl, eq_active=jnp.ones(3))


def test_a_model_offers_only_changes_of_what_it_has():
    model = mujoco.MjModel.from_xml_string(
        """<mujoco><worldbody><body name="a"><joint name="a"/><geom size="1"/></body>
        <body name="b"><joint name="b"/><geom size="1"/></body></worldbody>
        <tendon><fixed><joint joint="a" coef="1"/></fixed></tendon></mujoco>"""
    )
    assert change_names(model) == ["qpos", "qvel", "xfrc_applied", "qfrc_applied"]
    names = override_names(model)
    assert "body_mass" in names
    assert not {"eq_data", "pair_friction", "actuator_gear", "body_pos"} & set(names)
