"""Tasks and wrappers of a user's own file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.envs import make_task
from dppo_jax.envs.check import check_env, with_plain_numbers
from dppo_jax.envs.outside import apply_wrapper
from dppo_jax.envs.quarantine import quarantine
from dppo_jax.errors import SettingsError
from tests import tiny

SOURCE = """
from tests import tiny


def make_task(*, length=1):
    return tiny.point_task((length,))


def make_with_engine(*, engine):
    return make_task(length={"auto": 1, "mjx": 2}[engine])


def doubled(env):
    def step(state, action):
        state, time_step = env.step(state, action)
        return state, time_step._replace(reward=2 * time_step.reward)

    return env._replace(step=step)


def vector_reward(env):
    def step(state, action):
        state, time_step = env.step(state, action)
        return state, time_step._replace(reward=time_step.obs["state"])

    return env._replace(step=step)


def make_vector_reward():
    return vector_reward(make_task())


def make_nothing():
    pass


number = 3
"""
KEY = jax.random.key(0)


@pytest.fixture
def reach(tmp_path, monkeypatch):
    """`reach.py` in the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reach.py").write_text(SOURCE)
    return "reach.py"


def test_a_task_of_a_file_is_made_with_its_options(reach):
    env, expected = make_task(f"{reach}:make_task", length=3), tiny.point_task((3,))
    assert env.action_shape == expected.action_shape
    assert env.reset(KEY).length == 3
    action = jnp.array([0.2])
    step = env.step(env.reset(KEY), action)[1]
    assert step.reward == expected.step(expected.reset(KEY), action)[1].reward


def test_a_task_of_a_module_is_made():
    env = make_task("tests.tiny:point_task", lengths=(2,))
    assert env.reset(KEY).length == 2


def test_the_engine_reaches_a_task_that_takes_one(reach):
    for engine, length in (("auto", 1), ("mjx", 2)):
        env = make_task(f"{reach}:make_with_engine", engine=engine)
        assert env.reset(KEY).length == length
    assert make_task(f"{reach}:make_task", engine="auto").reset(KEY).length == 1


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("make_task", dict(engine="mjx"), "env.engine='mjx'.*takes no argument"),
        ("make_task", dict(lenght=2), r"make_task\(\*, length=1\).*'lenght'"),
        ("make_nothing", {}, "make_nothing returned a NoneType.*dppo_jax.types.Env"),
        ("number", {}, "number is a int, not a function"),
        (
            "maketask",
            {},
            "no 'maketask', but make_task.*Libraries known by name.*brax:",
        ),
    ],
)
def test_what_makes_no_task_is_refused(reach, name, options, message):
    with pytest.raises(ValueError, match=message):
        make_task(f"{reach}:{name}", **options)


def test_a_known_library_takes_precedence_over_a_module(tmp_path, monkeypatch):
    """`brax:ant` is the task of Brax even if there is a file brax.py."""
    (tmp_path / "brax.py").write_text("def fast():\n    raise AssertionError\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="env.engine='mjx'.*own physics"):
        make_task("brax:fast", engine="mjx")


def test_a_wrapper_changes_the_reward(reach):
    env = tiny.point_task()
    wrapped = apply_wrapper(env, f"{reach}:doubled")
    action = jnp.array([0.2])
    reward, doubled = (e.step(e.reset(KEY), action)[1].reward for e in (env, wrapped))
    np.testing.assert_allclose(doubled, 2 * reward)
    np.testing.assert_allclose(reward, -((0.2 - tiny.GOAL) ** 2), rtol=1e-6)


@pytest.mark.parametrize(
    "name, message",
    [
        ("number", "number is a int, not a function"),
        ("doubledd", "no 'doubledd', but doubled"),
        ("make_nothing", r"make_nothing\(\) cannot .*arguments \(Env\)"),
        ("returns_reward", "returns_reward returned a float"),
    ],
)
def test_what_is_no_wrapper_is_refused(reach, tmp_path, name, message):
    with (tmp_path / reach).open("a") as file:
        file.write("\n\ndef returns_reward(env):\n    return 1.0\n")
    with pytest.raises(ValueError, match=message):
        apply_wrapper(tiny.point_task(), f"{reach}:{name}")


TASK = tiny.point_task()
VECTOR = jnp.zeros(3)


def returning(**fields):
    """The task with these fields in what `step` returns."""

    def step(state, action):
        state, time_step = TASK.step(state, action)
        return state, time_step._replace(**fields)

    return TASK._replace(step=step)


def moving(**fields):
    """The task with these fields in the state after `step`."""

    def step(state, action):
        state, time_step = TASK.step(state, action)
        return state._replace(**fields), time_step

    return TASK._replace(step=step)


def starting(**fields):
    """The task with these fields in the state after `reset`."""
    return TASK._replace(reset=lambda key: TASK.reset(key)._replace(**fields))


@pytest.mark.parametrize(
    "env, message",
    [
        (returning(reward=VECTOR), r"TimeStep.reward is float32\[3\], .* float32\[\]"),
        (returning(terminated=VECTOR > 0), r"TimeStep.terminated is bool\[3\]"),
        (returning(truncated=jnp.complex64(0)), r"TimeStep.truncated is complex64\[\]"),
        (returning(truncated=None), "TimeStep.truncated is a NoneType"),
        (
            returning(metrics={"success": VECTOR}),
            r"TimeStep.metrics\['success'\] is float32\[3\]",
        ),
        (returning(metrics=None), "TimeStep.metrics must be a dictionary"),
        (returning(obs=VECTOR), r"obs after step is float32\[3\]; .* dictionary"),
        (
            returning(obs={"state": VECTOR}),
            r"obs after step has the shapes {'state': \(3,\)}, .* {'state': \(2,\)}",
        ),
        (starting(obs={"state": VECTOR}), "obs after reset has the shapes"),
        (starting(obs={"rgb": VECTOR}), "obs after reset has the shapes {'rgb'"),
        (moving(length=VECTOR), r"state.length is int32\[\] .*float32\[3\] after step"),
        (
            moving(step=jnp.float32(1)),
            r"state.step is int32\[\] after reset, but float",
        ),
        (moving(length=(VECTOR, VECTOR)), r"differ in their fields .*'.length\[0\]'"),
        (TASK._replace(reset=lambda key: VECTOR), "without a field 'obs'"),
        (TASK._replace(step=lambda state, _: state), "step returns a PointState"),
        (TASK._replace(step=lambda state, _: (state, 0.0)), "must be a .*TimeStep"),
        (TASK._replace(obs_shape={"state": ()}), r"Env.obs_shape is .*\(Do,\)"),
        (TASK._replace(obs_shape=(2,)), r"Env.obs_shape is \(2,\); .*\(Do,\)"),
        (TASK._replace(obs_shape={"state": (4,)}), r"Env.obs_shape is .*\(4,\)"),
        (TASK._replace(action_shape=(4, 1)), r"Env.action_shape is \(4, 1\)"),
    ],
)
def test_what_a_rollout_could_not_carry_is_named(env, message):
    with pytest.raises(SettingsError, match=f"mine: .*{message}"):
        check_env(env, "mine")


def test_numbers_that_jax_converts_are_accepted():
    """Flags that are bools, Python numbers, and a count that starts as a plain 0."""
    numbers = dict(terminated=jnp.bool_(True), truncated=0.0, reward=1)
    env = returning(**numbers, metrics={"m": 2.0})
    for accepted in (env, returning(truncated=False), starting(step=0)):
        check_env(accepted)
    _, outcome = quarantine(env).step(env.reset(KEY), jnp.ones(1))
    assert (outcome.reward, outcome.truncated, outcome.metrics["m"]) == (1, 0, 2)
    assert outcome.metrics["diverged"] == 0


def test_numbers_in_arrays_of_one_are_taken():
    one = jnp.ones(1)
    env = returning(reward=2 * one, terminated=one, metrics={"success": 3 * one})
    check_env(env)
    env = with_plain_numbers(env)
    _, outcome = env.step(env.reset(KEY), one)
    assert outcome.reward.shape == outcome.metrics["success"].shape == ()
    assert (outcome.reward, outcome.terminated, outcome.metrics["success"]) == (2, 1, 3)
    assert with_plain_numbers(TASK) is TASK


@pytest.mark.parametrize("make", ["task", "wrapper"])
def test_tasks_and_wrappers_are_checked_when_they_are_made(reach, make):
    with pytest.raises(SettingsError, match="vector_reward: TimeStep.reward is float"):
        if make == "task":
            make_task(f"{reach}:make_vector_reward")
        else:
            apply_wrapper(tiny.point_task(), f"{reach}:vector_reward")
