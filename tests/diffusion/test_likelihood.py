"""Log-densities under the probability-flow ODE against closed forms.

If data are N(m, S), the perfect denoiser is linear, and so is the equation. Along its
solution (x - signal m) / sqrt(signal^2 S + noise^2) stays the same.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.diffusion.denoising import make_diffusion
from dppo_jax.diffusion.likelihood import (
    Levels,
    clean_action,
    draw_probes,
    ode_levels,
    ode_log_prob,
)
from dppo_jax.diffusion.schedules import ddim_schedule, ddpm_schedule

K = 20
ACTION = jnp.array([[[0.4], [-0.3]], [[0.0], [0.3]], [[-0.7], [0.2]]])  # B, Ta, Da
MEAN = np.array([[0.1], [-0.05]])
STD = np.array([[0.5], [0.3]])
PROBES = jnp.ones((3, 1, 2, 1))


def gaussian(x, level):
    """The perfect denoiser of data N(MEAN, STD^2), entry by entry."""
    gain = level.signal * STD**2 / (level.signal**2 * STD**2 + level.noise**2)
    return MEAN + gain * (x - level.signal * MEAN)


def normal(value, mean, variance):
    entries = -0.5 * ((value - mean) ** 2 / variance + np.log(2 * np.pi * variance))
    return np.asarray(entries).sum((-2, -1))


def log_prob(action, probes, *, clean=gaussian, num_denoising_steps=K, steps=None):
    levels = ode_levels(ddpm_schedule(num_denoising_steps), steps)
    return jax.jit(functools.partial(ode_log_prob, clean, levels))(action, probes)


def solved(action, levels):
    """What an exact solver would return, with the mismatch of N(0, I) at the end."""
    variances = levels.signal**2 * STD[..., None] ** 2 + levels.noise**2
    means = levels.signal * MEAN[..., None]
    stretch = np.sqrt(variances[..., -1] / variances[..., 0])
    start = levels.signal[0] * np.asarray(action)
    end = means[..., -1] + stretch * (start - means[..., 0])
    volume = np.log(stretch * levels.signal[0]).sum()
    return normal(end, 0.0, np.ones(1)) + volume


def test_levels_are_those_of_the_schedule_the_cleanest_first():
    schedule = ddpm_schedule(K)
    levels = ode_levels(schedule)
    np.testing.assert_array_equal(levels.time, np.arange(K))
    np.testing.assert_array_equal(levels.step, np.arange(K)[::-1])
    np.testing.assert_allclose(levels.signal, schedule.signal[::-1], atol=1e-6)
    np.testing.assert_allclose(levels.noise, schedule.noise[::-1], atol=1e-6)
    np.testing.assert_allclose(levels.width[:-1], np.diff(levels.angle), atol=1e-6)
    assert (levels.width[:-1] > 0).all() and levels.angle[-1] < np.pi / 2


def test_between_two_steps_time_and_angle_grow_together():
    few, many = (ode_levels(ddpm_schedule(K), n) for n in (K - 1, 2 * (K - 1)))
    for name in ("time", "angle"):
        ends, middles = getattr(few, name), getattr(many, name)[1::2]
        np.testing.assert_allclose(middles, (ends[:-1] + ends[1:]) / 2, rtol=1e-6)
        np.testing.assert_allclose(getattr(many, name)[::2], ends, rtol=1e-6)
    # The middle belongs to the noisier of the two.
    np.testing.assert_array_equal(many.step[1::2], few.step[1:])


def test_levels_of_ddim_are_those_of_its_own_steps():
    levels = ode_levels(ddim_schedule(5, num_training_steps=K, eta=1.0))
    np.testing.assert_array_equal(levels.time, [0, 4, 8, 12, 16])
    every = ode_levels(ddpm_schedule(K))
    np.testing.assert_allclose(levels.angle, every.angle[::4], rtol=1e-6)


def test_the_density_is_that_of_the_data_and_the_least_noise():
    """Actions of N(MEAN, STD^2) plus the noise of the cleanest step."""
    levels = ode_levels(ddpm_schedule(K))
    found = log_prob(ACTION, PROBES, steps=16 * (K - 1))
    least = np.tan(levels.angle[0])
    assert least == pytest.approx(0.09, abs=0.001)
    expected = normal(ACTION, MEAN, STD**2 + least**2)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_allclose(found, solved(ACTION, levels), atol=2e-4)


def test_diffrax_finds_the_same_density_and_gradient():
    """Adaptive steps need no finer levels than those of the schedule."""
    pytest.importorskip("diffrax")
    levels = ode_levels(ddpm_schedule(K))

    @functools.partial(jax.jit, static_argnames="tolerance")
    @functools.partial(jax.value_and_grad, has_aux=True)
    def total(shift, levels, tolerance):
        def clean(x, level):
            return gaussian(x, level) + shift * jnp.tanh(x)

        found = ode_log_prob(clean, levels, ACTION, PROBES, tolerance=tolerance)
        return found.sum(), found

    fine = ode_levels(ddpm_schedule(K), 16 * (K - 1))
    (_, expected), slope = total(0.1, fine, None)
    (_, found), own_slope = total(0.1, levels, 1e-5)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert float(own_slope) == pytest.approx(float(slope), rel=1e-3)
    assert abs(slope) > 0.1
    (_, exact), _ = total(0.0, levels, 1e-5)
    np.testing.assert_allclose(exact, solved(ACTION, levels), atol=1e-4)


def test_diffrax_takes_the_denoising_steps_of_the_levels():
    """The network of the nearest denoising step acts; the equation jumps in between."""
    pytest.importorskip("diffrax")

    def clean(x, level):
        return gaussian(x, level) + 0.1 * (level.step >= K // 2)

    fine, levels = (ode_levels(ddpm_schedule(K), n * (K - 1)) for n in (64, 1))
    expected = jax.jit(functools.partial(ode_log_prob, clean, fine))(ACTION, PROBES)
    find = functools.partial(ode_log_prob, clean, levels, tolerance=1e-5)
    np.testing.assert_allclose(jax.jit(find)(ACTION, PROBES), expected, atol=8e-3)


def test_with_a_thousand_steps_it_is_the_density_of_the_data():
    found = log_prob(ACTION, PROBES, num_denoising_steps=1000)
    np.testing.assert_allclose(found, normal(ACTION, MEAN, STD**2), atol=1e-3)


def test_halving_the_steps_of_the_solver_quarters_the_error():
    """Heun's method is of second order; the default is accurate to a fiftieth here."""
    expected = solved(ACTION, ode_levels(ddpm_schedule(K)))
    error = [
        np.abs(log_prob(ACTION, PROBES, steps=n * (K - 1)) - expected).max()
        for n in (1, 2, 4)
    ]
    assert error[0] < 0.02
    for coarse, fine in zip(error, error[1:]):
        assert 3 < coarse / fine < 5.5


def test_the_mean_over_all_signs_is_the_divergence():
    """Of correlated data one probe is wrong, but the four possible ones together are
    right, and so is their mean over many draws."""
    covariance = np.array([[0.25, 0.12], [0.12, 0.16]])

    def correlated(x, level):
        noisy = level.signal**2 * covariance + level.noise**2 * np.eye(2)
        gain = level.signal * covariance @ jnp.linalg.inv(noisy)
        return (x[..., 0] @ gain.T)[..., None]

    signs = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])[..., None]
    find = functools.partial(log_prob, clean=correlated, steps=8 * (K - 1))
    found = find(ACTION, jnp.broadcast_to(signs, (3, *signs.shape)))
    least = np.tan(ode_levels(ddpm_schedule(K)).angle[0])
    total = covariance + least**2 * np.eye(2)
    x = np.asarray(ACTION[..., 0])
    expected = -0.5 * np.einsum("bi,ij,bj->b", x, np.linalg.inv(total), x)
    expected -= 0.5 * np.log(np.linalg.det(2 * np.pi * total))
    np.testing.assert_allclose(found, expected, atol=2e-3)
    one, other = (find(ACTION, jnp.broadcast_to(x, (3, 1, 2, 1))) for x in signs[:2])
    assert (np.abs(one - other) > 0.1).all()
    np.testing.assert_allclose((one + other) / 2, found, atol=1e-4)


@pytest.mark.parametrize("bound", [None, 0.5])
def test_densities_integrate_to_one(bound):
    """Also that of a denoiser which is not linear, and where it is clipped."""

    def clean(x, level):
        x0 = jnp.tanh(2 * level.signal * x + 0.2 * jnp.sin(level.time))
        return x0 if bound is None else jnp.clip(x0, -bound, bound)

    grid = np.linspace(-2, 2, 4001)
    found = log_prob(
        jnp.asarray(grid, jnp.float32)[:, None, None],
        jnp.ones((4001, 1, 1, 1)),
        clean=clean,
        steps=8 * (K - 1),
    )
    total = np.exp(found).sum() * (grid[1] - grid[0])
    assert total == pytest.approx(1.0, abs=3e-3)


@pytest.mark.parametrize("predict_noise", [True, False])
def test_the_clean_action_is_that_of_the_chain(predict_noise):
    """It is clipped as there; the network predicts noise or the action itself."""
    diffusion = make_diffusion(
        num_denoising_steps=K, predict_noise=predict_noise, x0_clip=0.6
    )
    level = Levels(angle=0.7, width=0.1, signal=0.8, noise=0.6, time=3.0, step=1)
    noise = jnp.array([[[0.5], [-1.0]]])
    action = jnp.array([[[0.9], [-0.3]]])
    x = 0.8 * action + 0.6 * noise
    found = clean_action(diffusion, x, noise if predict_noise else action, level)
    np.testing.assert_allclose(found, [[[0.6], [-0.3]]], atol=1e-6)


def test_probes_are_signs_and_each_row_has_its_own():
    keys = jax.random.split(jax.random.key(0), 5)
    probes = draw_probes(keys, (4, 3), num_probes=2)
    assert probes.shape == (5, 2, 4, 3) and probes.dtype == jnp.float32
    np.testing.assert_array_equal(jnp.abs(probes), 1)
    assert abs(probes.mean()) < 0.4
    assert (probes[0] != probes[1]).any() and (probes[0, 0] != probes[0, 1]).any()
    np.testing.assert_array_equal(
        draw_probes(keys[2:3], (4, 3), num_probes=2)[0], probes[2]
    )
