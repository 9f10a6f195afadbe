"""Advantage-weighted regression on tasks of a few numbers."""

import jax
import numpy as np
import pytest

from tests import tiny
from tests.resuming import resumed
from tests.tiny_regression import make_tiny_dawr


def test_it_solves_the_point_task_and_compiles_once():
    """Reward -(a - 0.5)^2 for two steps; 64 new chunks an iteration."""
    env = tiny.point_env(16, lengths=(2,))
    algorithm = make_tiny_dawr(
        env=env, batch_size=64, replay_ratio=8, beta=3.0, capacity=128
    )
    programs = tiny.compiled(algorithm)
    state, rows = algorithm.init(jax.random.key(0)), []
    for _ in range(30):
        state, metrics = tiny.iterate(programs, state)
        rows.append(metrics)
    assert [program._cache_size() for program in programs] == [1, 1]
    returns = [float(row["episode_return"]) for row in rows]
    assert np.mean(returns[-5:]) > 0.4 * np.mean(returns[:3])
    assert all(np.isfinite(row[name]) for row in rows for name in algorithm.finite)
    assert rows[0]["replay_size"] == 64 and rows[-1]["replay_size"] == 128


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    """Buffer, V and both optimizers continue."""
    env = tiny.point_env(4, lengths=(3, 99), max_steps=16)
    algorithm = make_tiny_dawr(env=env)

    whole = resumed(algorithm, tmp_path)
    assert (whole.memory.replay.size == 12).all()


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(max_weight=0.0), "algorithm.dawr.max_weight=0.0 must be positive"),
        (dict(td_lambda=1.2), "algorithm.dawr.td_lambda=1.2 must lie in"),
        (dict(critic_warmup=-1), "algorithm.dawr.critic_warmup=-1 must not be"),
        (dict(capacity=3), "capacity=3 must be at least num_envs=4"),
        (dict(critic_ratio=9), "make 8 updates .* one for every critic_ratio=9"),
        (
            dict(reference_quirks=("fixed_targets", "fixed_discount")),
            "'fixed_discount', which is unknown; use some of fixed_targets, broad",
        ),
        (dict(policy=tiny.tiny_squashed_policy()), "a SquashedPolicy cannot"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_tiny_dawr(**changes)
