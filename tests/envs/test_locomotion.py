"""The runner tasks, compared with Gymnasium's environments."""

import importlib
import subprocess
import sys
from typing import NamedTuple

import h5py
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from dppo_jax.envs import make_task
from dppo_jax.envs.physics import compile_model, make_physics
from dppo_jax.envs.tasks.locomotion import RUNNERS, mjcf
from experiments.configs import locomotion
from tests.conftest import REPOSITORY

CLASSES = {
    "hopper": ("hopper", "HopperEnv"),
    "walker2d": ("walker2d", "Walker2dEnv"),
    "halfcheetah": ("half_cheetah", "HalfCheetahEnv"),
}
TASKS = tuple(CLASSES)
# Variants that train new networks, or that count updates in another way.
OTHERS = (
    *("sac", "gaussian", "gmm", "drwr", "dawr", "dsrl", "rlpd", "calql", "ibrl"),
    "ogpo",
    *locomotion.OFF_POLICY,
)
SPEC = mujoco.mjtState.mjSTATE_INTEGRATION
TERMS = ("reward_forward", "reward_survive", "reward_ctrl", "x_velocity", "healthy")


class Played(NamedTuple):
    """Results of Gymnasium: start, qpos, qvel, warmstart [N, ...], others [T, N, ...].

    start: MuJoCo's whole integration state in float64, from which C MuJoCo continues.
    """

    start: np.ndarray
    qpos: np.ndarray
    qvel: np.ndarray
    warmstart: np.ndarray
    actions: np.ndarray
    obs: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    terms: dict[str, np.ndarray]


def gymnasium_env(task, version="v4"):
    module, name = CLASSES[task]
    module = importlib.import_module(f"gymnasium.envs.mujoco.{module}_{version}")
    # Without this, a deprecation warning of the compiler would write a log file.
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        return getattr(module, name)()
    finally:
        mujoco.set_mju_user_warning(None)


def play(task, *, num_states, num_steps, version="v4", x_range=20.0, seed=0):
    """Play random actions from random states; episodes continue past their end."""
    env, rng = gymnasium_env(task, version), np.random.default_rng(seed)
    data = env.data
    starts, actions, steps = [], [], []
    for index in range(num_states):
        env.reset(seed=seed + index)
        qpos = data.qpos + rng.uniform(-0.1, 0.1, data.qpos.shape)
        qpos[0] += rng.uniform(-x_range, x_range)
        env.set_state(qpos, data.qvel + rng.uniform(-1, 1, data.qvel.shape))
        raw = np.empty(mujoco.mj_stateSize(env.model, SPEC))
        mujoco.mj_getState(env.model, data, raw, SPEC)
        starts.append(
            (raw, data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy())
        )
        # Also beyond the control range: the model clips actions, the cost does not.
        actions.append(rng.uniform(-1.3, 1.3, (num_steps, env.model.nu)))
        for action in actions[-1].astype(np.float32):
            obs, reward, terminated, _, info = env.step(action)
            velocity = info["x_velocity"]
            terms = (
                velocity,  # the forward reward, whose weight is 1
                getattr(env, "healthy_reward", 0.0),
                -env.control_cost(action.astype(np.float64)),
                velocity,
                getattr(env, "is_healthy", True),
            )
            steps.append((obs, reward, terminated, *terms))
    columns = [
        np.swapaxes(np.reshape(c, (num_states, num_steps, *np.shape(c[0]))), 0, 1)
        for c in zip(*steps)
    ]
    actions = np.swapaxes(np.float32(actions), 0, 1)
    return Played(
        *map(np.array, zip(*starts)),
        actions,
        *columns[:3],
        dict(zip(TERMS, columns[3:])),
    )


def replay(task, played, *, engine, version="v4"):
    """The TimeSteps [T, N] of our environment from the same states."""
    env = make_task(task, engine=engine, version=version)

    def exact(physics):
        return physics._replace(raw=jnp.asarray(played.start.view(np.uint32)))

    def rounded(physics):
        warmstart = jnp.asarray(played.warmstart, jnp.float32)
        return physics._replace(
            qpos=jnp.asarray(played.qpos, jnp.float32),
            qvel=jnp.asarray(played.qvel, jnp.float32),
            raw=physics.raw | {"qacc_warmstart": warmstart},
        )

    @jax.jit
    def run(actions):
        state = jax.vmap(env.reset)(
            jax.random.split(jax.random.key(0), len(actions[0]))
        )
        start = exact if engine == "mujoco" else rounded
        state = state._replace(physics=start(state.physics))
        return jax.lax.scan(jax.vmap(env.step), state, actions)[1]

    return jax.tree.map(np.asarray, run(jnp.asarray(played.actions)))


def astray(task, played, disturb, *, num_draws=1):
    """How far C MuJoCo departs from `played`, [N], if its state is disturbed.

    Args:
        disturb: maps qpos or qvel to its disturbed value before every substep.
        num_draws: runs of each episode; the one that departs farthest counts.
    """
    env = gymnasium_env(task)
    data = mujoco.MjData(env.model)
    num_steps, num_states = played.reward.shape
    far = np.zeros(num_states)
    for index in np.repeat(np.arange(num_states), num_draws):
        mujoco.mj_setState(env.model, data, played.start[index], SPEC)
        for time in range(num_steps):
            data.ctrl[:] = played.actions[time, index]
            for _ in range(env.frame_skip):
                for state in (data.qpos, data.qvel):
                    state[:] = disturb(state)
                mujoco.mj_step(env.model, data)
            num = env.model.nq - 1
            wrong = np.concatenate([data.qpos[1:], data.qvel]) - played.obs[time, index]
            # Clipped entries cannot be compared.
            wrong[num:][np.abs(data.qvel) > 10] = 0
            far[index] = max(far[index], np.abs(wrong).max())
    return far


def sensitivity(task, played, *, noise=1e-6):
    """How far C MuJoCo departs, [N], if every substep has an error up to `noise`."""
    rng = np.random.default_rng(0)

    def disturb(state):
        return state + noise * rng.uniform(-1, 1, state.shape)

    return astray(task, played, disturb, num_draws=64)


def assert_same(steps, played):
    """Observations equal the rounded ones bit for bit; sums differ only by rounding."""
    np.testing.assert_array_equal(steps.obs["state"], np.float32(played.obs))
    np.testing.assert_array_equal(steps.terminated, played.terminated)
    np.testing.assert_allclose(steps.reward, played.reward, rtol=2e-7, atol=1e-6)
    for name, term in played.terms.items():
        np.testing.assert_allclose(
            steps.metrics[name], term, rtol=3e-7, atol=1e-12, err_msg=name
        )
    added = sum(steps.metrics[f"reward_{n}"] for n in ("forward", "survive", "ctrl"))
    np.testing.assert_allclose(added, steps.reward, atol=1e-6)


@pytest.mark.parametrize("version", ["v4", "v5"])
@pytest.mark.parametrize("task", TASKS)
def test_c_mujoco_does_what_gymnasium_does(task, version):
    played = play(task, num_states=3, num_steps=30, version=version)
    assert_same(replay(task, played, engine="mujoco", version=version), played)
    assert played.terminated.any() == (task != "halfcheetah")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v4", "v5"])
@pytest.mark.parametrize("task", TASKS)
def test_c_mujoco_does_what_gymnasium_does_for_long(task, version):
    played = play(task, num_states=50, num_steps=200, version=version)
    assert_same(replay(task, played, engine="mujoco", version=version), played)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_mjx_is_as_close_to_gymnasium_as_contacts_allow(task):
    """Within 1e-4 over 10 control steps, or as far as C MuJoCo with errors of 1e-6.

    The latter is larger where a foot is about to touch the ground: contacts of the
    cheetah magnify an error a hundredfold within a control step.
    """
    # Near x = 0, because MJX rounds positions between steps to float32.
    played = play(task, num_states=50, num_steps=10, x_range=0.0)
    steps = replay(task, played, engine="mjx")
    bound = np.maximum(1e-4, sensitivity(task, played))
    error = np.abs(steps.obs["state"] - played.obs).max(axis=(0, 2))
    assert np.all(error < bound)
    np.testing.assert_array_equal(steps.terminated, played.terminated)
    # The reward is a velocity, with the same error as the observed velocities.
    error = np.abs(steps.reward - played.reward)
    assert np.all(error.max(axis=0) < bound) and np.median(error) < 1e-5


@pytest.mark.slow
def test_a_state_in_float32_is_too_coarse_for_the_cheetah():
    """C MuJoCo, which computes in float64, departs by more than 1e-4 if only its state
    is rounded."""
    for task, share in (("hopper", 0.0), ("walker2d", 0.0), ("halfcheetah", 0.1)):
        played = play(task, num_states=50, num_steps=10, x_range=0.0)
        far = astray(task, played, np.float32)
        assert (far > 1e-4).mean() >= share
        assert share or (far <= 1e-4).all()


@pytest.mark.slow
def test_mjx_differs_from_gymnasium_only_by_float32():
    """In float64, which needs its own process, only rounding errors remain."""
    printed = subprocess.run(
        [sys.executable, "-m", "tests.envs.float64"],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    ).stdout
    errors = dict(line.split() for line in printed.splitlines() if " " in line)
    assert all(float(errors[task]) < 1e-8 for task in TASKS), printed


@pytest.mark.parametrize("task", TASKS)
def test_episodes_start_as_gymnasiums_do(task):
    env, reference = make_task(task, engine="mujoco"), gymnasium_env(task)
    ours = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 2000)).obs["state"]
    theirs = np.array([reference.reset(seed=seed)[0] for seed in range(2000)])
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.012)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.06)
    assert env.obs_shape == {"state": theirs[0].shape}


def test_both_limits_of_health():
    """Hand-made states on either side of each limit."""
    hopper_up, still = np.array([0, 1.25, 0, 0, 0, 0.0]), np.zeros(6)
    walker_up = np.array([0, 1.25, 0, 0, 0, 0, 0, 0, 0.0])
    for task, upright, cases in (
        ("hopper", hopper_up, [(1, 0.71, 0.69), (2, 0.19, -0.21)]),
        ("hopper", hopper_up, [(3, 99.0, -101.0)]),
        ("walker2d", walker_up, [(1, 0.81, 0.79), (1, 1.99, 2.01)]),
        ("walker2d", walker_up, [(2, -0.99, 1.01), (1, 1.0, np.nan)]),
    ):
        is_healthy = RUNNERS[task].is_healthy
        for index, good, bad in cases:
            for value, expected in ((good, True), (bad, False)):
                qpos = upright.copy()
                qpos[index] = value
                assert bool(is_healthy(jnp.array(qpos), jnp.array(still))) == expected


@pytest.mark.parametrize(
    "task, name, options",
    [
        ("hopper", "hopper_sac", {"margins": "max"}),
        ("halfcheetah", "halfcheetah_ppo", {}),
    ],
)
def test_recorded_steps_are_reproduced(task, name, options, demos_dir):
    """D4RL-style files that others recorded with an older MuJoCo."""
    with h5py.File(demos_dir / "locomotion" / f"{name}.hdf5") as file:
        obs, action, reward, ended, timeout, qpos, qvel = (
            file[key][:1000]
            for key in ("observations", "actions", "rewards", "terminals", "timeouts")
            + ("infos/qpos", "infos/qvel")
        )
    env = make_task(task, engine="mujoco", **options)
    model = compile_model(mjcf(task, **options))
    physics = make_physics(model, RUNNERS[task].num_substeps, "mujoco")
    state = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), len(obs)))
    state = state._replace(
        physics=jax.vmap(physics.reset)(jnp.array(qpos), jnp.array(qvel))
    )
    step = jax.jit(jax.vmap(env.step))(state, jnp.array(action))[1]
    goes_on = np.flatnonzero(~ended[:-1] & ~timeout[:-1])
    np.testing.assert_allclose(
        step.obs["state"][goes_on], obs[goes_on + 1], rtol=1e-5, atol=5e-4
    )
    np.testing.assert_allclose(step.reward, reward, atol=1e-5)
    np.testing.assert_array_equal(step.terminated, ended)


def test_unknown_options_are_named():
    with pytest.raises(ValueError, match="version='v3'.*v4"):
        make_task("hopper", version="v3")
    with pytest.raises(ValueError, match="margins='min'.*max"):
        make_task("hopper", margins="min")
    with pytest.raises(ValueError, match="walker2d has none"):
        make_task("walker2d", margins="max")


def test_models_compile_without_a_warning(capfd, tmp_path, monkeypatch):
    """One of Gymnasium's files holds a deprecated attribute."""
    monkeypatch.chdir(tmp_path)
    make_task("halfcheetah", engine="mujoco")
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("variant", [v for v in locomotion.VARIANTS if v not in OTHERS])
def test_configurations_make_their_task(task, variant):
    module = importlib.import_module(f"experiments.configs.{task}")
    config = module.get_config(variant)
    env = make_task(config.env.task, **config.env.options)
    assert env.obs_shape["state"] == (11 if task == "hopper" else 17,)
    settings, rollout = config.algorithm[config.algorithm.name], config.rollout
    samples = rollout.num_envs * rollout.num_chunks
    if config.algorithm.name == "ppo":
        samples *= config.model.sampling.num_tuned_steps
    # These variants make the same number of updates, with every sample in an epoch.
    assert samples % settings.batch_size == 0
    assert settings.epochs * samples // settings.batch_size == 20
    with pytest.raises(ValueError, match=f"{task}.py:medium.*v0_6"):
        module.get_config("medium")
