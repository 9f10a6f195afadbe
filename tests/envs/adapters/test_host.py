import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from jax.sharding import AxisType, PartitionSpec

from dppo_jax.envs.adapters.gymnasium import make_gymnasium
from dppo_jax.envs.adapters.host import host_vec_env
from dppo_jax.envs.check import check_env
from dppo_jax.envs.core import vectorize
from dppo_jax.envs.quarantine import quarantine
from dppo_jax.envs.wrappers import (
    chunk_actions,
    normalize,
    stack_observations,
    time_limit,
)
from dppo_jax.errors import SettingsError
from dppo_jax.normalize import Normalizer
from tests import tiny
from tests.conftest import REPOSITORY
from tests.envs.adapters.laws import Counter, Mixed, bounds, run_env

KEY = jax.random.key(0)
ONE = jnp.ones((1, 1, 1))
# Totals from -2 to 8, actions from 0 to 4.
FORWARD = Normalizer(*(np.array([x], np.float32) for x in (-2.0, 8.0, 0.0, 4.0)))


def counters(num_envs=1, *, processes=0, end=1e9, random_start=False, **settings):
    task = make_gymnasium(
        Counter, processes=processes, end=end, random_start=random_start
    )
    return host_vec_env(task, num_envs, **settings)


@pytest.mark.parametrize("processes, terminates", [(0, False), (2, True)])
def test_a_host_environment_equals_the_same_pure_one(counter, processes, terminates):
    """Chunks, history, normaliser, time limit, resets, metrics, traces, quarantine."""
    num_envs, chunk, history, max_steps = 3, 2, 3, 5
    normalizer = Normalizer(*(np.array([x], np.float32) for x in (-2.0, 8.0, 0.0, 4.0)))
    pure = normalize(quarantine(counter(end=10.0)), normalizer)
    pure = time_limit(pure, max_steps, terminates=terminates)
    pure = stack_observations(pure, history)
    pure = vectorize(chunk_actions(pure, chunk, ("total",)), num_envs)
    host = counters(
        num_envs,
        **dict(processes=processes, end=10.0, chunk=chunk, history=history),
        **dict(limit_terminates=terminates),
        **dict(max_steps=max_steps, normalizer=normalizer, trace=("total",)),
    )
    assert host.obs_shape == pure.obs_shape and host.max_steps == pure.max_steps == 3
    assert host.action_shape == pure.action_shape
    actions = jax.random.uniform(KEY, (12, num_envs, chunk, 1), minval=-1.0)
    actions = actions.at[3, 1].set(jnp.nan).at[7, 2, 1].set(-jnp.inf)
    expected, found = (run_env(env, actions) for env in (pure, host))
    assert expected[1].metrics["diverged"].sum() == 2
    ends = expected[1].terminated.sum(), expected[1].truncated.sum()
    assert min(ends) > 1  # Both kinds of ends occurred.
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
        expected,
        found,
    )


def test_the_last_observation_is_returned_and_the_next_one_acted_on():
    env = counters(2, end=2.0)
    state, step = env.step(tiny.start(env, KEY), jnp.array([[[2.0]], [[1.0]]]))
    np.testing.assert_array_equal(step.obs["state"][:, 0], [[2.0], [1.0]])
    np.testing.assert_array_equal(step.terminated, [1.0, 0.0])
    np.testing.assert_array_equal(state.obs["state"][:, 0], [[0.0], [1.0]])


def test_an_environment_does_not_depend_on_the_number_of_others():
    """Environment i of 2, in this process, is environment i of 5 in two others."""

    def starts(num_envs, processes):
        env = counters(num_envs, processes=processes, end=3.0, random_start=True)
        return run_env(env, jnp.ones((8, num_envs, 1, 1)), seed=7)[1].obs["state"]

    two, five = starts(2, 0), starts(5, 2)
    np.testing.assert_array_equal(two, five[:, :2])
    assert len(np.unique(np.asarray(five) % 1)) > 5  # resets differ, too


def test_a_reset_restarts_all_from_its_key():
    env = counters(3, random_start=True)
    one, two = tiny.start(env, KEY), tiny.start(env, jax.random.key(1))
    assert len(np.unique(np.concatenate([one.obs["state"], two.obs["state"]]))) == 6
    np.testing.assert_array_equal(tiny.start(env, KEY).obs["state"], one.obs["state"])


def test_one_program_serves_every_step():
    env = counters(2, chunk=2)
    step, state = jax.jit(env.step), tiny.start(env, KEY)
    for _ in range(3):
        state, _ = step(state, jnp.ones((2, 2, 1)))
    assert step._cache_size() == 1
    np.testing.assert_array_equal(state.obs["state"], jnp.full((2, 1, 1), 6.0))


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", ["reset", "step", "both"])
def test_vmap_is_refused_with_a_cure(name, jitted):
    env = counters()
    states = jax.tree.map(lambda x: jnp.stack([x, x]), tiny.start(env, KEY))
    function, arguments = {
        "reset": (env.reset, (jax.random.split(KEY)[:, None],)),
        "step": (env.step, (states, jnp.stack([ONE, ONE]))),
        "both": (
            lambda key: jax.lax.fori_loop(
                0, 3, lambda _, s: env.step(s, ONE)[0], tiny.start(env, key)
            ),
            (jax.random.split(KEY),),
        ),
    }[name]
    function = jax.jit(function) if jitted else function
    with pytest.raises(ValueError, match="vmap.*gymnasium:Counter.*raise num_envs"):
        jax.vmap(function)(*arguments)


def test_shard_map_is_refused_with_a_cure():
    env = counters()
    mesh = jax.make_mesh((1,), ("devices",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec()
    step = jax.shard_map(env.step, mesh=mesh, in_specs=spec, out_specs=spec)
    with pytest.raises(ValueError, match="shard_map.*raise num_envs"):
        step(tiny.start(env, KEY), ONE)


def test_an_old_state_is_refused():
    env = counters()
    old = tiny.start(env, KEY)
    state, _ = env.step(old, ONE)
    with pytest.raises(jax.errors.JaxRuntimeError, match="1 calls old.*or reset"):
        jax.block_until_ready(env.step(old, ONE))
    state, step = env.step(state, ONE)  # The latest state still works.
    np.testing.assert_array_equal(step.obs["state"], [[[2.0]]])


def test_episodes_of_closed_simulators_count_as_truncated():
    env = counters(2, random_start=True)
    state, _ = env.step(tiny.start(env, KEY), jnp.ones((2, 1, 1)))
    other = counters(2, random_start=True)
    begun, step = other.step(state, jnp.ones((2, 1, 1)))
    np.testing.assert_array_equal(step.obs["state"], state.obs["state"])
    np.testing.assert_array_equal(step.truncated, [1.0, 1.0])
    np.testing.assert_array_equal(step.terminated + step.reward, [0.0, 0.0])
    np.testing.assert_array_equal(step.metrics["total"], state.metrics["total"])
    np.testing.assert_array_equal(step.metrics["episode_length"], [1.0, 1.0])
    assert (begun.obs["state"] < 1).all() and (begun.episode_length == 0).all()
    following, step = other.step(begun, jnp.ones((2, 1, 1)))
    np.testing.assert_allclose(step.obs["state"], begun.obs["state"] + 1, rtol=1e-6)
    np.testing.assert_array_equal(step.metrics["episode_return"], [1.0, 1.0])


def test_resuming_is_exact_if_iterations_restart_all_episodes():
    """Iteration 2 is the same with the simulators of iteration 1 and with new ones."""

    def algorithm():
        env = counters(
            4, end=4.0, random_start=True, chunk=tiny.CHUNK, normalizer=FORWARD
        )
        return tiny.make_tiny_ppo(tiny.tiny_gaussian_policy(), env)

    first, second = algorithm(), algorithm()
    saved, _ = tiny.run(first, 1)
    (one, metrics), (other, _) = (
        tiny.iterate(tiny.compiled(x), saved) for x in (first, second)
    )
    assert tiny.same(one._replace(env=one.env.obs), other._replace(env=other.env.obs))
    assert metrics["num_episodes"] > 0 and metrics["params_change"] > 0


def test_entries_of_a_dictionary_are_concatenated_in_the_given_order():
    task = make_gymnasium(Mixed, processes=0, obs_keys=("b", "a"))
    state = tiny.start(host_vec_env(task, 1), KEY)
    np.testing.assert_array_equal(state.obs["state"], [[[2.0, 2.0, 1.0, 1.0]]])


class Returning(Counter):
    """Returns something else in a step, and a reward in an array."""

    def __init__(self, observation=None, reward=None, space=None):
        super().__init__()
        self.observation, self.reward = observation, reward
        self.observation_space = space or self.observation_space

    def reset(self, **settings):
        obs, info = super().reset(**settings)
        return obs if self.observation is None else self.observation, info

    def step(self, action):
        obs, reward, *rest = super().step(action)
        obs = obs if self.observation is None else self.observation
        return obs, np.array([reward]) if self.reward is None else self.reward, *rest


VECTOR = spaces.Box(-np.inf, np.inf, (1,), np.float32)
PAIR = spaces.Dict([("b", VECTOR), ("a", VECTOR)])


def test_entries_of_a_dictionary_are_in_the_order_of_its_space():
    """Which recordings share, whatever the order in the returned dictionary."""
    one, two = np.ones(1), np.full(1, 2.0)
    for observation in ({"a": one, "b": two}, {"b": two, "a": one}):
        task = make_gymnasium(
            Returning, processes=0, observation=observation, space=PAIR
        )
        state = tiny.start(host_vec_env(task, 1), KEY)
        np.testing.assert_array_equal(state.obs["state"], [[[2.0, 1.0]]])


def test_a_reward_in_an_array_of_one_is_taken():
    env = host_vec_env(make_gymnasium(Returning, processes=0), 1)
    _, step = env.step(tiny.start(env, KEY), 3 * ONE)
    np.testing.assert_array_equal(step.reward, [3.0])
    check_env(Returning())


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            dict(reward=np.ones(2)),
            r"mine: .*the reward array\(\[1., 1.\]\); it must be",
        ),
        (dict(reward="one"), "the reward 'one'; it must be one number"),
        (dict(observation=np.ones(2)), "of 2 numbers, but its .* has 1"),
        (dict(observation={"a": 1}, space=PAIR), r"observation \['a'\], .* with b, a"),
        (dict(observation=np.ones(2), space=PAIR), "observation ndarray, .* with b, a"),
        (dict(observation=["x"]), r"observation \['x'\], which is no array of num"),
    ],
)
def test_what_a_simulator_returns_is_checked_entry_by_entry(changes, message):
    with pytest.raises(SettingsError, match=message):
        check_env(Returning(**changes), "mine")
    with pytest.raises(SettingsError, match=message.removeprefix("mine: ")):
        host_vec_env(make_gymnasium(Returning, processes=0, **changes), 1)


def test_what_is_no_environment_cannot_be_checked():
    with pytest.raises(SettingsError, match="the environment is a int; pass a"):
        check_env(3)


def test_metrics_are_the_numbers_in_info_or_those_named():
    assert set(tiny.start(counters(), KEY).metrics) == {"total"}
    task = make_gymnasium(Counter, processes=0, metrics=("total", "success"))
    env = host_vec_env(task, 1)
    _, step = env.step(tiny.start(env, KEY), ONE)
    assert float(step.metrics["success"][0]) == 0  # a missing metric is 0
    assert float(step.metrics["total"][0]) == 1


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(chunk=0), "chunk=0 must be at least 1"),
        (dict(history=0), "history=0"),
        (dict(max_steps=0), "max_steps=0"),
        (dict(processes=-1), "processes=-1"),
        (dict(trace=("speed",)), r"Cannot trace \['speed'\]; metrics are \['total'\]"),
        (dict(normalizer=bounds(3, 1)), "observation size 3.*has 1"),
        (dict(normalizer=bounds(1, 2)), "action size 2.*has 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        counters(**settings)


class Growing(Counter):
    """Observations get a second entry after `start` steps."""

    def __init__(self, start):
        super().__init__()
        self.start, self.count = start, 0

    def step(self, action):
        obs, *rest = super().step(action)
        self.count += 1
        return np.repeat(obs, 1 + (self.count >= self.start)), *rest


def test_observations_of_several_sizes_are_refused():
    message = "observation of 2 numbers, but its observation_space has 1"
    with pytest.raises(SettingsError, match=message):
        host_vec_env(make_gymnasium(Growing, processes=0, start=1), 1)
    env = host_vec_env(make_gymnasium(Growing, processes=0, start=2), 1, chunk=2)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(env.step(tiny.start(env, KEY), jnp.ones((1, 2, 1))))


@pytest.mark.filterwarnings("ignore:.*ERROR")  # Gymnasium says it three times.
@pytest.mark.parametrize("processes", [0, 1])
def test_an_error_in_a_simulator_is_raised(processes):
    env = counters(processes=processes)
    with pytest.raises(jax.errors.JaxRuntimeError, match="the counter broke"):
        jax.block_until_ready(env.step(tiny.start(env, KEY), 1e3 * ONE))


def test_processes_end_with_the_program():
    """They end at once, even if the program fails."""
    source = """
        import multiprocessing, jax
        from tests import tiny
        from tests.envs.adapters.test_host import KEY, ONE, counters
        env = counters(processes=1)
        state = tiny.start(env, KEY)
        print(multiprocessing.active_children()[0].pid)
        raise SystemExit(3)
    """
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(line.strip() for line in source.split("\n"))],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 3, result.stderr
    assert "Traceback" not in result.stderr
    assert not os.path.exists(f"/proc/{result.stdout.split()[-1]}")
