"""Losses of FPO and FPO++: where ratios start, their gradients, and the clamps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.learning import flow_losses
from dppo_jax.learning.flow_losses import (
    asymmetric_objective,
    clamp_above,
    draw_pairs,
    flow_log_ratio,
    flow_surrogate,
)

CLIP = 0.1
BOTH = [(r, t) for r in ("pair", "chunk") for t in ("clip", "asymmetric")]
OLD = jnp.array([[0.3, 1.2, 0.1], [2.0, 0.4, 0.9]])  # R = 2, N = 3
ADVANTAGE = jnp.array([1.5, -0.7])


def test_a_loss_is_a_mean_over_entries_or_scaled():
    """The error is 2 in each of D = 2 x 3 entries."""
    error, time = jnp.full((5, 4, 2, 3), 2.0), jnp.full((5, 4), 0.5)
    for reduction, expected in (
        ("mean", 4.0),
        ("root", 24 / np.sqrt(6)),
        ("chunk", 8.0),
    ):
        loss = flow_losses.pair_loss(error, time, reduction=reduction)
        np.testing.assert_allclose(loss, np.full((5, 4), expected), rtol=1e-6)
    half = flow_losses.pair_loss(error, time, prediction="noise")
    np.testing.assert_allclose(half, 1.0)
    # Huber: 0.5 x 0.25^2 inside, 0.5 (2 - 0.25) outside of 0.5.
    np.testing.assert_allclose(flow_losses.pair_loss(error, time, huber=0.5), 0.875)
    small = flow_losses.pair_loss(error / 8, time, huber=0.5)
    np.testing.assert_allclose(small, 0.5 * 0.25**2)


def test_the_error_of_the_implied_noise_is_that_of_the_noise_itself():
    """x - t v is the noise if v is the velocity of the path from it to the action."""
    action, noise, velocity = np.random.default_rng(0).normal(size=(3, 1, 1, 2, 3))
    for t in (0.0, 0.3, 1.0):
        x = (1 - t) * noise + t * action
        error = noise - (x - t * velocity)
        time = jnp.full((1, 1), t)
        ours = flow_losses.pair_loss(
            jnp.asarray(velocity - (action - noise)), time, prediction="noise"
        )
        np.testing.assert_allclose(ours[0, 0], (error**2).mean(), rtol=1e-5)


def test_losses_above_the_bound_are_clamped_and_learn_nothing():
    error, time = jnp.array([1.0, 3.0])[:, None, None], jnp.zeros(2)

    def loss(error):
        return flow_losses.pair_loss(error, time, bound=4.0)

    np.testing.assert_allclose(loss(error), [1.0, 4.0])
    slope = jax.grad(lambda error: loss(error).sum())(error)
    np.testing.assert_allclose(slope.ravel(), [2.0, 0.0])


@pytest.mark.parametrize("ratio, trust_region", BOTH)
def test_equal_parameters_have_ratios_of_one(ratio, trust_region):
    settings = dict(ratio=ratio, trust_region=trust_region, log_ratio_max=10.0)
    loss, info = flow_surrogate(OLD, OLD, ADVANTAGE, clip=CLIP, **settings)
    assert (flow_log_ratio(OLD, OLD, ratio=ratio) == 0).all()
    assert info.ratio == 1 and info.approx_kl == 0 and info.clip_fraction == 0
    assert loss == pytest.approx(float(-ADVANTAGE.mean()))


@pytest.mark.parametrize("ratio, trust_region", BOTH)
def test_there_the_gradient_is_that_of_flow_matching_weighted_by_advantages(
    ratio, trust_region
):
    """d/dl mean(A l): the loss of a chunk with A > 0 falls, with A < 0 it rises."""
    slope = jax.grad(
        lambda loss: flow_surrogate(
            loss, OLD, ADVANTAGE, clip=CLIP, ratio=ratio, trust_region=trust_region
        )[0]
    )(OLD)
    weighted = jax.grad(lambda loss: (ADVANTAGE[:, None] * loss).mean())(OLD)
    np.testing.assert_allclose(slope, weighted, rtol=1e-6)


@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_the_asymmetric_objective_has_value_and_slope_of_the_advantage(advantage):
    def objective(ratio):
        return asymmetric_objective(ratio, jnp.float32(advantage), CLIP)

    assert objective(jnp.float32(1.0)) == advantage
    assert jax.grad(objective)(1.0) == pytest.approx(advantage)


def test_bad_samples_are_pulled_back_to_a_ratio_of_one_minus_clip():
    def slope(ratio, advantage):
        return jax.grad(
            lambda r: asymmetric_objective(r, jnp.float32(advantage), CLIP)
        )(ratio)

    assert slope(1 - CLIP, -2.0) == pytest.approx(0, abs=1e-6)
    # Twice as far the slope is that of one at the start, in the other direction.
    assert slope(1 - 2 * CLIP, -2.0) == pytest.approx(2.0, rel=1e-5)
    assert slope(1 + CLIP, -2.0) == pytest.approx(-4.0, rel=1e-5)
    # Good samples are left alone beyond the range, and brought back from below it.
    assert slope(1.2, 2.0) == 0 and slope(0.5, 2.0) == 2.0


def test_the_branch_is_chosen_for_every_sample():
    """Alone or beside a sample of the other sign, the value is the same."""
    ratio, advantage = jnp.array([1.3, 1.3, 0.7, 0.7]), jnp.array([1.0, -1, 1, -1])
    found = asymmetric_objective(ratio, advantage, CLIP)
    pulled = [-x - 0.5 / CLIP * (x - 1) ** 2 for x in (1.3, 0.7)]
    np.testing.assert_allclose(found, [1.1, pulled[0], 0.7, pulled[1]], rtol=1e-6)
    for i in range(4):
        alone = asymmetric_objective(ratio[i : i + 1], advantage[i : i + 1], CLIP)
        assert alone[0] == found[i]
    loss, _ = flow_surrogate(
        -jnp.log(ratio)[:, None], jnp.zeros((4, 1)), advantage, clip=CLIP
    )
    assert loss == pytest.approx(float(-found.mean()), rel=1e-5)


def test_a_clamp_lets_the_gradient_pass():
    x = jnp.array([-30.0, 2.0, 12.0])
    np.testing.assert_array_equal(clamp_above(x, 10.0), [-30.0, 2.0, 10.0])
    slope = jax.grad(lambda x: (clamp_above(x, 10.0) * jnp.arange(1, 4)).sum())(x)
    np.testing.assert_array_equal(slope, [1.0, 2.0, 3.0])
    assert clamp_above(x, None) is x
    # In a ratio: exp of the bound, times minus the slope of the loss.
    value, slope = jax.value_and_grad(
        lambda loss: jnp.exp(
            flow_log_ratio(loss, jnp.array([9.0]), ratio="pair", bound=1.0)
        ).sum()
    )(jnp.array([2.0]))
    assert value == pytest.approx(np.e) and slope[0] == pytest.approx(-np.e)


@pytest.mark.parametrize("trust_region", ["clip", "asymmetric"])
def test_of_one_pair_both_ratios_are_the_same(trust_region):
    loss = jnp.array([[0.35], [1.6]])
    pair, chunk = (
        flow_surrogate(
            loss,
            OLD[:, :1],
            ADVANTAGE,
            clip=CLIP,
            ratio=ratio,
            trust_region=trust_region,
        )
        for ratio in ("pair", "chunk")
    )
    assert pair == chunk


def test_a_chunk_ratio_is_the_exponential_of_a_mean_and_a_pair_ratio_is_not():
    loss = OLD - jnp.array([[0.2, 0.0, -0.1], [0.0, 0.3, 0.3]])
    found = jnp.exp(flow_log_ratio(loss, OLD, ratio="chunk"))
    np.testing.assert_allclose(found, np.exp([[0.1 / 3], [0.2]]), rtol=1e-5)
    found = jnp.exp(flow_log_ratio(loss, OLD, ratio="pair"))
    np.testing.assert_allclose(found[0], np.exp([0.2, 0.0, -0.1]), rtol=1e-5)


def test_the_variance_of_a_chunk_ratio_falls_with_the_number_of_pairs():
    """Changes of single losses have a standard deviation of 0.1, so var r = 0.01 / N,
    within three standard errors of 4000 draws."""
    draws = np.random.default_rng(0)
    for num_pairs in (1, 4, 16):
        change = jnp.asarray(draws.normal(scale=0.1, size=(4000, num_pairs)))
        ratio = jnp.exp(flow_log_ratio(-change, 0 * change, ratio="chunk"))
        assert ratio.var() * num_pairs == pytest.approx(0.01, rel=0.08)


@pytest.mark.parametrize("ratio", ["chunk", "pair"])
def test_the_diagnostics_tell_how_far_ratios_are_from_one(ratio):
    loss = OLD - jnp.log(jnp.array([[1.2], [0.95]]))
    _, info = flow_surrogate(loss, OLD, ADVANTAGE, clip=CLIP, ratio=ratio)
    assert info.ratio == pytest.approx(1.075) and info.clip_fraction == 0.5
    expected = 1.075 - 1 - np.log([1.2, 0.95]).mean()
    assert info.approx_kl == pytest.approx(expected, rel=1e-4)


def test_pairs_of_a_row_depend_on_its_key_alone():
    keys = jax.random.split(jax.random.key(0), 3)
    chunk = jnp.arange(12.0).reshape(3, 2, 2)
    pairs = draw_pairs(keys, chunk, jax.random.uniform, num_pairs=500)
    assert pairs.noise.shape == (3, 500, 2, 2) and pairs.time.shape == (3, 500)
    np.testing.assert_array_equal(pairs.chunk, chunk)
    one = draw_pairs(keys[1:2], chunk[1:2], jax.random.uniform, num_pairs=500)
    np.testing.assert_array_equal(one.noise[0], pairs.noise[1])
    np.testing.assert_array_equal(one.time[0], pairs.time[1])
    assert abs(pairs.noise.mean()) < 0.05 and abs(pairs.noise.std() - 1) < 0.05
    assert abs(pairs.time.mean() - 0.5) < 0.03 and pairs.time.std() > 0.25
    # Noise and time of a pair are independent of each other.
    together = np.corrcoef(pairs.noise[..., 0, 0].ravel(), pairs.time.ravel())
    assert abs(together[0, 1]) < 0.1
