import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.learning.losses import (
    clip_quantiles,
    clip_range,
    clipped_surrogate,
    denoising_discount,
    normalize_advantage,
    value_loss,
    weighted_mean,
)

RANGE = dict(base=0.001, top=0.01, rate=3.0)
KEPT = jnp.array([1.0, 0.0, 1.0, 1.0, 0.0])


def test_the_surrogate_of_an_unmoved_policy_is_minus_the_mean_advantage():
    log_prob = jnp.array([-1.0, -2.0])
    loss, info = clipped_surrogate(log_prob, log_prob, jnp.array([1.0, 3.0]), 0.1)
    assert loss == -2.0
    assert (info.ratio, info.approx_kl, info.clip_fraction) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "ratio, advantage, pushes",
    [
        (1.05, 1.0, True),  # inside
        (1.2, 1.0, False),  # good and already likelier by more than 10 %
        (1.2, -1.0, True),  # bad and likelier: must come back
        (0.8, -1.0, False),
        (0.8, 1.0, True),
    ],
)
def test_the_surrogate_pushes_no_ratio_further_out_of_its_range(
    ratio, advantage, pushes
):
    def loss(log_prob):
        return clipped_surrogate(
            log_prob[None], jnp.zeros(1), jnp.array([advantage]), 0.1
        )[0]

    gradient = jax.grad(loss)(jnp.log(ratio))
    np.testing.assert_allclose(gradient, -advantage * ratio * pushes, rtol=1e-5)


@pytest.mark.parametrize("ratio, advantage, loss", [(2.0, 1.0, -1.1), (0.5, -1.0, 0.9)])
def test_a_clipped_ratio_counts_as_the_end_of_its_range(ratio, advantage, loss):
    value, _ = clipped_surrogate(
        jnp.log(jnp.array([ratio])), jnp.zeros(1), jnp.array([advantage]), 0.1
    )
    np.testing.assert_allclose(value, loss, rtol=1e-5)


def test_diagnostics_of_the_surrogate():
    ratio = jnp.array([1.5, 0.5, 1.0, 1.0])
    _, info = clipped_surrogate(jnp.log(ratio), jnp.zeros(4), jnp.ones(4), 0.2)
    assert info.clip_fraction == 0.5 and info.ratio == 1.0
    np.testing.assert_allclose(info.approx_kl, -(np.log(1.5) + np.log(0.5)) / 4, 1e-6)
    # The range includes its ends.
    _, info = clipped_surrogate(jnp.zeros(4), jnp.zeros(4), jnp.ones(4), 0.0)
    assert info.clip_fraction == 0.0


def test_rows_without_weight_have_no_effect():
    """The result is the same as without these rows, even if they hold extremes."""
    log_prob = jnp.array([-1.0, 50.0, -1.1, -0.7, 3.0])
    old, advantage = jnp.full(5, -1.0), jnp.array([1.0, 1e6, -2.0, 0.5, -1e6])
    kept = KEPT > 0
    rows = (log_prob, old, advantage)
    weighted = clipped_surrogate(*rows, 0.1, KEPT)
    dropped = clipped_surrogate(*(x[kept] for x in rows), 0.1)
    for a, b in zip(jax.tree.leaves(weighted), jax.tree.leaves(dropped)):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(
        normalize_advantage(advantage, KEPT)[kept],
        normalize_advantage(advantage[kept]),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        clip_quantiles(advantage, 0.2, 0.7, KEPT)[kept],
        clip_quantiles(advantage[kept], 0.2, 0.7),
        rtol=1e-5,
    )


@pytest.mark.parametrize("num_kept", [0, 1])
def test_too_few_rows_with_weight_leave_no_signal_and_no_nan(num_kept):
    weight = jnp.array([1.0 * num_kept, 0.0])
    advantage = normalize_advantage(jnp.array([3.0, 5.0]), weight)
    advantage = clip_quantiles(advantage, 0.1, 0.9, weight)
    loss, _ = clipped_surrogate(jnp.zeros(2), jnp.zeros(2), advantage, 0.1, weight)
    assert loss == 0.0


@pytest.mark.parametrize("advantage", [[1.0, 2.0, 6.0], [1.0, 3.0]], ids=str)
def test_advantages_of_a_minibatch_get_zero_mean_and_unit_spread(advantage):
    normal = normalize_advantage(jnp.array(advantage))
    np.testing.assert_allclose(normal.mean(), 0, atol=1e-6)
    np.testing.assert_allclose(np.std(normal, ddof=1), 1, rtol=1e-5)


def test_a_single_advantage_has_no_spread_to_divide_by():
    assert normalize_advantage(jnp.array([3.0])) == 0.0


def test_advantages_are_clipped_to_their_quantiles():
    advantage = jnp.arange(11.0)
    clipped = clip_quantiles(advantage, 0.1, 0.8)
    np.testing.assert_array_equal(clipped, np.clip(np.arange(11.0), 1, 8))
    assert clip_quantiles(advantage, 0.0, 1.0) is advantage


def test_one_quantile_alone_clips_its_side():
    advantage = jnp.arange(11.0)
    below, above = clip_quantiles(advantage, 0.1, 1.0), clip_quantiles(
        advantage, 0, 0.8
    )
    np.testing.assert_array_equal(below, np.maximum(np.arange(11.0), 1))
    np.testing.assert_array_equal(above, np.minimum(np.arange(11.0), 8))


def test_a_single_row_with_weight_is_its_own_quantile():
    clipped = clip_quantiles(jnp.array([3.0, 99.0]), 0.1, 0.8, jnp.array([1.0, 0.0]))
    assert clipped[0] == 3.0


def test_noisier_moves_earn_less():
    weights = denoising_discount(jnp.arange(3), num_tuned_steps=3, discount=0.9)
    np.testing.assert_allclose(weights, [0.81, 0.9, 1.0], rtol=1e-6)


def test_the_clip_range_grows_from_base_to_top():
    steps = jnp.arange(5)
    widths = clip_range(steps, num_tuned_steps=5, **RANGE)
    np.testing.assert_allclose(widths[0], 0.001, rtol=1e-5)
    np.testing.assert_allclose(widths[-1], 0.01, rtol=1e-5)
    half = 0.001 + 0.009 * (np.exp(1.5) - 1) / (np.exp(3.0) - 1)
    np.testing.assert_allclose(widths[2], half, rtol=1e-5)
    assert (np.diff(widths) > 0).all()


def test_two_moves_have_the_two_ends_of_the_clip_range():
    widths = clip_range(jnp.arange(2), num_tuned_steps=2, **RANGE)
    np.testing.assert_allclose(widths, [0.001, 0.01], rtol=1e-5)


def test_a_chain_of_one_move_has_the_full_clip_range():
    width = clip_range(jnp.array([0]), num_tuned_steps=1, **RANGE)
    np.testing.assert_allclose(width, 0.01, rtol=1e-6)
    traced = jax.jit(lambda n: clip_range(jnp.array([0]), num_tuned_steps=n, **RANGE))(
        1
    )
    np.testing.assert_allclose(traced, 0.01, rtol=1e-6)


def test_the_value_loss_is_half_the_mean_square():
    loss = value_loss(jnp.array([1.0, 4.0]), jnp.array([0.0, 2.0]))
    assert loss == 0.5 * (1 + 4) / 2


def test_the_value_loss_has_no_gradient_beyond_the_clip():
    """From 0 towards the target 1: beyond the clip only the clipped value counts."""

    def slope(value):
        return jax.grad(
            lambda v: value_loss(v[None], jnp.ones(1), jnp.zeros(1), clip=0.2)
        )(jnp.array(value))

    np.testing.assert_allclose(slope(0.1), 0.1 - 1, rtol=1e-5)
    assert slope(0.5) == 0.0
    np.testing.assert_allclose(slope(-0.5), -1.5, rtol=1e-5)  # moved away


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_value_counts_as_moved_by_the_clip_at_most(sign):
    """Half way from 3 to 4 or to 2 it counts as 3.2 or as 2.8."""
    value, target, old = (jnp.array([3.0 + sign * x]) for x in (0.5, 1.0, 0.0))
    loss = value_loss(value, target, old, clip=0.2)
    np.testing.assert_allclose(loss, 0.5 * 0.8**2, rtol=1e-5)


def test_a_mean_over_nothing_is_zero():
    assert weighted_mean(jnp.ones(3), jnp.zeros(3)) == 0.0
    assert weighted_mean(jnp.array([1.0, 2.0]), None) == 1.5
    assert weighted_mean(jnp.array([1.0, 2.0]), jnp.array([0.0, 1.0])) == 2.0
