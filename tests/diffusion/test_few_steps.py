"""Average velocities: shortcut models and MeanFlow.

The actions of every entry are N(M, S^2) and the noise N(0, 1). The flow keeps the
quantiles of the marginals N(t M, (1 - t)^2 + t^2 S^2), so its average velocities are
known.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.diffusion.chain import Encoded, sample_chain
from dppo_jax.diffusion.denoising import cloning_loss
from dppo_jax.diffusion.few_steps import (
    mean_flow_cloning,
    mean_flow_target,
    shortcut_cloning,
    shortcut_target,
)
from dppo_jax.diffusion.flow import flow_chain, make_flow
from dppo_jax.errors import SettingsError

M, S = 0.4, 0.3
CLONING = {"shortcut": shortcut_cloning(), "mean_flow": mean_flow_cloning()}
STEPS = (1, 2, 4)


def end_of(x, time, length):
    """Where the flow takes x from t to t + h."""
    later = time + length
    scale, later_scale = (jnp.sqrt((1 - t) ** 2 + t**2 * S**2) for t in (time, later))
    return later * M + (x - time * M) * later_scale / scale


def velocity_at(x, time):
    scale = (1 - time) ** 2 + time**2 * S**2
    return M + (time * S**2 - (1 - time)) / scale * (x - time * M)


def average(x, told):
    """u(x, t, h); where h = 0 the velocity itself."""
    time, length = told[:, 0, None, None], told[:, 1, None, None]
    safe = jnp.where(length > 0, length, 1)
    moved = (end_of(x, time, safe) - x) / safe
    return jnp.where(length > 0, moved, velocity_at(x, time))


def point(action):
    """The average velocity of a flow to a single action: all paths are straight."""
    return lambda x, told: (action - x) / (1 - told[:, 0, None, None])


def drawn(kind, num_rows=200, seed=0):
    """Times and lengths as in cloning, and x on the way."""
    keys = jax.random.split(jax.random.key(seed), num_rows)
    told = jax.vmap(CLONING[kind].draw_time)(keys)
    noise = jax.random.normal(jax.random.key(1), (num_rows, 2, 1))
    return told, noise


def target_of(kind, network, x, told, velocity):
    if kind == "shortcut":
        return shortcut_target(network, x, told, velocity, max_steps=128)
    return mean_flow_target(network, x, told, velocity)


def test_the_average_velocities_of_these_tests_are_those_of_the_flow():
    """By 4000 small Euler steps."""
    x = jnp.array([[[-1.0]], [[0.5]], [[2.0]]])
    told = jnp.array([[0.1, 0.8], [0.0, 1.0], [0.5, 0.25]])
    time, length = told[:, 0, None, None], told[:, 1, None, None]
    end = jax.lax.fori_loop(
        0,
        4000,
        lambda i, y: y + length / 4000 * velocity_at(y, time + i / 4000 * length),
        x,
    )
    np.testing.assert_allclose((end - x) / length, average(x, told), atol=2e-3)


def test_average_velocities_satisfy_the_identity_of_mean_flow():
    told, x = drawn("mean_flow")
    found = mean_flow_target(average, x, told, velocity_at(x, told[:, 0, None, None]))
    np.testing.assert_allclose(found, average(x, told), rtol=1e-5, atol=1e-5)


def test_average_velocities_satisfy_the_identity_of_shortcuts():
    """Up to the shortest half step, which is asked of the velocity: lengths of 1 / 64
    are left to the next test."""
    told, x = drawn("shortcut", 400)
    told = told.at[:, 1].set(jnp.where(told[:, 1] < 0.02, 0.5, told[:, 1]))
    told = told.at[:, 0].set(jnp.floor(told[:, 0] / told[:, 1]) * told[:, 1])
    found = shortcut_target(average, x, told, jnp.nan * x, max_steps=128)
    np.testing.assert_allclose(found, average(x, told), rtol=1e-5, atol=1e-5)


def test_the_shortest_half_steps_are_asked_of_the_velocity():
    asked = []

    def network(x, told):
        asked.append(told)
        return x

    told = jnp.array([[0.5, 1 / 4], [0.0, 1 / 8], [0.25, 0.0]])
    x = jnp.ones((3, 1, 1))
    found = shortcut_target(network, x, told, 7 * x, max_steps=16)
    np.testing.assert_allclose(asked[0], [[0.5, 0.125], [0.0, 0.0], [0.25, 0.0]])
    np.testing.assert_allclose(asked[1], [[0.625, 0.125], [0.0625, 0.0], [0.25, 0.0]])
    # The second half step is as long as the first, whatever the network is asked.
    np.testing.assert_allclose(found.ravel(), [1 + 1 / 16, 1 + 1 / 32, 7])


@pytest.mark.parametrize("kind", CLONING)
def test_a_single_action_is_learned_exactly(kind):
    """Its average velocities are those of straight paths: no row has a loss, and any
    number of steps ends at the action, whatever the noise."""
    told, noise = drawn(kind)
    action = jnp.broadcast_to(jnp.array([[0.3], [-0.6]]), noise.shape)
    network = point(action)
    # Close to t = 1 the velocity divides rounding errors by 1 - t.
    told = told.at[:, 0].set(jnp.minimum(told[:, 0], 0.9))
    told = told.at[:, 1].set(jnp.minimum(told[:, 1], 0.95 - told[:, 0]))
    loss = cloning_loss(
        CLONING[kind],
        lambda params, x, told, condition: network(x, told),
        None,
        action,
        None,
        time=told,
        noise=noise,
    )
    np.testing.assert_allclose(loss, 0, atol=1e-8)
    for num_steps in STEPS:
        chain = sampled(num_steps, lambda params, x, told, _: network(x, told), noise)
        np.testing.assert_allclose(chain[:, -1], action, atol=1e-5)


def sampled(num_steps, velocity, noise):
    flow = make_flow(num_steps=num_steps, mean_clip=None)
    chain = flow_chain(flow, velocity, lambda *_: jnp.ones(()), tells_length=True)
    nothing = Encoded(None, None)
    draws = jnp.concatenate([noise[None], jnp.zeros((num_steps, *noise.shape))])
    return sample_chain(
        chain,
        nothing,
        lambda step: nothing,
        draws,
        num_tuned=num_steps,
        min_std=0.0,
        deterministic=True,
    ).chain


@pytest.mark.parametrize("num_steps", STEPS)
def test_a_step_has_no_error_however_long(num_steps):
    """Every entry of a chain lies on the path of the flow: the network is told when a
    step begins and how long it is."""
    _, noise = drawn("shortcut", 50)
    chain = sampled(num_steps, lambda params, x, told, _: average(x, told), noise)
    for k in range(num_steps + 1):
        expected = end_of(noise, jnp.float32(0), k / num_steps)
        np.testing.assert_allclose(chain[:, k], expected, rtol=1e-5, atol=1e-5)
    assert abs(np.std(chain[:, -1]) - S) < 0.1


def bent(x, told):
    """A network without any such property."""
    time, length = told[:, 0, None, None], told[:, 1, None, None]
    return jnp.sin(2 * x + time) * jnp.exp(-length) + 0.3 * x * time


def test_the_derivative_along_the_path_is_a_finite_difference():
    """The end t + h stays where it is."""
    told, x = drawn("mean_flow")
    velocity = 0.5 * x + 1
    found = mean_flow_target(bent, x, told, velocity)
    e = 1e-2
    ends = [
        bent(x + s * e * velocity, told + s * e * jnp.array([1.0, -1.0]))
        for s in (1, -1)
    ]
    change = (ends[0] - ends[1]) / (2 * e)
    expected = velocity + told[:, 1, None, None] * change
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("kind", CLONING)
def test_no_gradient_passes_through_targets(kind):
    told, noise = drawn(kind)
    action = 0.3 * jnp.ones_like(noise)
    x = (1 - told[:, 0, None, None]) * noise + told[:, 0, None, None] * action

    def denoise(params, x, told, condition):
        return params * bent(x, told) + condition

    def loss(params):
        return cloning_loss(
            CLONING[kind], denoise, params, action, 0.2 * params, time=told, noise=noise
        ).mean()

    def network(x, told):
        return denoise(0.7, x, told, 0.2 * 0.7)

    target = target_of(kind, network, x, told, action - noise)
    error = network(x, told) - target
    value, slope = jax.value_and_grad(loss)(0.7)
    assert value == pytest.approx(float((error**2).mean()), rel=1e-5)
    expected = (2 * error * (bent(x, told) + 0.2)).mean()
    assert slope == pytest.approx(float(expected), rel=1e-4)


def test_times_and_lengths_are_those_of_the_papers():
    told, _ = drawn("shortcut", 20_000)
    time, length = np.asarray(told).T
    stepped = length > 0
    assert stepped.mean() == pytest.approx(0.25, abs=0.015)
    values, counts = np.unique(length[stepped], return_counts=True)
    np.testing.assert_array_equal(values, 0.5 ** np.arange(6, -1, -1))
    np.testing.assert_allclose(counts / counts.sum(), 1 / 7, atol=0.02)
    starts = time[stepped] / length[stepped]
    np.testing.assert_array_equal(starts, np.round(starts))
    quarter = time[length == 0.25]
    np.testing.assert_allclose(
        np.histogram(quarter, 4, (0, 1))[0] / len(quarter), 0.25, atol=0.06
    )

    told, _ = drawn("mean_flow", 20_000)
    time, length = np.asarray(told).T
    stepped = length > 0
    assert stepped.mean() == pytest.approx(0.25, abs=0.015)
    assert (time >= 0).all() and (time + length < 1).all()
    # The least of two uniform numbers, and their distance.
    assert time[stepped].mean() == pytest.approx(1 / 3, abs=0.02)
    assert length[stepped].mean() == pytest.approx(1 / 3, abs=0.02)
    assert time[~stepped].mean() == pytest.approx(1 / 2, abs=0.02)


@pytest.mark.parametrize(
    "make, settings, message",
    [
        (shortcut_cloning, dict(max_steps=20), "flow.max_steps=20 must be a power"),
        (shortcut_cloning, dict(max_steps=1), "flow.max_steps=1 must be a power"),
        (shortcut_cloning, dict(step_share=0.0), "flow.step_share=0.0 must lie in"),
        (mean_flow_cloning, dict(step_share=1.5), "flow.step_share=1.5 must lie in"),
        (mean_flow_cloning, dict(times="beta"), "flow.times='beta'"),
    ],
)
def test_wrong_settings_are_refused_by_name(make, settings, message):
    with pytest.raises(SettingsError, match=message):
        make(**settings)
