"""A loaded policy that is called with NumPy, and what a controller does with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.controller import Controller
from dppo_jax.deploy import LoadedPolicy
from dppo_jax.errors import SettingsError
from dppo_jax.normalize import Normalizer, policy_obs, unnormalize_action
from dppo_jax.policies import num_executable
from tests import tiny

BOUNDS = Normalizer(
    obs_min=np.array([-2.0, 0.0], np.float32),
    obs_max=np.array([2.0, 4.0], np.float32),
    action_min=np.array([10.0], np.float32),
    action_max=np.array([20.0], np.float32),
)
SEEN = np.array([0.5, 1.0])


def loaded(act, params=None, *, history=1, executed=None, **fields):
    like = jax.ShapeDtypeStruct((history, 2), jnp.float32)
    config = {"env": {"executed": executed}}
    reads = {"state": like}
    return LoadedPolicy(params, act, BOUNDS, config, 0, reads=reads, **fields)


def count(params, keys, obs, *, deterministic):
    """Chunks of 3: the mean of the history, plus 0, 0.1 and 0.2."""
    del params, keys, deterministic
    plan = obs["state"][:, :, 0].mean(1)[:, None] + jnp.array([0.0, 0.1, 0.2])
    return plan[:, :, None], {}


def counter(**settings):
    return loaded(count, **settings)


@pytest.fixture(scope="module")
def diffusion():
    policy = tiny.tiny_diffusion_policy()
    return loaded(policy.act, policy.init(jax.random.key(0), tiny.OBS))


def test_a_call_maps_units_and_always_draws_the_same(diffusion):
    key = jax.random.key(0)
    obs = {"state": policy_obs(BOUNDS, SEEN.astype(np.float32))[None, None]}
    action, _ = diffusion.act(diffusion.params, key[None], obs, deterministic=True)
    chunk = diffusion(SEEN)
    assert isinstance(chunk, np.ndarray) and chunk.shape == (2, 1)
    np.testing.assert_allclose(chunk, unnormalize_action(BOUNDS, action[0]), rtol=1e-5)
    np.testing.assert_array_equal(diffusion({"state": SEEN[None]}), chunk)
    assert np.any(diffusion(SEEN, jax.random.key(1)) != chunk)
    assert np.any(diffusion(SEEN, deterministic=False) != chunk)


def test_actions_of_the_past_are_left_out():
    assert len(counter()(SEEN)) == 3 and len(counter(num_actions=2)(SEEN)) == 2
    model = {"kind": "diffusion", "chunk": 16, "diffusion": {"past_actions": 1}}
    assert num_executable(model) == 15
    assert num_executable(model | {"kind": "gaussian"}) == 16


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (np.zeros(3), r"obs\['state'\] has shape \[1, 3\].* takes \[1, 2\]"),
        (np.zeros((4, 2)), r"has shape \[4, 2\].*Controller keeps the history"),
        ({"rgb": np.zeros(2)}, "lacks state; this policy reads state"),
        (np.array([0, np.nan]), "not finite.*check its sensors"),
    ],
)
def test_wrong_observations_are_refused(obs, message):
    with pytest.raises(SettingsError, match=message):
        counter()(obs)
    with pytest.raises(SettingsError):
        Controller(counter())(obs)


def test_the_beginning_of_a_chunk_is_executed_and_history_fills_up():
    """Positions 0, 1, 2, ... are 0, 0.5, 1, ... within the bounds."""

    def actions(controller, num=5):
        return [controller(np.array([i, 2.0])).item() for i in range(num)]

    def wanted(plans):
        return pytest.approx([15 + 5 * plan for plan in plans], abs=1e-4)

    every = Controller(counter(executed=2))
    assert actions(every) == wanted([0, 0.1, 1, 1.1, 2])
    every.reset()
    assert actions(every, 1) == wanted([0])
    assert actions(Controller(counter())) == wanted([0, 0.1, 0.2, 1.5, 1.6])
    # The mean of the last two; before there are two, the first one counts twice.
    two = Controller(counter(history=2), executed=1)
    assert actions(two, 3) == wanted([0, 0.25, 0.75])


def test_images_must_be_bytes_and_the_newest_frames_are_read():
    def newest(params, keys, obs, *, deterministic):
        del params, keys, deterministic
        return 0.01 * obs["rgb"][:, :, 0, 0, :1].astype(jnp.float32), {}

    like = {
        "state": jax.ShapeDtypeStruct((1, 2), jnp.float32),
        "rgb": jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.uint8),
    }
    policy = LoadedPolicy(None, newest, BOUNDS, {}, 0, reads=like)
    frames = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 4, 4, 3), np.uint8
    )
    actions = policy({"state": SEEN, "rgb": frames})
    np.testing.assert_allclose(actions[:, 0], [15.05, 15.1], rtol=1e-5)
    with pytest.raises(SettingsError, match="type float64; pass uint8, 0 to 255"):
        policy({"state": SEEN, "rgb": frames / 255})
    controller = Controller(policy)
    with pytest.raises(SettingsError, match="rgb.*has shape"):
        controller({"state": SEEN, "rgb": frames})
    assert controller._history == {}


def test_an_ensemble_weights_all_plans_for_a_control_step():
    """Zhao et al. 2023: exp(-m i), with i = 0 for the oldest plan."""
    controller = Controller(counter(), ensemble=0.5)
    found = [controller(np.array([i, 2.0])).item() for i in range(4)]
    weight = np.exp([0, -0.5, -1.0])
    plans = [[0], [0.1, 0.5], [0.2, 0.6, 1], [0.7, 1.1, 1.5]]
    means = [np.average(x, weights=weight[: len(x)]) for x in plans]
    assert found == pytest.approx([15 + 5 * x for x in means], abs=1e-4)


def test_the_seed_decides_what_a_controller_draws(diffusion):
    def actions(seed):
        controller = Controller(diffusion, seed=seed, deterministic=False)
        return [controller(SEEN).item() for _ in range(4)]

    assert actions(0) == actions(0) != actions(1)


def test_no_control_step_compiles(diffusion):
    controller = Controller(diffusion)
    with jax.no_tracing():
        for _ in range(3):
            controller(SEEN)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"executed": 4}, "executed=4 must lie between 1 and the 3 actions"),
        ({"executed": 0}, "executed=0 must lie"),
        ({"ensemble": -1.0}, "ensemble=-1.0 must not be negative"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        Controller(counter(), **settings)


def test_a_run_without_a_policy_says_what_is_missing():
    policy = LoadedPolicy(None, None, BOUNDS, {}, 0)
    with pytest.raises(SettingsError, match="pass load_policy the policy"):
        policy(SEEN)
