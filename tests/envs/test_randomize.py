"""Other dynamics, delays and noise in every episode."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from dppo_jax.envs import build, make_task, randomize, vectorize
from dppo_jax.envs.build import default_config, make_env
from dppo_jax.envs.physics import PhysicsState
from dppo_jax.errors import SettingsError
from dppo_jax.normalize import Normalizer
from tests import tiny

KEY = jax.random.key(0)
IDLE = np.zeros(3, np.float32)


def settings(**changes):
    config = randomize.default_config()
    config.update(changes)
    return config


def hopper(engine="mujoco", **changes):
    return randomize.randomize(
        make_task("hopper", engine=engine), settings(**changes), IDLE
    )


def physics_of(state):
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, PhysicsState))
    return next(x for x in leaves if isinstance(x, PhysicsState))


def test_without_settings_the_environment_is_the_same_object():
    env = make_task("hopper")
    assert randomize.randomize(env, settings(), IDLE) is env


def test_a_factor_gives_the_trajectory_of_a_model_with_these_masses():
    """Compared with a plain loop of C MuJoCo over a model that was changed by hand."""
    env = hopper(mass=(1.5, 1.5), gain=(0.8, 0.8), friction=(0.5, 0.5))
    plain = make_task("hopper")
    model = plain.physics.model.__copy__()
    for name, factor in (
        *(("body_mass", 1.5), ("body_inertia", 1.5)),
        *(("actuator_gainprm", 0.8), ("geom_friction", 0.5)),
    ):
        getattr(model, name)[...] *= factor
    data = mujoco.MjData(model)
    mujoco.mj_setConst(model, data)
    state = env.reset(KEY)
    own = physics_of(state)
    data.qpos[:], data.qvel[:] = own.qpos, own.qvel
    step = jax.jit(env.step)
    for _ in range(10):
        state, outcome = step(state, jnp.array([0.5, -0.5, 1.0]))
        data.ctrl[:] = 0.5, -0.5, 1.0
        mujoco.mj_step(model, data, 4)
    np.testing.assert_allclose(outcome.obs["state"][:5], data.qpos[1:], atol=1e-4)
    other = physics_of(jax.jit(plain.step)(plain.reset(KEY), jnp.zeros(3))[0])
    assert not other.overrides


def test_every_episode_draws_its_own_factors_from_its_key():
    env = vectorize(hopper(mass=(0.5, 2.0), damping=(0.9, 1.1)), 16)
    state = env.reset(jax.random.split(KEY, 16))
    own = physics_of(state.env).overrides
    nominal = make_task("hopper").physics.model
    factors = own["body_mass"][:, 1:] / nominal.body_mass[1:]
    assert 0.5 <= factors.min() < 0.8 and 1.6 < factors.max() <= 2.0
    # All bodies of an episode share a factor, and inertias follow the masses.
    np.testing.assert_allclose(factors, factors[:, :1] + 0 * factors, rtol=1e-5)
    inertias = own["body_inertia"][:, 1:] / nominal.body_inertia[1:]
    np.testing.assert_allclose(inertias[..., 0], factors, rtol=1e-5)
    damping = own["dof_damping"][:, 3:] / nominal.dof_damping[3:]
    assert 0.9 <= damping.min() < damping.max() <= 1.1
    assert np.corrcoef(damping[:, 0], factors[:, 0])[0, 1] < 0.9
    again = env.reset(jax.random.split(KEY, 16))
    assert tiny.same(physics_of(again.env).overrides, own)


def test_parts_may_have_factors_of_their_own():
    own = physics_of(hopper(mass=(0.5, 2.0), shared=False).reset(KEY)).overrides
    nominal = make_task("hopper").physics.model
    factors = own["body_mass"][1:] / nominal.body_mass[1:]
    assert np.unique(np.round(factors, 3)).size == len(factors)
    inertias = own["body_inertia"][1:, 0] / nominal.body_inertia[1:, 0]
    np.testing.assert_allclose(inertias, factors, rtol=1e-5)


def test_an_action_acts_after_its_delay(counter):
    env = randomize.randomize(counter(), settings(delay=(2, 2)), np.array([0.5]))
    state, totals = env.reset(KEY), []
    for action in (1.0, 2.0, 4.0):
        state, outcome = env.step(state, jnp.array([action]))
        totals.append(float(outcome.metrics["total"]))
    # Two idle actions, then the first one.
    assert totals == [0.5, 1.0, 2.0]


def test_delays_are_drawn_from_all_of_their_range(counter):
    env = randomize.randomize(counter(), settings(delay=(1, 3)), np.zeros(1))
    delays = jax.vmap(env.reset)(jax.random.split(KEY, 64)).delay
    assert sorted(set(delays.tolist())) == [1, 2, 3]


def test_noise_has_the_configured_size_and_leaves_the_simulation_alone(counter):
    env = randomize.randomize(counter(), settings(obs_noise=0.1), np.zeros(1))
    states = jax.vmap(env.reset)(jax.random.split(KEY, 500))
    _, outcomes = jax.vmap(env.step)(states, jnp.ones((500, 1)))
    for obs, true in ((states.obs, 0.0), (outcomes.obs, 1.0)):
        noise = obs["state"] - true
        assert abs(noise.std() - 0.1) < 0.02 and abs(noise.mean()) < 0.02
    np.testing.assert_array_equal(outcomes.metrics["total"], 1.0)
    # The next step has other noise.
    assert (
        np.corrcoef(states.obs["state"][:, 0], outcomes.obs["state"][:, 0])[0, 1] < 0.2
    )
    acted = randomize.randomize(counter(), settings(action_noise=0.1), np.zeros(1))
    states = jax.vmap(acted.reset)(jax.random.split(KEY, 500))
    _, outcomes = jax.vmap(acted.step)(states, jnp.ones((500, 1)))
    assert abs(outcomes.metrics["total"].std() - 0.1) < 0.02
    np.testing.assert_array_equal(
        outcomes.obs["state"][:, 0], outcomes.metrics["total"]
    )


def test_configurations_reach_the_environment_and_idle_is_zero_in_task_units():
    config = default_config()
    config.task, config.max_steps = "avoid", 8
    config.randomization.update(gain=(0.9, 1.1), delay=(1, 1))
    bounds = Normalizer(
        -np.ones(4), np.ones(4), np.array([-0.01, -0.01]), np.array([0.01, 0.012])
    )
    env = make_env(config, normalizer=bounds, chunk=2, num_envs=3)
    state = jax.jit(env.reset)(jax.random.split(KEY, 3))
    assert set(physics_of(state.env).overrides) == {
        "actuator_gainprm",
        "actuator_biasprm",
    }
    # The first control step still executes an action of zero, whatever is asked for.
    low, high = (
        jax.jit(env.step)(state, jnp.full((3, 2, 2), value))[1].obs["state"]
        for value in (-1.0, 1.0)
    )
    moved = (high - low)[:, -1, :2]  # Desired positions differ by one action, not two.
    np.testing.assert_allclose(moved, np.array([[0.02, 0.022]] * 3), rtol=1e-3)


def starts(task, **changes):
    """Positions of the physics at the start of 32 episodes."""
    config = default_config()
    config.task, config.engine = task, "mujoco"
    config.randomization.update(changes)
    env = build._make_disturbed(config)
    states = jax.jit(jax.vmap(env.reset))(jax.random.split(KEY, 32))
    return np.asarray(physics_of(states).qpos)


@pytest.mark.parametrize(
    "task, part, plain, noisy",
    [
        # Half-widths of uniform noise: the largest deviation is nearly as large.
        ("avoid", slice(0, 2), 0.0, 0.02),
        ("hopper", slice(2, 6), 5e-3, 0.05 + 5e-3),
    ],
)
def test_noise_on_the_initial_state_is_added_to_that_of_the_task(
    task, part, plain, noisy
):
    width = noisy - plain
    middle = starts(task, initial_state=0.0).mean(axis=0)
    for spread, largest in ((0.0, plain), (width, noisy)):
        away = np.abs(starts(task, initial_state=spread) - middle)[:, part].max()
        assert 0.9 * largest <= away <= 1.15 * largest + 1e-6


def test_noise_on_the_initial_state_turns_the_joints_of_an_arm():
    """The standard deviation of seven joints: 0.1 and the 0.02 of the task itself."""
    free_can = 7
    turned = starts("can", initial_state=0.1)[:, free_can : free_can + 7]
    np.testing.assert_allclose(turned.std(axis=0).mean(), 0.12, rtol=0.1)


def test_tasks_that_know_no_noise_on_the_initial_state_say_so():
    config = default_config()
    config.task, config.randomization.initial_state = f"{tiny.__file__}:point_task", 0.1
    with pytest.raises(SettingsError, match="initial_noise, which .* does not take"):
        build._make_disturbed(config)
    build.make_single(config)  # Demonstrations are collected without it.


def fails(*, initial_noise=0.0):
    raise SettingsError(f"initial_noise={initial_noise} is too large for this task.")


def takes_any(**options):
    raise SettingsError(f"got {options}")


@pytest.mark.parametrize(
    "task, message",
    [
        # What a task says about its own argument is not replaced.
        (f"{__file__}:fails", "initial_noise=0.1 is too large for this task"),
        (f"{__file__}:takes_any", "got {'initial_noise': 0.1}"),
        ("brax:ant", "initial_noise, which brax:ant does not take"),
        ("hoper", "Unknown task 'hoper'"),
    ],
)
def test_only_a_task_without_the_argument_is_said_to_lack_it(task, message):
    config = default_config()
    config.task, config.randomization.initial_state = task, 0.1
    with pytest.raises(SettingsError, match=message):
        build._make_disturbed(config)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(initial_state=-0.1), "initial_state=-0.1 must be 0 or positive"),
        (dict(mass=(0.0, 1.0)), r"mass=\(0.0, 1.0\) must be two positive numbers"),
        (dict(mass=(2.0, 1.0)), "the lower one first"),
        (dict(friction=(1.0,)), "friction=(.*) must be two numbers"),
        (dict(delay=(0, -1)), "delay=(.*) must be two numbers of control steps"),
        (dict(obs_noise=-0.1), "obs_noise=-0.1 must be 0 or positive"),
        (dict(action_noise=float("nan")), "action_noise=nan must be 0 or positive"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(SettingsError, match=message):
        hopper(**changes)


def test_tasks_that_cannot_be_randomized_are_refused(counter):
    with pytest.raises(
        SettingsError, match="mass changes a MuJoCo model, but this task"
    ):
        randomize.randomize(counter(), settings(mass=(0.9, 1.1)), np.zeros(1))
    config = default_config()
    config.task, config.randomization.obs_noise = "gymnasium:Hopper-v5", 0.1
    with pytest.raises(SettingsError, match="does not work with gymnasium:Hopper-v5"):
        make_env(config, normalizer=None, chunk=1, num_envs=1)
    model = make_task("hopper").physics.model.__copy__()
    model.dof_damping[...] = 0
    env = make_task("hopper")
    env = env._replace(physics=env.physics._replace(model=model))
    with pytest.raises(SettingsError, match="has no dof_damping other than 0"):
        randomize.randomize(env, settings(damping=(0.9, 1.1)), IDLE)
