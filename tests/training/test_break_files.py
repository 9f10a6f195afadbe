"""A simulation that breaks leaves state and action, and the step can be repeated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.envs.action_noise import disturb_actions
from dppo_jax.envs.core import vectorize
from dppo_jax.envs.quarantine import quarantine
from dppo_jax.envs.tasks.locomotion import make_runner
from dppo_jax.envs.wrappers import chunk_actions
from dppo_jax.errors import SettingsError
from dppo_jax.rollout import env_keys, rollout
from dppo_jax.training import break_files, parallel, runs
from dppo_jax.training.break_files import load_break, save_break
from dppo_jax.training.loop import train
from dppo_jax.types import BREAK, Break
from tests import breaking, tiny
from tests.counting import count, counter

BOUNDS = tiny.NORMALIZER
# The second chunk of an episode breaks, after its first action.
WORLD = dict(breaks_at=2 * tiny.CHUNK)


def one(bounds):
    return breaking.breaking_env(1, **WORLD)


def files(run_dir):
    paths = run_dir.glob("broken/*")
    return sorted(paths, key=lambda path: int(path.stem))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """PPO in 8 environments, a third of whose episodes break; 4 chunks an iteration."""
    run_dir = tmp_path_factory.mktemp("run")
    algorithm = tiny.make_tiny_ppo(env=breaking.breaking_env(8, **WORLD))
    train(
        algorithm,
        algorithm.init(jax.random.key(0)),
        run_dir=run_dir,
        num_iterations=2,
        normalizer=BOUNDS,
    )
    return run_dir


def test_a_run_keeps_the_first_break_of_an_iteration_and_it_breaks_again(run):
    assert [path.name for path in files(run)] == ["1.npz", "2.npz"]
    for path in files(run):
        env, state, action = load_break(path, one)
        before = state.env.env.env
        assert before.breaks[0] and before.step[0] == tiny.CHUNK
        assert np.isfinite(state.obs["state"]).all()
        assert np.load(path)["chunk"] == 1
        _, outcome = jax.jit(env.step)(state, action)
        assert outcome.metrics["diverged"] == 1
        _, sound = jax.jit(env.step)(tiny.start(env, jax.random.key(1)), action)
        assert sound.metrics["diverged"] == 0


def test_the_state_and_the_action_are_those_of_the_roll_out():
    """Compares with a roll-out that keeps everything."""
    env = breaking.breaking_env(8, **WORLD)

    def act(keys, obs):
        draw = jax.vmap(lambda key: jax.random.uniform(key, env.action_shape))(keys)
        return draw, ()

    def go(start, keys):
        state, chunks, metrics = rollout(env, act, start, keys, 3)
        return state, chunks, metrics, rollout(env, act, start, keys, 1)[0]

    start = tiny.start(env, jax.random.key(0))
    keys = env_keys(jax.random.key(1), 8)
    _, chunks, metrics, before = jax.jit(go)(start, keys)
    broken = metrics[BREAK]
    first = int(np.argmax(metrics["diverged"][1]))
    assert not metrics["diverged"][0].any() and metrics["diverged"][1, first]
    assert (broken.found, broken.chunk, broken.env) == (True, 1, first)
    np.testing.assert_array_equal(broken.action, chunks.action[1, first])
    expected = jax.tree.map(lambda x: x[first], before)
    expected = expected._replace(key=jax.random.key_data(expected.key))
    assert tiny.same(broken.state, expected)


def test_a_step_under_noise_on_actions_is_repeated_with_its_noise(tmp_path):
    def make(bounds, num_envs=1):
        env = breaking.breaking_env(num_envs, **WORLD)
        return disturb_actions(env, scale=0.5, start=0, ramp=0, num_chunks=1)

    env, keys = make(None, 8), env_keys(jax.random.key(1), 8)

    def act(keys, obs):
        return jnp.full((8, *env.action_shape), 0.25), ()

    start = tiny.start(env, jax.random.key(0))
    _, chunks, metrics = jax.jit(lambda x: rollout(env, act, x, keys, 2))(start)
    broken = jax.device_get(metrics[BREAK])
    path = save_break(tmp_path, 1, broken, BOUNDS)
    again, before, action = load_break(path, make)
    np.testing.assert_array_equal(action, 0.25)
    _, outcome = jax.jit(again.step)(before, action)
    assert outcome.metrics["diverged"] == 1 and outcome.metrics["action_noise"] == 0.5
    # The first action of the chunk, before it broke, as the environment saw it.
    seen = outcome.obs["state"][0]
    np.testing.assert_array_equal(seen, chunks.next_obs["state"][1, int(broken.env)])
    assert abs(seen[0, 0] - 0.25) > 1e-3


def test_an_older_file_lacks_what_was_added_later(run, tmp_path, monkeypatch):
    path, arrays = tmp_path / "1.npz", dict(np.load(files(run)[0]))
    (name,) = [name for name in arrays if name.endswith("/breaks")]
    del arrays[name]
    np.savez(path, **arrays)
    with pytest.raises(SettingsError, match="breaks has shape none"):
        load_break(path, one)
    monkeypatch.setattr(break_files, "is_added", lambda x: name.endswith(x))
    _, state, _ = load_break(path, one)
    assert not state.env.env.env.breaks.any()


@pytest.mark.parametrize(
    "engine", ["mujoco", pytest.param("mjx", marks=pytest.mark.slow)]
)
def test_a_physics_state_breaks_again(engine, tmp_path, monkeypatch):
    """One of two simulations of Hopper has a position of 1e9."""
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log file.

    def make(bounds, num_envs=1):
        task = quarantine(make_runner("hopper", engine=engine))
        return vectorize(chunk_actions(task, 1), num_envs)

    env = make(None, 2)
    state = tiny.start(env, jax.random.key(0))
    physics = state.env.physics
    if engine == "mujoco":
        raw = np.array(physics.raw).view(np.float64).copy()
        raw[1, 7] = 1e9  # The velocity after the time and six positions.
        physics = physics._replace(raw=jnp.asarray(raw.view(np.uint32)))
    else:
        physics = physics._replace(qvel=physics.qvel.at[1, 0].set(1e9))
    state = state._replace(env=state.env._replace(physics=physics))

    def act(keys, obs):
        return jnp.full((2, 1, 3), 0.25), ()

    keys = env_keys(jax.random.key(1), 2)
    _, _, metrics = jax.jit(lambda state: rollout(env, act, state, keys, 1))(state)
    broken = jax.device_get(metrics[BREAK])
    assert broken.found and broken.env == 1
    path = save_break(tmp_path, 7, broken, BOUNDS)
    assert path == tmp_path / "broken" / "7.npz"
    again, before, action = load_break(path, make)
    np.testing.assert_array_equal(action, np.full((1, 1, 3), 0.25))
    np.testing.assert_array_equal(before.env.physics.qpos[0], physics.qpos[1])
    _, outcome = jax.jit(again.step)(before, action)
    assert outcome.metrics["diverged"] == 1


def test_keys_get_back_the_generator_of_their_environment():
    for generator in ("threefry2x32", "rbg"):
        key = jax.random.key(3, impl=generator)
        like = jax.eval_shape(lambda key: key, key)
        again = break_files._as_before(jax.random.key_data(key), like)
        assert again.dtype == key.dtype and tiny.same(again, key)


def test_of_many_devices_the_first_that_found_a_break_tells_it():
    found = jnp.array([False, True, True])
    tree = {"found": found, "x": jnp.array([jnp.nan, 5, 7]), "env": jnp.arange(3)}
    shards = parallel._SHARDS.set(3)
    try:
        told = jax.vmap(parallel.first_found, axis_name="envs")(found, tree)
    finally:
        parallel._SHARDS.reset(shards)
    assert told["found"].dtype == bool and told["found"].all()
    assert told["x"].tolist() == [5, 5, 5] and told["env"].tolist() == [1, 1, 1]


def reporting(found, num_seeds=0):
    """`counter` whose iterations report a break in environment 1, of each seed."""

    def step(state):
        state, metrics = counter().step(state)
        broken = Break(
            jnp.bool_(True), jnp.int32(1), jnp.int32(0), {"x": state["x"]}, 0
        )
        metrics |= {"diverged": jnp.float32(found), BREAK: broken}
        return state, metrics

    algorithm = counter()._replace(step=step)
    if not num_seeds:
        return algorithm
    return algorithm._replace(
        init=lambda key: jax.vmap(lambda _: counter().init(None))(
            jnp.arange(num_seeds)
        ),
        step=jax.vmap(step),
    )


def test_a_run_keeps_only_its_first_breaks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(break_files, "MOST", 3)
    count(tmp_path, 5, reporting(1.0))
    assert [path.stem for path in files(tmp_path)] == ["1", "2", "3"]
    said = capsys.readouterr().out
    assert said.count("a simulation broke") == 3 and "broken/1.npz has" in said
    count(tmp_path, 6, reporting(1.0))
    assert len(files(tmp_path)) == 3


def test_a_break_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(runs, "save_break", full)
    count(tmp_path, 2, reporting(1.0))
    said = capsys.readouterr().out
    assert said.count("warning: a broken step was not written: no space left") == 2


def test_every_seed_keeps_its_own_breaks(tmp_path):
    run_dirs = [str(tmp_path / name) for name in ("a", "b")]
    algorithm = reporting(1.0, num_seeds=2)
    train(
        algorithm,
        algorithm.init(None),
        run_dir=run_dirs,
        num_iterations=1,
        normalizer=BOUNDS,
    )
    for run_dir in ("a", "b"):
        (path,) = files(tmp_path / run_dir)
        assert np.load(path)["state/x"] == 2.0


def test_nothing_is_written_where_nothing_broke(tmp_path):
    count(tmp_path, 2, reporting(0.0))
    assert files(tmp_path) == []
    nothing = Break(False, 0, 0, {}, 0)
    assert save_break(tmp_path, 1, nothing, BOUNDS) is None


def test_a_step_of_another_environment_is_refused(run, tmp_path):
    path = files(run)[0]
    other = breaking.breaking_task("nan_obs")
    with pytest.raises(SettingsError, match="the step in .* settings of the run"):
        load_break(path, lambda bounds: vectorize(other, 1))
    with pytest.raises(SettingsError, match="8 environments.*num_envs=1"):
        load_break(path, lambda bounds: breaking.breaking_env(8, **WORLD))
    cut = tmp_path / "cut.npz"
    cut.write_bytes(path.read_bytes()[:-100])
    for bad in (cut, tmp_path / "none.npz"):
        with pytest.raises(SettingsError, match=bad.name):
            load_break(bad, one)
