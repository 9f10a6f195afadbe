"""A flow as a chain: Euler steps along a velocity, each with Gaussian noise.

A network predicts the velocity v of straight paths from noise z at the time t = 0 to
actions a at t = 1 (rectified flow, Liu et al. 2023, arXiv 2209.03003). ReinFlow (arXiv
2505.22094) turns each of K Euler steps into a Gaussian move, k = 0 ... K - 1,

    t = k / K,   mean = x + v(x, t, s) / K  (then clipped),   x' ~ N(mean, std(t, s)^2).

Without the noise this is the ordinary differential equation of the flow. No weight
depends on K.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.diffusion.chain import Chain, Move
from dppo_jax.diffusion.denoising import Cloning, Denoise
from dppo_jax.errors import SettingsError
from dppo_jax.types import Array, PyTree

# (params, time [1] or [B], condition) -> a standard deviation that broadcasts to x.
Std = Callable[[PyTree, Array, PyTree], Array]

# The least standard deviation. It is also what moves without noise are scored with.
LEAST_STD = 1e-6
TIMES = ("uniform", "logit-normal", "discrete")


class Flow(NamedTuple):
    """How a flow is sampled and scored.

    num_steps: K, the Euler steps.
    std_min, std_max: bounds of the standard deviation of a move.
    mean_clip: bound of the mean of every move, or None.
    draw_clip: bound of standard-normal draws; the density stays unclipped.
    final_clip: bound of the action that leaves the chain, or None.
    """

    num_steps: int
    std_min: float
    std_max: float
    mean_clip: float | None
    draw_clip: float
    final_clip: float | None


def make_flow(
    *,
    num_steps: int = 4,
    std_min: float = 0.1,
    std_max: float = 0.24,
    mean_clip: float | None = 1.0,
    draw_clip: float = 3.0,
    final_clip: float | None = None,
) -> Flow:
    """A checked `Flow`; its defaults are ReinFlow's for Hopper.

    Raises:
        SettingsError: no step, a bound that is not positive, or std_min > std_max.
    """
    if num_steps < 1:
        raise SettingsError(f"flow_steps={num_steps} must be at least 1.")
    if not LEAST_STD <= std_min <= std_max:
        raise SettingsError(
            f"std_min={std_min} and std_max={std_max} must satisfy {LEAST_STD} <= "
            "std_min <= std_max; equal bounds fix the standard deviation."
        )
    for name, bound in (
        ("mean_clip", mean_clip),
        ("draw_clip", draw_clip),
        ("final_clip", final_clip),
    ):
        if bound is not None and not bound > 0:
            cure = "" if name == "draw_clip" else "; use None for no bound"
            raise SettingsError(f"{name}={bound} must be positive{cure}.")
    return Flow(num_steps, std_min, std_max, mean_clip, draw_clip, final_clip)


def flow_time(flow: Flow, step: Array) -> Array:
    """k / K: when move k begins, between noise at 0 and action at 1, like `step`."""
    return jnp.asarray(step) / flow.num_steps


def bounded_std(flow: Flow, output: Array) -> Array:
    """The standard deviation that a network's output stands for, like `output`.

    The logarithm is linear in tanh(output) between those of the bounds (`process_noise`
    in ReinFlow's `model/flow/mlp_flow.py`). An output of 0 gives sqrt(std_min std_max).
    """
    low, high = np.log(np.float32(flow.std_min)), np.log(np.float32(flow.std_max))
    return jnp.exp(low + (high - low) * 0.5 * (jnp.tanh(output) + 1))


def flow_mean(flow: Flow, x: Array, velocity: Array) -> Array:
    """Mean of the next x after one Euler step of length 1 / K, like `x`."""
    mean = x + velocity / flow.num_steps
    if flow.mean_clip is not None:
        mean = jnp.clip(mean, -flow.mean_clip, flow.mean_clip)
    return mean


def flow_chain(
    flow: Flow, velocity: Denoise, std: Std, *, tells_length: bool = False
) -> Chain:
    """The chain of a flow policy.

    Its deterministic mode solves the differential equation: moves without noise, from
    a start that is drawn all the same. The exploring mode has no floor of the standard
    deviation: a move is scored as it is sampled.

    Args:
        velocity: (params, x [B, Ta, Da], time [B] or [1], condition) -> like x.
        tells_length: `velocity` takes times [B, 2] or [1, 2], see `few_steps`.
        std: (params, time [B] or [1], condition) -> what broadcasts to x.
    """

    def move_of(std_of: Std) -> Move:
        def move(
            params: PyTree, x: Array, step: Array, condition: PyTree
        ) -> tuple[Array, Array]:
            # One time for all rows is embedded once.
            time = told = jnp.atleast_1d(flow_time(flow, step))
            if tells_length:
                length = jnp.full_like(time, 1 / flow.num_steps)
                told = jnp.stack([time, length], axis=-1)
            mean = flow_mean(flow, x, velocity(params, x, told, condition))
            return mean, std_of(params, time, condition)

        return move

    return Chain(
        explore=move_of(std),
        deterministic=move_of(lambda params, time, condition: jnp.zeros(())),
        num_denoising_steps=flow.num_steps,
        draw_clip=flow.draw_clip,
        final_clip=flow.final_clip,
        # Below std_min, so it never raises the standard deviation of an exploring move.
        min_log_prob_std=LEAST_STD,
    )


def flow_cloning(*, times: str = "uniform", num_times: int = 20) -> Cloning:
    """What a flow learns: the velocity a - z on straight paths from noise to action.

    x = (1 - t) z + t a, with times drawn one for each row (rectified flow; the choices
    of times are those of Esser et al. 2024, arXiv 2403.03206, Sec. 3.1).

    Args:
        times, num_times: see `time_draw`.

    Raises:
        SettingsError: other times, or none.
    """

    def corrupt(action: Array, noise: Array, time: Array) -> tuple[Array, Array, Array]:
        t = time[:, None, None]
        return (1 - t) * noise + t * action, time, action - noise

    return Cloning(time_draw(times=times, num_times=num_times), corrupt)


def time_draw(
    *, times: str, num_times: int, section: str = "flow"
) -> Callable[[Array], Array]:
    """Make a function, key -> a time between noise at 0 and action at 1, scalar.

    Args:
        times: "uniform" in [0, 1), "logit-normal", which is sigmoid(N(0, 1)), or
            "discrete", each of k / num_times equally often, k < num_times.
        section: of the configuration, for messages.

    Raises:
        SettingsError: other times, or none.
    """
    if times not in TIMES:
        raise SettingsError(
            f"{section}.times={times!r} is unknown; use one of {', '.join(TIMES)}."
        )
    if num_times < 1:
        raise SettingsError(f"{section}.num_times={num_times} must be at least 1.")

    def draw_time(key: Array) -> Array:
        if times == "logit-normal":
            return jax.nn.sigmoid(jax.random.normal(key))
        if times == "discrete":
            return jax.random.randint(key, (), 0, num_times) / num_times
        return jax.random.uniform(key)

    return draw_time
