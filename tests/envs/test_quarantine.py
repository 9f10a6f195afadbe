"""Simulations that break end their episode and leave nothing broken behind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.envs import build
from dppo_jax.envs.physics.state import FULL
from dppo_jax.envs.quarantine import LARGEST, quarantine
from dppo_jax.envs.tasks.locomotion import make_runner
from tests import breaking, tiny

KEY = jax.random.key(0)
ACTION = jnp.array([0.5])


def outcomes(env, num_steps=3):
    """Time steps of one environment under the same action."""
    state, found = env.reset(KEY), []
    for _ in range(num_steps):
        state, outcome = env.step(state, ACTION)
        found.append(outcome)
    return found


@pytest.mark.parametrize("fault", breaking.FAULTS)
def test_a_step_that_breaks_is_a_truncation_with_the_observation_before(fault):
    *_, before, broken = outcomes(quarantine(breaking.breaking_task(fault, 1.0)))
    assert before.metrics["diverged"] == 0 and before.reward == 1
    assert broken.metrics["diverged"] == 1
    assert (broken.reward, broken.terminated, broken.truncated) == (0, 0, 1)
    np.testing.assert_array_equal(broken.obs["state"], before.obs["state"])
    assert broken.metrics["speed"] == 0  # It was NaN.


def test_a_sound_step_is_what_the_task_returns():
    task = breaking.breaking_task("nan_obs", 0.0)
    for plain, guarded in zip(outcomes(task), outcomes(quarantine(task))):
        assert guarded.metrics.pop("diverged") == 0
        assert tiny.same(plain, guarded)


def test_a_broken_simulation_starts_anew_and_its_neighbours_go_on():
    """Environments that break in their first episode end in chunk 2 = step 3."""
    env, num = breaking.breaking_env(16), 16
    state = tiny.start(env, KEY)
    breaks = np.asarray(state.env.env.env.breaks)
    assert 0 < breaks.sum() < num
    action = jnp.full((num, tiny.CHUNK, 1), 0.5)
    step = jax.jit(env.step)
    for _ in range(2):
        state, outcome = step(state, action)
    np.testing.assert_array_equal(outcome.metrics["diverged"], breaks)
    np.testing.assert_array_equal(outcome.truncated, breaks)
    np.testing.assert_array_equal(state.obs["state"][:, 0, 1], np.where(breaks, 0, 4))
    np.testing.assert_array_equal(
        outcome.metrics["episode_return"], np.where(breaks, 2.0, 4.0)
    )


@pytest.mark.parametrize("qvel", [np.nan, 1e12])
def test_c_mujoco_reports_a_broken_state_instead_of_starting_anew(
    qvel, tmp_path, monkeypatch
):
    """Hopper clips the velocities that it observes; alone it would go on in silence."""
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log file.
    env = quarantine(make_runner("hopper"))
    states = jax.vmap(env.reset)(jax.random.split(KEY, 2))
    raw = np.array(states.physics.raw).view(np.float64).copy()
    raw[1, 7] = qvel  # After the time and six positions.
    broken = states.physics._replace(raw=jnp.asarray(raw.view(np.uint32)))
    step = jax.jit(jax.vmap(env.step))
    _, whole = step(states, jnp.zeros((2, 3)))
    _, found = step(states._replace(physics=broken), jnp.zeros((2, 3)))
    np.testing.assert_array_equal(found.metrics["diverged"], [0, 1])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    assert tiny.same(*(jax.tree.map(lambda x: x[0], y) for y in (whole, found)))


def test_too_little_space_for_contacts_is_reported():
    """Any simulation of a state counts, and the state of C MuJoCo has no such entry."""
    runner = make_runner("hopper")

    def step(state, action):
        state, outcome = runner.step(state["runner"], action)
        full = {"contacts": jnp.float32(48), "constraints": jnp.float32(0)}
        other = state.physics._replace(raw={FULL: full})
        return {"runner": state, "other": other}, outcome

    reset = runner.reset(KEY)
    assert {"contacts_full", "constraints_full"}.isdisjoint(
        quarantine(runner).step(reset, jnp.zeros(3))[1].metrics
    )

    class State(dict):
        obs = reset.obs

    _, outcome = quarantine(runner._replace(step=step)).step(
        State(runner=reset), jnp.zeros(3)
    )
    assert outcome.metrics["contacts_full"] == 48
    assert outcome.metrics["constraints_full"] == 0


def test_configured_environments_have_it():
    config = build.default_config()
    config.task = f"{breaking.__file__}:exploding"
    bounds = tiny.NORMALIZER
    env = build.make_env(config, normalizer=bounds, chunk=1, num_envs=1)
    _, outcome = env.step(tiny.start(env, KEY), jnp.zeros((1, 1, 1)))
    assert outcome.metrics["diverged"] == 1
    assert jnp.abs(outcome.obs["state"]).max() <= 1 < LARGEST
