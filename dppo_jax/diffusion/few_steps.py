"""Cloning of flows that take few steps: networks that predict average velocities.

A network is told when a step begins and how long it is, and predicts the average
velocity u(x, t, h) of the flow from the time t, at x, to t + h. One Euler step along it
has no error then, however long it is; for h = 0 it is the velocity of `flow_cloning`.
Times run from noise at 0 to action at 1, and x = (1 - t) z + t a as there.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dppo_jax.diffusion.denoising import Cloning
from dppo_jax.diffusion.flow import time_draw
from dppo_jax.errors import SettingsError
from dppo_jax.types import Array

# (x [B, Ta, Da], told [B, 2]) -> u like x; told are t and h.
Network = Callable[[Array, Array], Array]


def shortcut_cloning(
    *,
    times: str = "uniform",
    num_times: int = 20,
    step_share: float = 0.25,
    max_steps: int = 128,
) -> Cloning:
    """Shortcut models (Frans et al. 2025, arXiv 2410.12557).

    Rows with h > 0 learn two half steps of the network itself, see `shortcut_target`;
    h is 1, 1/2, 1/4, ... and t a multiple of it. All others learn a - z. Other than the
    paper, whose network of the half steps is an average over updates, this takes the
    present one, as ReinFlow does (arXiv 2505.22094).

    Args:
        times, num_times: of rows with h = 0, see `time_draw`.
        step_share: of the rows that have h > 0.
        max_steps: the shortest half step is 1 / max_steps, a power of two.

    Raises:
        SettingsError: other settings, which the message names.
    """
    _check_share(step_share)
    num_lengths = max_steps.bit_length() - 1
    if max_steps < 2 or max_steps != 2**num_lengths:
        raise SettingsError(
            f"flow.max_steps={max_steps} must be a power of two, at least 2; the "
            "shortest step is 1 / max_steps."
        )
    draw_flow_time = time_draw(times=times, num_times=num_times)

    def draw_time(key: Array) -> Array:
        which, when, how_long = jax.random.split(key, 3)
        num_steps = 2 ** jax.random.randint(how_long, (), 0, num_lengths)
        start = jax.random.randint(when, (), 0, num_steps) / num_steps
        stepped = jnp.stack([start, 1 / num_steps])
        flowing = jnp.stack([draw_flow_time(when), 0.0])
        return jnp.where(jax.random.uniform(which) < step_share, stepped, flowing)

    def refine(network: Network, x: Array, told: Array, velocity: Array) -> Array:
        return shortcut_target(network, x, told, velocity, max_steps=max_steps)

    return Cloning(draw_time, _corrupt, refine, tells_length=True)


def mean_flow_cloning(
    *, times: str = "uniform", num_times: int = 20, step_share: float = 0.25
) -> Cloning:
    """MeanFlow (Geng et al. 2025, arXiv 2505.13447).

    Rows with h > 0, between two times drawn alike, learn `mean_flow_target`; all others
    a - z. Every row counts alike, which is the paper's weight with p = 0.

    Args:
        times, num_times: see `time_draw`.
        step_share: of the rows that have h > 0.

    Raises:
        SettingsError: other settings, which the message names.
    """
    _check_share(step_share)
    draw_flow_time = time_draw(times=times, num_times=num_times)

    def draw_time(key: Array) -> Array:
        which, one, other = jax.random.split(key, 3)
        first, second = draw_flow_time(one), draw_flow_time(other)
        stepped = jnp.stack([jnp.minimum(first, second), jnp.abs(first - second)])
        flowing = jnp.stack([first, 0.0])
        return jnp.where(jax.random.uniform(which) < step_share, stepped, flowing)

    return Cloning(draw_time, _corrupt, mean_flow_target, tells_length=True)


def shortcut_target(
    network: Network, x: Array, told: Array, velocity: Array, *, max_steps: int
) -> Array:
    """The mean of two half steps where h > 0, elsewhere the velocity (their eq. 4),

        (u(x, t, h / 2) + u(x + h / 2 u(x, t, h / 2), t + h / 2, h / 2)) / 2.

    The shortest half step is not learned from shorter ones: the network is asked for
    h = 0 in its place, as in the paper.

    Args:
        told: [B, 2], t and h.
        velocity: like x, the target of rows with h = 0.
        max_steps: as in `shortcut_cloning`.
    """
    time, half = told[:, 0], told[:, 1] / 2
    asked = jnp.where(half * max_steps > 1, half, 0.0)
    first = network(x, jnp.stack([time, asked], axis=-1))
    after = x + half[:, None, None] * first
    second = network(after, jnp.stack([time + half, asked], axis=-1))
    return jnp.where(half[:, None, None] > 0, (first + second) / 2, velocity)


def mean_flow_target(network: Network, x: Array, told: Array, velocity: Array) -> Array:
    """v + h du/dt, which an average velocity equals (their eq. 6).

    The derivative is that along the path, towards an end t + h that stays: dx/dt = v,
    dh/dt = -1. (The paper's time runs from the action to noise, so there it is
    v - h du/dt.) One product of the Jacobian and a vector gives it.

    Args:
        told: [B, 2], t and h.
        velocity: like x; a - z, whose mean given x is v.
    """
    direction = jnp.broadcast_to(jnp.array([1.0, -1.0]), told.shape)
    _, change = jax.jvp(network, (x, told), (velocity, direction))
    return velocity + told[:, 1, None, None] * change


def _corrupt(action: Array, noise: Array, told: Array) -> tuple[Array, Array, Array]:
    t = told[:, 0, None, None]
    return (1 - t) * noise + t * action, told, action - noise


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise SettingsError(
            f"flow.step_share={share} must lie in (0, 1]; it is the share of rows that "
            "learn steps of a length."
        )
