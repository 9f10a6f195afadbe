import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.learning.optimizers import (
    check_cosine_restarts,
    cosine_restarts,
    linear_anneal,
)

RATE = dict(peak=1.0, floor=0.2, cycle_steps=10, warmup_steps=4)


def test_warm_up_peak_decay_and_restart_at_the_points_that_define_them():
    at = {step: float(cosine_restarts(jnp.array(step), **RATE)) for step in range(24)}
    assert at[0] == pytest.approx(0.2)
    assert at[2] == pytest.approx(0.2 + 0.8 * 2 / 4)
    assert at[4] == pytest.approx(1.0)
    assert at[7] == pytest.approx(0.6)  # half-way down
    assert at[9] == pytest.approx(0.2 + 0.4 * (1 + np.cos(np.pi * 5 / 6)))
    assert [at[i] for i in range(11, 20)] == pytest.approx(
        [at[i] for i in range(1, 10)]
    )


def test_without_a_warm_up_only_the_very_first_value_is_the_floor():
    rate = dict(RATE, warmup_steps=0)
    at = [float(cosine_restarts(jnp.array(i), **rate)) for i in (0, 1, 10)]
    assert at[0] == pytest.approx(0.2)
    assert at[1] == pytest.approx(0.6 + 0.4 * np.cos(np.pi / 10))
    assert at[2] == pytest.approx(1.0)  # a later cycle starts at its peak


def test_equal_bounds_give_a_constant():
    rate = dict(RATE, floor=1.0)
    values = [float(cosine_restarts(jnp.array(step), **rate)) for step in range(12)]
    assert values == pytest.approx([1.0] * 12)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(warmup_steps=10), "warmup_steps=10 .* cycle_steps=10"),
        (dict(warmup_steps=-1), "warmup_steps=-1"),
        (dict(floor=2.0), "min_learning_rate=2.0, learning_rate=1.0"),
        (dict(floor=-0.1), "min_learning_rate=-0.1"),
        (dict(peak=float("nan")), "learning_rate=nan"),
    ],
)
def test_rates_that_cannot_be_followed_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=f"actor: .*{message}"):
        check_cosine_restarts("actor", **(RATE | changes))
    check_cosine_restarts("actor", **RATE)


def test_linear_anneal_is_linear_and_then_constant():
    values = [
        float(linear_anneal(jnp.array(step), start=1.0, end=0.0, steps=4))
        for step in (0, 1, 2, 4, 9)
    ]
    assert values == pytest.approx([1.0, 0.75, 0.5, 0.0, 0.0])


def test_an_anneal_of_no_steps_stays_at_its_start():
    assert linear_anneal(jnp.array(7), start=0.3, end=0.1, steps=0) == np.float32(0.3)


def test_jit_changes_nothing():
    plain = cosine_restarts(jnp.array(7), **RATE)
    jitted = jax.jit(lambda step: cosine_restarts(step, **RATE))(jnp.array(7))
    np.testing.assert_allclose(plain, jitted, rtol=1e-6)
