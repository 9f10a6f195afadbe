import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.envs import build, make_task, vectorize
from dppo_jax.envs.wrappers import chunk_actions, stack_observations, time_limit
from tests.envs.adapters.laws import bounds, run_env, trains_and_evaluates

pytest.importorskip("mujoco_playground", reason="needs the extra [playground]")
from mujoco_playground import registry  # noqa: E402

KEY = jax.random.key(0)
TASK = "playground:CartpoleBalance"


@pytest.mark.slow
def test_trajectories_are_those_of_the_library():
    """Compared with its raw steps, over an auto-reset and a chunk cut by the limit."""
    env = stack_observations(time_limit(make_task(TASK), 3), 1)
    many = vectorize(chunk_actions(env, 2), 2)
    actions = jnp.full((3, 2, 2, 1), 0.5)
    obs, step = run_env(many, actions)
    raw = registry.load("CartpoleBalance", config_overrides={"impl": "jax"})
    raw_step = jax.jit(raw.step)
    for i in range(2):
        state = jax.jit(raw.reset)(jax.random.split(jax.random.fold_in(KEY, i))[1])
        rewards = []
        for _ in range(3):
            state = raw_step(state, actions[0, i, 0])
            rewards.append(float(state.reward))
        expected = [rewards[0] + rewards[1], rewards[2]]
        np.testing.assert_allclose(step.reward[:2, i], expected, rtol=1e-4)
        np.testing.assert_array_equal(step.truncated[:, i], [0, 1, 0])
        np.testing.assert_allclose(step.obs["state"][1, i, 0], state.obs, atol=1e-4)
        for name, value in state.metrics.items():
            np.testing.assert_allclose(step.metrics[name][1, i], value, atol=1e-4)
        # The next episode has begun.
        assert not np.allclose(obs["state"][1, i, 0], state.obs, atol=1e-3)
    assert not step.terminated.any()


@pytest.mark.slow
def test_ppo_and_evaluation_run_through_it():
    config = build.default_config()
    config.task, config.max_steps = TASK, 4
    env = build.make_env(config, normalizer=bounds(5, 1), chunk=2, num_envs=3)
    numbers = trains_and_evaluates(env)
    assert numbers["eval/episode_length"] == 4
    assert 0 < numbers["eval/episode_return"] <= 4


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("Cartpole", {}, "no environment 'Cartpole'; it has.*CartpoleBalance"),
        ("CartpoleBalance", dict(gravity=1.0), "no setting gravity.*sim_dt"),
    ],
)
def test_what_cannot_be_made_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_task(f"playground:{name}", **options)


def test_models_that_cannot_be_fetched_are_named(monkeypatch):
    def load(name, config_overrides):
        raise subprocess.CalledProcessError(128, ["git", "clone"])

    monkeypatch.setattr(registry, "load", load)
    with pytest.raises(ValueError, match="needs the models of MuJoCo Menagerie"):
        make_task("playground:Go1JoystickFlatTerrain")
