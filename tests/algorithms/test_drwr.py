"""Reward-weighted regression on tasks of a few numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.algorithms import drwr
from dppo_jax.learning import regression
from tests import tiny
from tests.resuming import resumed
from tests.tiny_regression import make_tiny_drwr


@pytest.mark.parametrize("batch_size, num_updates", [(7, 2 * 1), (1000, 2 * 1)])
def test_every_epoch_cuts_the_finished_rows_into_minibatches(batch_size, num_updates):
    """Tasks of 6 steps end in the third chunk: 12 of 20 rows count, the others belong
    to episodes that the roll-out cuts. If no row counts, nothing changes."""
    env = tiny.point_env(4, lengths=(6,), max_steps=60)
    algorithm = make_tiny_drwr(env=env, num_chunks=5, batch_size=batch_size)
    state, programs = algorithm.init(jax.random.key(0)), tiny.compiled(algorithm)
    after, metrics = tiny.iterate(programs, state)
    np.testing.assert_allclose(metrics["finished_share"], 12 / 20)
    assert metrics["num_updates"] == after.actor.optimizer[0].count == num_updates
    assert metrics["policy_loss"] > 0 and metrics["params_change"] > 0
    endless = state._replace(env=lengthened(state.env))
    after, metrics = tiny.iterate(programs, endless)
    assert tiny.same(after.actor, state.actor)
    for name in ("num_updates", "finished_share", "policy_loss", "params_change"):
        assert metrics[name] == 0
    assert metrics["num_episodes"] == 0
    assert all(np.isfinite(metrics[name]) for name in algorithm.finite)


def test_minibatches_without_finite_gradients_are_counted_and_left_out_of_the_mean():
    """The chunk of one row is NaN; of 12 rows that count, an epoch draws 7."""
    env = tiny.point_env(4, lengths=(6,), max_steps=60)
    algorithm = make_tiny_drwr(env=env, num_chunks=5, batch_size=7)
    collect, learn = tiny.compiled(algorithm)
    state, rows, episodes = collect(algorithm.init(jax.random.key(0)))
    rows = rows._replace(chunk=rows.chunk.at[0, 0].set(jnp.nan))
    found = set()
    for seed in range(8):
        after, metrics = learn(state._replace(key=jax.random.key(seed)), rows, episodes)
        skipped = int(metrics["skipped_updates"])
        assert (skipped < 2) == (metrics["policy_loss"] > 0)
        assert (skipped < 2) == (metrics["params_change"] > 0)
        assert all(np.isfinite(metrics[name]) for name in algorithm.finite)
        found.add(skipped)
    assert 1 in found and metrics["num_updates"] == 2


def lengthened(env_state):
    """States of `point_env` whose present episodes are of 99 steps."""

    def replace(leaf):
        return leaf._replace(length=jnp.full_like(leaf.length, 99))

    def is_task(leaf):
        return isinstance(leaf, tiny.PointState)

    found = jax.tree.map(
        lambda leaf: replace(leaf) if is_task(leaf) else leaf,
        env_state,
        is_leaf=is_task,
    )
    assert not tiny.same(found, env_state)
    return found


def test_it_solves_the_point_task_and_compiles_once():
    """Reward -(a - 0.5)^2 for two steps; the network makes all moves."""
    env = tiny.point_env(16, lengths=(2,))
    algorithm = make_tiny_drwr(env=env, batch_size=64, epochs=8, beta=3.0)
    programs = tiny.compiled(algorithm)
    state, rows = algorithm.init(jax.random.key(0)), []
    for _ in range(30):
        state, metrics = tiny.iterate(programs, state)
        rows.append(float(metrics["episode_return"]))
    assert [program._cache_size() for program in programs] == [1, 1]
    assert np.mean(rows[-5:]) > 0.4 * np.mean(rows[:3])
    params = algorithm.params(state)
    assert tiny.same(params.base, params.tuned)


def test_the_configured_discount_is_that_of_the_returns(monkeypatch):
    seen = []

    def returns(*rows, discount):
        seen.append(discount)
        return regression.returns_to_go(*rows, discount=discount)

    monkeypatch.setattr(drwr, "returns_to_go", returns)
    algorithm = make_tiny_drwr(discount=0.25)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    jax.eval_shape(algorithm.step, state)
    assert seen and set(seen) == {0.25}


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    env = tiny.point_env(4, lengths=(3, 99), max_steps=6)
    algorithm = make_tiny_drwr(env=env)

    resumed(algorithm, tmp_path)


def test_it_starts_from_the_tuned_network():
    algorithm = make_tiny_drwr()
    params = tiny.tiny_diffusion_policy().init(jax.random.key(5), tiny.OBS)
    params = params._replace(base=jax.tree.map(jnp.zeros_like, params.base))
    state = algorithm.init(jax.random.key(0), params)
    assert tiny.same(state.actor.params, params.tuned)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(beta=0.0), "algorithm.drwr.beta=0.0 must be positive"),
        (dict(epochs=0), "algorithm.drwr.epochs=0 must be positive"),
        (dict(discount=1.5), "algorithm.drwr.discount=1.5 must lie in"),
        (dict(num_chunks=0), "num_chunks=0 must be at least 1"),
        (
            dict(reset_at_iteration=True, num_chunks=3),
            "num_chunks=3 .* time limit of 4 chunks.* at least 4",
        ),
        (dict(policy=tiny.tiny_squashed_policy()), "a SquashedPolicy cannot"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_tiny_drwr(**changes)
