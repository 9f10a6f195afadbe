import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.evaluate import make_evaluate, summarize
from tests import tiny

KEY = jax.random.key(0)
PARAMS = jnp.array(0.5)


def constant(params, keys, obs, *, deterministic=False):
    """The action is the parameters; exploring adds 1."""
    action = params + (0.0 if deterministic else 1.0)
    return jnp.full((len(keys), tiny.CHUNK, 1), action), ()


def random(params, keys, obs, *, deterministic=False):
    draw = jax.vmap(lambda key: jax.random.normal(key, (tiny.CHUNK, 1)))
    return draw(keys), ()


def evaluate(env, **settings):
    settings = dict(num_episodes=6) | settings
    return make_evaluate(env, constant, **settings)(PARAMS, KEY)


def test_only_the_first_episode_of_an_environment_counts():
    """Half of all episodes are long. To count every episode that ends during a long one
    would be wrong, because seven in eight of these are short."""
    env = tiny.point_env(1000, lengths=(2, 16), max_steps=16)
    lengths = evaluate(env, num_episodes=1000).metrics["episode_length"]
    assert set(np.unique(lengths)) == {2.0, 16.0}
    assert np.mean(lengths == 16.0) == pytest.approx(0.5, abs=0.08)


def test_there_are_as_many_episodes_as_asked_for_in_rounds_of_different_keys():
    env = tiny.point_env(4, lengths=tuple(range(1, 9)))
    metrics = evaluate(env, num_episodes=10).metrics
    assert {values.shape for values in metrics.values()} == {(10,)}
    steps = np.asarray(metrics["steps"])
    assert (steps[:4] != steps[4:8]).any()


def test_an_episode_is_scored_where_it_ends():
    """At the goal the return is 0; at a distance of 1 it is minus one per step."""
    env = tiny.point_env(3, lengths=(3,))
    at_goal = evaluate(env).metrics
    np.testing.assert_array_equal(at_goal["episode_return"], 0.0)
    np.testing.assert_array_equal(at_goal["steps"], 3.0)
    exploring = evaluate(env, deterministic=False).metrics
    np.testing.assert_allclose(exploring["episode_return"], -3.0, rtol=1e-5)


def test_the_time_limit_ends_an_episode_that_does_not_end_itself():
    env = tiny.point_env(3, lengths=(99,), max_steps=5)
    metrics = evaluate(env).metrics
    np.testing.assert_array_equal(metrics["steps"], 5.0)
    np.testing.assert_array_equal(metrics["episode_length"], 5.0)  # 3 chunks of two


def test_traces_hold_every_control_step_and_freeze_at_the_end():
    env = tiny.point_env(3, lengths=(3,), max_steps=8, trace=("steps",))
    traces = evaluate(env, num_episodes=4).traces
    expected = np.tile([1, 2, 3, 3, 3, 3, 3, 3], (4, 1))
    np.testing.assert_array_equal(traces["steps"], expected)


@pytest.mark.parametrize("num_envs", [4, 7, 50])
def test_an_episode_does_not_depend_on_how_many_run_at_once(num_envs):
    def score(num_envs):
        env = tiny.point_env(num_envs, lengths=(1, 3, 9))
        return make_evaluate(env, random, num_episodes=50)(PARAMS, KEY).metrics

    one, other = score(10), score(num_envs)
    for name, values in one.items():
        np.testing.assert_allclose(values, other[name], rtol=1e-6, err_msg=name)
    assert len(np.unique(one["episode_return"])) == 50


def test_only_traced_metrics_are_in_traces():
    """The task's metric `action` has the shape [1]."""
    assert evaluate(tiny.point_env(3, lengths=(3,))).traces == {}
    env = tiny.point_env(3, lengths=(3,), max_steps=8, trace=("action",))
    traces = evaluate(env, num_episodes=4).traces
    assert traces["action"].shape == (4, 8, 1)
    np.testing.assert_array_equal(traces["action"], PARAMS)


def test_the_key_decides_the_result():
    env = tiny.point_env(16, lengths=tuple(range(1, 9)))
    score = make_evaluate(env, constant, num_episodes=16)
    one, again, other = (score(PARAMS, jax.random.key(i)) for i in (0, 0, 1))
    assert tiny.same(one, again)
    assert (one.metrics["steps"] != other.metrics["steps"]).any()


def test_a_summary_holds_means_and_the_standard_error_of_the_return():
    env = tiny.point_env(3, lengths=(3,))
    evaluation = evaluate(env, num_episodes=3)
    returns = jnp.array([1.0, 2.0, 6.0])
    metrics = evaluation.metrics | {"episode_return": returns}
    metrics["contacts_full"] = jnp.array([0.0, 48.0, 0.0])
    numbers = summarize(evaluation._replace(metrics=metrics), prefix="eval/")
    assert numbers["eval/episode_return"] == pytest.approx(3.0)
    # The variance of 1, 2, 6 is (4 + 1 + 9) / 2 = 7.
    assert numbers["eval/episode_return_stderr"] == pytest.approx(np.sqrt(7 / 3))
    assert numbers["eval/contacts_full"] == 48
    single = evaluation._replace(metrics={"episode_return": returns[:1]})
    assert summarize(single)["episode_return_stderr"] == 0


def test_evaluation_without_an_end_is_refused():
    env = tiny.point_env(1)
    with pytest.raises(ValueError, match="time limit"):
        make_evaluate(env._replace(max_steps=None), constant, num_episodes=1)
    with pytest.raises(ValueError, match="num_episodes=0"):
        make_evaluate(env, constant, num_episodes=0)
