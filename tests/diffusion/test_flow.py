"""Euler steps of a flow, with and without noise, and what it is cloned from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.diffusion.chain import Encoded, move_log_prob, sample_chain
from dppo_jax.diffusion.denoising import cloning_loss
from dppo_jax.diffusion.flow import (
    bounded_std,
    flow_chain,
    flow_cloning,
    flow_mean,
    make_flow,
)

B, TA, DA = 3, 2, 1
STEPS = (1, 2, 4)  # K
CONDITION = jnp.array([[[0.1]], [[-0.1]], [[0.3]]])
ACTION = jnp.array([[[0.6], [-0.3]], [[0.0], [0.9]], [[-1.0], [0.2]]])


def linear(params, x, time, condition):
    """A velocity that a reader can evaluate by hand."""
    return params * x + 0.4 * time[:, None, None] + condition


def slanted_std(params, time, condition):
    """A standard deviation of 0.1 + t / 10 + c / 2, in three places."""
    return 0.1 + 0.1 * time[:, None, None] + 0.5 * condition


def straight(params, x, time, condition):
    """The velocity of a flow that knows that the action is ACTION."""
    return (ACTION - x) / (1 - time[:, None, None])


def draws_of(num_steps, seed=0):
    return jax.random.normal(jax.random.key(seed), (num_steps + 1, B, TA, DA))


def sampled(
    flow, velocity=linear, std=slanted_std, *, deterministic=False, draws=None, seed=0
):
    return sample_chain(
        flow_chain(flow, velocity, std),
        Encoded(0.5, CONDITION),
        lambda step: Encoded(0.5, CONDITION),
        draws_of(flow.num_steps, seed) if draws is None else draws,
        num_tuned=flow.num_steps,
        min_std=0.0,
        deterministic=deterministic,
    )


@pytest.mark.parametrize("num_steps", STEPS)
def test_move_k_begins_at_k_over_K(num_steps):
    """Where the velocity is the time itself, x moves by the sum of k / K over K. On a
    grid that ends at 1 it would move by one half."""

    def clock(params, x, time, condition):
        return time[:, None, None] * jnp.ones_like(x)

    flow = make_flow(num_steps=num_steps, mean_clip=None)
    chain = sampled(flow, clock, deterministic=True).chain
    moved = chain[:, -1] - chain[:, 0]
    np.testing.assert_allclose(moved, (num_steps - 1) / (2 * num_steps), atol=1e-6)


@pytest.mark.parametrize("final_clip", [None, 0.3])
@pytest.mark.parametrize("num_steps", STEPS)
def test_moves_are_gaussians_around_an_euler_step(num_steps, final_clip):
    """Also where an action stands at its bound, as several do at 0.3: it is scored
    where it stands."""
    flow = make_flow(num_steps=num_steps, final_clip=final_clip, mean_clip=0.8)
    chain, log_prob = sampled(flow)
    draws = np.clip(np.asarray(draws_of(num_steps)), -3, 3)
    x, condition = np.asarray(chain[:, 0]), np.asarray(CONDITION)
    for k in range(num_steps):
        time = k / num_steps
        mean = x + (0.5 * x + 0.4 * time + condition) / num_steps
        mean = np.clip(mean, -0.8, 0.8)
        std = 0.1 + 0.1 * time + 0.5 * condition
        x = mean + std * draws[k + 1]
        if final_clip is not None and k == num_steps - 1:
            assert (abs(x) > final_clip).any()
            x = np.clip(x, -final_clip, final_clip)
        np.testing.assert_allclose(chain[:, k + 1], x, atol=1e-5)
        density = -0.5 * ((x - mean) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))
        np.testing.assert_allclose(log_prob[:, k], density, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("num_steps", STEPS)
def test_a_move_is_scored_again_as_it_was_sampled(num_steps):
    flow = make_flow(num_steps=num_steps, final_clip=0.3)
    chain, log_prob = sampled(flow)
    moves = flow_chain(flow, linear, slanted_std)
    for k in range(num_steps):
        step = jnp.full(B, k)
        again = move_log_prob(
            moves, Encoded(0.5, CONDITION), chain[:, k], chain[:, k + 1], step
        )
        np.testing.assert_allclose(log_prob[:, k], again, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_steps", STEPS)
def test_without_noise_a_chain_is_the_differential_equation(num_steps):
    """The deterministic mode, and the limit of an exploring one that hardly explores;
    both from a start that is drawn."""
    flow = make_flow(num_steps=num_steps)
    chain, log_prob = sampled(flow, deterministic=True)
    x = draws_of(num_steps)[0]
    for k in range(num_steps):
        velocity = linear(0.5, x, jnp.array([k / num_steps]), CONDITION)
        x = jnp.clip(x + velocity / num_steps, -1, 1)
        np.testing.assert_allclose(chain[:, k + 1], x, atol=1e-6)
    assert jnp.isfinite(log_prob).all()
    calm = sampled(flow, std=lambda params, time, condition: jnp.array(1e-5))
    np.testing.assert_allclose(calm.chain, chain, atol=1e-4)


def test_a_flow_of_one_step_adds_its_velocity_to_the_noise():
    action = sampled(make_flow(num_steps=1), deterministic=True).chain[:, -1]
    start = draws_of(1)[0]
    expected = jnp.clip(start + linear(0.5, start, jnp.zeros(1), CONDITION), -1, 1)
    np.testing.assert_allclose(action, expected, atol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 7])
def test_a_flow_to_one_action_arrives_in_any_number_of_steps(num_steps):
    flow = make_flow(num_steps=num_steps, mean_clip=None)
    for seed in range(3):
        chain = sampled(flow, straight, deterministic=True, seed=seed).chain
        np.testing.assert_allclose(chain[:, -1], ACTION, atol=1e-5)


@pytest.mark.parametrize("time, step", [(0.0, 0.5), (0.25, 0.25), (0.5, 0.125)])
def test_on_straight_paths_two_half_steps_are_one_step(time, step):
    """The shortcut identity (Frans et al. 2024, arXiv 2410.12557, eq. 4)."""
    x = draws_of(1)[0]
    first = straight(None, x, jnp.full(B, time), None)
    second = straight(None, x + step * first, jnp.full(B, time + step), None)
    np.testing.assert_allclose(0.5 * (first + second), first, atol=1e-5)


def test_the_bounded_std_stays_between_its_bounds_and_starts_in_their_middle():
    flow = make_flow(std_min=0.05, std_max=0.2)
    output = jnp.linspace(-50, 50, 101)
    std = bounded_std(flow, output)
    assert (std >= 0.05 - 1e-7).all() and (std <= 0.2 + 1e-7).all()
    assert (jnp.diff(std) >= 0).all()
    np.testing.assert_allclose(std[jnp.array([0, -1])], [0.05, 0.2], rtol=1e-5)
    assert bounded_std(flow, jnp.zeros(())) == pytest.approx(0.1, rel=1e-6)
    # Its logarithm is linear in tanh: three quarters of the way at tanh = 1/2.
    quarter = bounded_std(flow, jnp.arctanh(0.5))
    assert quarter == pytest.approx(0.05 * 4**0.75, rel=1e-5)
    fixed = bounded_std(make_flow(std_min=0.1, std_max=0.1), output)
    np.testing.assert_allclose(fixed, 0.1, rtol=1e-6)


def test_the_mean_is_clipped_only_if_asked_to():
    x, velocity = jnp.array([0.9, -0.9, 0.0]), jnp.array([1.0, -1.0, 1.0])
    free = flow_mean(make_flow(num_steps=2, mean_clip=None), x, velocity)
    np.testing.assert_allclose(free, [1.4, -1.4, 0.5])
    clipped = flow_mean(make_flow(num_steps=2, mean_clip=1.2), x, velocity)
    np.testing.assert_allclose(clipped, [1.2, -1.2, 0.5])


def test_a_flow_is_cloned_on_straight_paths_from_noise_to_action():
    noise = draws_of(1)[0]
    cloning = flow_cloning()
    for time, expected in ((0.0, noise), (1.0, ACTION), (0.25, None)):
        x, told, target = cloning.corrupt(ACTION, noise, jnp.full(B, time))
        expected = 0.75 * noise + 0.25 * ACTION if expected is None else expected
        np.testing.assert_allclose(x, expected, atol=1e-6)
        np.testing.assert_array_equal(told, jnp.full(B, time))
        np.testing.assert_array_equal(target, ACTION - noise)
    # Whoever knows the action errs nowhere, but one who stays where it is does.
    time = jnp.array([0.1, 0.5, 0.9])
    losses = [
        cloning_loss(cloning, velocity, None, ACTION, None, time=time, noise=noise)
        for velocity in (straight, lambda params, x, time, condition: 0 * x)
    ]
    np.testing.assert_allclose(losses[0], 0, atol=1e-9)
    expected = ((ACTION - noise) ** 2).mean((-2, -1))
    np.testing.assert_allclose(losses[1], expected, rtol=1e-5)


def times_of(**settings):
    keys = jax.random.split(jax.random.key(0), 20_000)
    return np.asarray(jax.vmap(flow_cloning(**settings).draw_time)(keys))


def test_times_of_cloning_are_distributed_as_asked():
    """Quantiles of a uniform and of a logit-normal: of its logarithm of odds, 16 % lie
    below -1 and 84 % below 1."""
    uniform = times_of()
    assert (uniform >= 0).all() and (uniform < 1).all()
    np.testing.assert_allclose(
        np.quantile(uniform, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.02
    )
    logit = times_of(times="logit-normal")
    odds = np.log(logit / (1 - logit))
    np.testing.assert_allclose(
        np.quantile(odds, [0.1587, 0.5, 0.8413]), [-1, 0, 1], atol=0.05
    )
    values, counts = np.unique(
        times_of(times="discrete", num_times=4), return_counts=True
    )
    np.testing.assert_array_equal(values, [0, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(counts / counts.sum(), 0.25, atol=0.02)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(num_steps=0), "flow_steps=0 must be at least 1"),
        (dict(std_min=0.3, std_max=0.2), "std_min=0.3 and std_max=0.2"),
        (dict(std_min=0.0), "std_min=0.0 .* equal bounds fix"),
        (dict(mean_clip=0.0), "mean_clip=0.0 must be positive; use None"),
        (dict(draw_clip=-1.0), "draw_clip=-1.0 must be positive"),
        (dict(final_clip=0.0), "final_clip=0.0 must be positive; use None"),
    ],
)
def test_settings_that_make_no_flow_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        make_flow(**settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(times="beta"), "flow.times='beta' .* uniform, logit-normal, discrete"),
        (dict(times="discrete", num_times=0), "flow.num_times=0"),
    ],
)
def test_unknown_times_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        flow_cloning(**settings)
