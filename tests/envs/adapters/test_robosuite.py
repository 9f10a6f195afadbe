"""Tests with a stand-in for robosuite, and with the library if it is installed."""

import importlib.util
import sys
import types

import jax
import numpy as np
import pytest

from dppo_jax.envs import build, host_vec_env, make_host_task
from dppo_jax.envs.adapters import robosuite as adapter
from tests import tiny
from tests.envs.adapters.laws import bounds, run_env, trains_and_evaluates

KEY = jax.random.key(0)
LIFT_SIZE, LIFT_ACTION = 3 + 4 + 2 + 10, 7

installed = pytest.mark.skipif(
    importlib.util.find_spec("robosuite") is None,
    reason="needs the extra [robosuite], which `make` does not install",
)


class Stand:
    """The part of a robosuite task that the adapter uses: the hand goes up by the
    action; there is success while it is above 1.5."""

    def __init__(self, name, robots, *, ignore_done, horizon=1000, **settings):
        self.name, self.robots, self.settings = name, robots, settings
        self.horizon = None if ignore_done else horizon
        self.action_spec = (-np.ones(1), np.ones(1))

    def observation_spec(self):
        return self._observe()

    def reset(self):
        self.count, self.height = 0, np.random.uniform()
        return self._observe()

    def step(self, action):
        self.height += float(action[0])
        self.count += 1
        done = self.count == self.horizon
        return self._observe(), self.height, done, {}

    def close(self):
        pass

    def _check_success(self):
        return self.height > 1.5

    def _observe(self):
        height = getattr(self, "height", 0.0)
        arms = 1 if isinstance(self.robots, str) else len(self.robots)
        seen = {"object-state": np.array([height, height])}
        for i in range(arms):
            for key, size in (("eef_pos", 3), ("eef_quat", 4), ("gripper_qpos", 2)):
                seen[f"robot{i}_{key}"] = np.full(size, float(i))
        return seen | {"height": np.float64(height)}


@pytest.fixture
def stand(monkeypatch):
    """`import robosuite` finds a module whose tasks are `Stand`s."""
    module = types.ModuleType("robosuite")
    module.__dict__.update(ALL_ENVIRONMENTS={"Lift"}, make=Stand)
    module.__spec__ = importlib.util.spec_from_loader("robosuite", None)
    monkeypatch.setitem(sys.modules, "robosuite", module)
    monkeypatch.setattr(adapter, "_mend_joint_addresses", lambda: None)
    monkeypatch.setattr(adapter, "_mend_mass_matrix", lambda: None)


def make(num_envs=1, *, options=None, processes=0, **settings):
    task = make_host_task("robosuite:Lift", processes=processes, **(options or {}))
    return host_vec_env(task, num_envs, **settings)


def test_the_state_is_what_robomimic_records_or_what_is_named(stand):
    obs = tiny.start(make(), KEY).obs["state"][0, 0]
    assert obs.shape == (3 + 4 + 2 + 2,)
    np.testing.assert_array_equal(obs[:9], np.zeros(9))  # the arm, then the object
    assert obs[9] == obs[10] > 0
    two = tiny.start(make(options=dict(robots=("Panda", "Sawyer"))), KEY).obs["state"][
        0, 0
    ]
    np.testing.assert_array_equal(two[:-2], [0.0] * 9 + [1.0] * 9)
    named = make(options=dict(obs_keys=("height", "robot0_eef_pos")))
    assert named.obs_shape == {"state": (1, 4)}


def test_success_is_kept_reward_is_its_own_and_the_horizon_truncates(stand):
    env = make(options=dict(horizon=4), chunk=1)
    actions = np.array([1.0, 1.0, -1.0, 0.0, 0.0]).reshape(5, 1, 1, 1)
    obs, step = run_env(env, actions)
    start = np.asarray(step.reward[0, 0]) - 1
    np.testing.assert_allclose(step.reward[:4, 0], start + [1, 2, 1, 1], rtol=1e-6)
    np.testing.assert_array_equal(step.truncated[:, 0], [0, 0, 0, 1, 0])
    assert not step.terminated.any()
    success = step.metrics["success"][:, 0]
    np.testing.assert_array_equal(success, [start > 0.5, 1, 1, 1, 0])


def test_without_a_horizon_only_the_time_limit_truncates(stand):
    step = run_env(make(max_steps=3), np.zeros((6, 1, 1, 1)))[1]
    np.testing.assert_array_equal(step.truncated[:, 0], [0, 0, 1] * 2)


def test_resets_depend_on_the_seed_alone(stand):
    """This holds although all environments of robosuite share one random stream."""
    one, three = (
        run_env(make(n, max_steps=2), np.zeros((6, n, 1, 1)))[0]["state"][..., -1]
        for n in (1, 3)
    )
    np.testing.assert_array_equal(one[:, 0], three[:, 0])
    assert len(np.unique(three)) > 6


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("Lifft", {}, "no task 'Lifft'; it has Lift"),
        ("Lift", dict(obs_keys=("cube",)), "no observation cube; .*some of.*height"),
    ],
)
def test_what_cannot_be_made_is_refused(stand, name, options, message):
    with pytest.raises(ValueError, match=message):
        host_vec_env(make_host_task(f"robosuite:{name}", **options), 1)


def test_log_records_of_robosuite_are_dropped(stand):
    from logging import getLogger

    adapter._import_robosuite()
    assert not getLogger("robosuite_logs").filter(
        getLogger("x").makeRecord("x", 30, "", 0, "remark", (), None)
    )


@installed
@pytest.mark.slow
def test_trajectories_are_those_of_the_library():
    raw = adapter.RobosuiteEnv("Lift", "Panda", reward_shaping=True)
    obs, _ = raw.reset(seed=int(jax.random.bits(jax.random.fold_in(KEY, 0))) >> 1)
    chunk = np.random.default_rng(0).uniform(-1, 1, (3, LIFT_ACTION))
    step = run_env(
        make(chunk=3, max_steps=3, options=dict(reward_shaping=True)),
        chunk[None, None],
    )[1]
    rewards = []
    for action in chunk.astype(np.float32):
        seen, reward, _, _ = raw.env.step(action)
        rewards.append(reward)
    parts = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object-state")
    np.testing.assert_allclose(
        step.obs["state"][0, 0, 0],
        np.concatenate([seen[key] for key in parts]),
        1e-5,
        1e-6,
    )
    np.testing.assert_allclose(step.reward[0, 0], sum(rewards), rtol=1e-5)
    assert min(rewards) > 0 and step.truncated[0, 0] == 1
    assert np.abs(step.obs["state"][0, 0, 0, :3] - obs[:3]).max() > 1e-3  # it moved


@installed
@pytest.mark.slow
def test_controllers_get_the_mass_matrix():
    """The adapter makes this part of robosuite work with the present MuJoCo."""
    import mujoco

    raw = adapter.RobosuiteEnv("Lift", "Panda")
    raw.reset(seed=0)
    raw.step(np.zeros(LIFT_ACTION, np.float32))
    sim = raw.env.sim
    controller = raw.env.robots[0].composite_controller.part_controllers["right"]
    controller.update(force=True)
    full = np.zeros((sim.model.nv, sim.model.nv))
    mujoco.mj_fullM(sim.model._model, sim.data._data, full)
    joints = controller.qvel_index
    np.testing.assert_array_equal(controller.mass_matrix, full[np.ix_(joints, joints)])
    assert np.linalg.eigvalsh(controller.mass_matrix).min() > 0


@installed
@pytest.mark.slow
def test_ppo_and_evaluation_run_through_it():
    config = build.default_config()
    config.task, config.max_steps = "robosuite:Lift", 4
    config.options.processes = 2
    env = build.make_env(
        config, normalizer=bounds(LIFT_SIZE, LIFT_ACTION), chunk=2, num_envs=3
    )
    numbers = trains_and_evaluates(env)
    assert numbers["eval/episode_length"] == 4 and numbers["eval/success"] == 0
