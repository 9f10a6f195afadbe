import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax import envs as brax_envs

from dppo_jax.envs import build, make_task, vectorize
from dppo_jax.envs.wrappers import chunk_actions, stack_observations, time_limit
from tests.envs.adapters.laws import bounds, run_env, trains_and_evaluates

KEY = jax.random.key(0)
# Brax's own test task, and a task with physics.
FAST = ("fast", "generalized")
PENDULUM = pytest.param("inverted_pendulum", "spring", marks=pytest.mark.slow)


@pytest.mark.parametrize("name, backend", [FAST, PENDULUM])
def test_a_step_is_the_librarys_own_bit_for_bit(name, backend):
    """Compares every array, from the same state in the same kind of program."""
    env = make_task(f"brax:{name}", backend=backend)
    raw = brax_envs.get_environment(name, backend=backend)
    state, own = jax.jit(env.reset)(KEY), jax.jit(raw.reset)(KEY)
    step, own_step = jax.jit(env.step), jax.jit(raw.step)
    action = jnp.full(env.action_shape, 0.7)
    for _ in range(5):
        state, time_step = step(state, action)
        own = own_step(own, action)
        jax.tree.map(np.testing.assert_array_equal, state.inner, own)
        np.testing.assert_array_equal(time_step.obs["state"], own.obs)
        assert time_step.reward == own.reward and time_step.terminated == own.done
        for metric, value in own.metrics.items():
            assert time_step.metrics[metric] == value


@pytest.mark.parametrize("name, backend", [FAST, PENDULUM])
def test_an_episode_ends_where_the_library_or_the_limit_ends_it(name, backend):
    """The last step equals the raw step, and then the next episode begins."""
    env = make_task(f"brax:{name}", backend=backend)
    # fast never ends by itself; the pendulum falls.
    limit = 4 if name == "fast" else 60
    many = vectorize(chunk_actions(stack_observations(time_limit(env, limit), 1), 1), 2)
    obs, step = run_env(many, jnp.full((limit, 2, 1, 1), 0.7))
    raw = brax_envs.get_environment(name, backend=backend)
    raw_step, raw_reset = jax.jit(raw.step), jax.jit(raw.reset)
    keys = [jax.random.split(jax.random.fold_in(KEY, i))[1] for i in range(2)]
    for i, key in enumerate(keys):
        state = raw_reset(key)
        for t in range(limit):
            state = raw_step(state, jnp.full(1, 0.7))
            np.testing.assert_allclose(
                step.obs["state"][t, i, 0], state.obs, rtol=2e-4, atol=2e-5
            )
            assert step.terminated[t, i] == state.done
            if state.done or t == limit - 1:
                break
        ended = "truncated" if name == "fast" else "terminated"
        assert getattr(step, ended)[t, i] == 1
        assert not np.allclose(obs["state"][t, i, 0], state.obs, atol=1e-3)


def test_a_chunk_sums_rewards_and_a_limit_inside_stops_it():
    env = chunk_actions(time_limit(make_task("brax:fast"), 3), 2)
    raw = brax_envs.get_environment("fast")
    state, rewards = raw.reset(KEY), []
    for _ in range(3):
        state = raw.step(state, jnp.ones(1))
        rewards.append(state.reward)
    now, first = env.step(env.reset(KEY), jnp.ones((2, 1)))
    np.testing.assert_allclose(first.reward, rewards[0] + rewards[1], rtol=1e-6)
    _, second = env.step(now, jnp.ones((2, 1)))
    np.testing.assert_allclose(second.reward, rewards[2], rtol=1e-6)
    assert second.truncated == 1 and second.terminated == 0
    np.testing.assert_allclose(second.obs["state"], state.obs, rtol=1e-6)


def test_an_entry_of_a_dictionary_is_observed():
    options = dict(obs_mode="dict_state", asymmetric_obs=True)
    assert make_task("brax:fast", **options).obs_shape == {"state": (2,)}
    privileged = make_task("brax:fast", obs_key="privileged_state", **options)
    assert privileged.obs_shape == {"state": (4,)}
    with pytest.raises(ValueError, match="no observation 'pixels'.*privileged_state"):
        make_task("brax:fast", obs_key="pixels", **options)


def test_one_program_serves_every_step():
    env = vectorize(chunk_actions(make_task("brax:fast"), 2), 2)
    step, state = jax.jit(env.step), jax.jit(env.reset)(jax.random.split(KEY))
    for _ in range(3):
        state, _ = step(state, jnp.ones((2, 2, 1)))
    assert step._cache_size() == 1


def make_env(task, obs_size, **options):
    config = build.default_config()
    config.task, config.max_steps, config.options = task, 5, options
    return build.make_env(config, normalizer=bounds(obs_size, 1), chunk=2, num_envs=3)


def test_ppo_and_evaluation_run_through_it():
    assert trains_and_evaluates(make_env("brax:fast", 2))["eval/episode_length"] == 5


def test_nested_batches_are_each_environment_by_itself():
    env = make_task("brax:fast")
    keys = jax.random.split(KEY, 6).reshape(2, 3)
    actions = jnp.linspace(-1, 1, 6).reshape(2, 3, 1)
    nested = jax.vmap(jax.vmap(lambda key, action: env.step(env.reset(key), action)))
    _, steps = nested(keys, actions)
    for index in np.ndindex(2, 3):
        _, alone = env.step(env.reset(keys[index]), actions[index])
        of_batch = jax.tree.map(lambda x, index=index: x[index], steps)
        jax.tree.map(np.testing.assert_allclose, of_batch, alone)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("antt", {}, "no environment 'antt'; it has ant, "),
        ("ant", dict(backend="mujoco"), "backend='mujoco' is unknown; choose.*spring"),
        ("ant", dict(legs=5), "brax:ant cannot be made.*legs"),
    ],
)
def test_what_cannot_be_made_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_task(f"brax:{name}", **options)
