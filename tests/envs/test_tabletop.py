"""The manipulation tasks on C MuJoCo; tests of MJX are slow, it compiles for long."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.demonstrations.scripts.tabletop import SCRIPTS, reach_of
from dppo_jax.envs import make_task
from dppo_jax.envs.tasks import can, lift, square, tabletop, transport
from dppo_jax.envs.tasks.tabletop import Body, Hand, Scene
from dppo_jax.errors import SettingsError
from dppo_jax.types import Env

MODULES = {"lift": lift, "can": can, "square": square}
SIZES = {"lift": 19, "can": 23, "square": 23}
DOWN = np.array([0.0, 1.0, 0.0, 0.0], np.float32)
UPRIGHT = np.array([1.0, 0.0, 0.0, 0.0], np.float32)
NUM = 16
# Control steps in which the scripts solve a task.
STEPS = {"lift": 80, "can": 220, "square": 200}


class Task(NamedTuple):
    """A task with its functions for many environments, each compiled once."""

    name: str
    env: Env
    reset: Callable[..., Any]
    step: Callable[..., Any]


@pytest.fixture(scope="module", params=sorted(MODULES))
def task(request):
    env = make_task(request.param, engine="mujoco")
    reset, step = (jax.jit(jax.vmap(f)) for f in (env.reset, env.step))
    return Task(request.param, env, reset, step)


def test_sizes_are_those_of_robomimic(task):
    assert task.env.obs_shape == {"state": (SIZES[task.name],)}
    assert task.env.action_shape == (7,)


def test_starts_fill_the_ranges_and_depend_on_the_key_alone(task):
    keys = jax.random.split(jax.random.key(0), NUM)
    obs = np.asarray(task.reset(keys).obs["state"])
    assert obs.shape == (NUM, SIZES[task.name])
    ranges = {
        "lift": ((-0.03, -0.03), (0.03, 0.03)),
        "can": ((-0.045, -0.445), (0.245, -0.055)),
        "square": ((-0.115, 0.11), (-0.11, 0.225)),
    }
    low, high = np.float32(ranges[task.name])
    place = obs[:, 9:11]
    assert (place >= low).all() and (place <= high).all()
    assert (np.ptp(place, axis=0) > 0.7 * (high - low)).all()
    yaw = 2 * np.arctan2(obs[:, 14], obs[:, 15])
    assert np.ptp(yaw) > 0.8 * 2 * np.pi and np.abs(yaw).max() <= np.pi + 1e-5
    # The hand points down near the home position, with open fingers.
    np.testing.assert_allclose(obs[:, 3], 1.0, atol=0.01)
    np.testing.assert_allclose(obs[:, 7:9], [[0.04, -0.04]] * NUM, atol=1e-6)
    assert 0.003 < obs[:, :3].std(axis=0).max() < 0.03
    again = np.asarray(task.reset(keys[::-1]).obs["state"])
    np.testing.assert_array_equal(again[::-1], obs)


def test_an_untouched_scene_stays_as_it_is(task):
    """Without actions hand and object move by less than a millimetre in a second."""
    state = task.reset(jax.random.split(jax.random.key(1), NUM))
    first = np.asarray(state.obs["state"])
    for _ in range(20):
        state, outcome = task.step(state, jnp.tile(jnp.eye(7)[6] * -1, (NUM, 1)))
        assert not outcome.reward.any() and not outcome.metrics["success"].any()
    last = np.asarray(state.obs["state"])
    np.testing.assert_allclose(last[:, :3], first[:, :3], atol=1e-3)
    np.testing.assert_allclose(last[:, 9:16], first[:, 9:16], atol=2e-3)


def test_the_script_solves_the_task_and_earns_one_per_solved_step(task):
    script = SCRIPTS[task.name]
    act = jax.jit(
        jax.vmap(functools.partial(script.act, noise=0.0, reach=reach_of({})))
    )
    keys = jax.random.split(jax.random.key(2), NUM)
    state, memory = task.reset(keys), jax.vmap(script.start)(keys)
    steps = []
    for _ in range(STEPS[task.name]):
        action, memory = act(memory, keys, state.obs["state"])
        state, outcome = task.step(state, action)
        steps.append(jax.tree.map(np.asarray, outcome))
    steps = jax.tree.map(lambda *leaves: np.stack(leaves), *steps)
    assert steps.metrics["success"][-1].mean() > 0.9
    np.testing.assert_array_equal(steps.reward, steps.metrics["solved"])
    np.testing.assert_array_equal(
        steps.metrics["success"], np.maximum.accumulate(steps.reward)
    )
    assert set(np.unique(steps.reward)) == {0.0, 1.0}
    assert not steps.terminated.any() and not steps.truncated.any()


def test_an_episode_may_end_at_its_success():
    """A cube that starts in the air is a success at once."""
    high = lift.TASK._replace(place=lambda key: {"cube": body(0.0, 0.0, 0.95)})
    env = tabletop.make_table_env(high, engine="mujoco", end_on_success=True)
    state, outcome = jax.jit(lambda key: env.step(env.reset(key), jnp.zeros(7)))(
        jax.random.key(0)
    )
    assert outcome.reward == outcome.terminated == state.success == 1


def body(x, y, z):
    return Body(jnp.array([x, y, z]), jnp.asarray(UPRIGHT))


def hand(x, y, z):
    return Hand(jnp.array([x, y, z]), jnp.asarray(DOWN), jnp.zeros(2))


def test_lift_is_solved_four_centimetres_above_the_table():
    def solved(z):
        return bool(lift.solved(Scene((hand(0, 0, z),), {"cube": body(0, 0, z)})))

    assert not solved(0.8399) and solved(0.8401)


def test_can_is_solved_in_its_compartment_once_let_go():
    def solved(x, y, z=0.85, distance=0.05):
        bodies = {"can": body(x, y, z)}
        return bool(can.solved(Scene((hand(x, y, z + distance),), bodies)))

    assert solved(0.2, 0.4)
    assert not solved(0.2, 0.4, distance=0.04)
    assert not solved(0.2, 0.4, z=0.91)
    # The other compartments, and beyond the walls.
    for x, y in ((0.05, 0.4), (0.2, 0.2), (0.3, 0.4), (0.2, 0.53), (0.1, -0.25)):
        assert not solved(x, y)


def test_square_is_solved_low_around_the_peg():
    def solved(x, y, z=0.84, distance=0.05):
        bodies = {"nut": body(x, y, z)}
        return bool(square.solved(Scene((hand(x, y, z + distance),), bodies)))

    assert solved(0.25, 0.08)
    assert not solved(0.25, 0.08, z=0.871)
    assert not solved(0.25, 0.08, distance=0.04)
    assert not solved(0.261, 0.1) and not solved(0.23, 0.131)


def test_transport_has_two_arms_and_the_sizes_of_robomimic():
    env = make_task("transport", engine="mujoco")
    assert env.obs_shape == {"state": (59,)} and env.action_shape == (14,)
    model = tabletop.build_model(transport.TASK)
    assert model.nu == 18 and model.nq == 18 + 3 * 7


def test_objects_of_transport_start_in_and_on_their_bins():
    placed = jax.jit(jax.vmap(transport.place))(jax.random.split(jax.random.key(0), 64))
    for name, centre in (("payload", (0.18, -0.47)), ("trash", transport.TARGET)):
        away = np.asarray(placed[name].position)[:, :2] - np.float32(centre)
        assert 0.0045 < np.abs(away).max() <= 0.00501
        assert (np.asarray(placed[name].position)[:, 2] < 0.8 + transport.LOW).all()
    turn = 2 * np.arcsin(np.asarray(placed["trash"].quaternion)[:, 3])
    assert 0.8 < np.abs(turn).max() <= 0.3 * np.pi + 1e-5
    # The lid rests on the walls.
    height = np.asarray(placed["lid"].position)[:, 2]
    np.testing.assert_allclose(height, 0.8 + transport.BIN_HEIGHT + 0.006, atol=1e-6)


def test_transport_is_solved_with_both_objects_in_their_bins():
    def solved(payload, trash):
        hands = (hand(0, 0, 1), hand(0, 0, 1))
        bodies = {"payload": body(*payload), "trash": body(*trash)}
        bodies["lid"] = body(0.2, -0.45, 0.9)
        scene = Scene(hands, bodies)
        seen = np.asarray(transport.observe(scene))
        assert seen.shape == (41,)
        # Whether each is where it belongs is observed too.
        assert bool(seen[27:29].all()) == bool(transport.solved(scene))
        np.testing.assert_allclose(seen[14:17], [0.2, -0.45, 0.93], atol=1e-6)
        return bool(transport.solved(scene))

    target, trash = (-0.2, 0.45, 0.82), (0.2, 0.45, 0.82)
    assert solved(target, trash)
    assert not solved(target, target) and not solved(trash, trash)
    assert not solved((-0.2, 0.45, 0.86), trash)
    assert not solved((-0.2, 0.57, 0.82), trash)


def test_observations_of_the_object_are_in_the_frames_of_robosuite():
    """A hand that points down sees +y at -y and what is below at +z."""
    scene = Scene((hand(0.1, 0.0, 1.0),), {"can": body(0.2, 0.3, 0.85)})
    seen = np.asarray(can.observe(scene))
    np.testing.assert_allclose(seen[:7], [0.2, 0.3, 0.85, 0, 0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(seen[7:10], [0.1, -0.3, 0.15], atol=1e-6)
    # Half a turn about x, scalar last.
    np.testing.assert_allclose(np.abs(seen[10:]), [1, 0, 0, 0], atol=1e-6)
    cube = Scene((hand(0.1, 0.0, 1.0),), {"cube": body(0.2, 0.3, 0.85)})
    np.testing.assert_allclose(lift.observe(cube)[7:], [-0.1, -0.3, 0.15], atol=1e-6)


def test_wrong_settings_are_named():
    with pytest.raises(SettingsError, match=r"action_scale=\(0.05, 0\)"):
        make_task("lift", action_scale=(0.05, 0))
    with pytest.raises(SettingsError, match="response=0"):
        make_task("lift", response=0)
    with pytest.raises(SettingsError, match="env.options.speed.*action_scale"):
        make_task("lift", speed=1)


def test_only_listed_pairs_touch():
    """A pair for every two geoms would need hundreds of contacts on MJX."""
    for module in MODULES.values():
        model = tabletop.build_model(module.TASK)
        assert not model.geom_contype.any() and not model.geom_conaffinity.any()
        assert 0 < model.npair <= 16


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODULES))
def test_engines_agree_without_contacts_of_the_hand(name):
    """The same actions move the hand alike on MJX and C MuJoCo.

    Rounding decides which points of the rim of an upright can touch the table at first,
    in both engines, so objects are compared after they have settled.
    """
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (10, 2, 7)) * [1, 1, 0.2, 1, 1, 1, 1]
    actions[..., 2] += 0.3

    def play(engine):
        env = make_task(name, engine=engine)

        @jax.jit
        def run(actions):
            state = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 2))
            return jax.lax.scan(jax.vmap(env.step), state, actions)[1].obs["state"]

        return np.asarray(run(jnp.float32(actions)))

    found, expected = play("mjx"), play("mujoco")
    hand = slice(0, 9)
    np.testing.assert_allclose(found[..., hand], expected[..., hand], atol=2e-3)
    np.testing.assert_allclose(found[3:], expected[3:], atol=2e-3)
