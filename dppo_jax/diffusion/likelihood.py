"""The log-density of actions under the probability-flow ODE of a diffusion policy.

Besides its chain a denoiser defines an ordinary differential equation that turns noise
into actions with the same marginals (Song et al. 2021, arXiv 2011.13456, eq. 13). The
change of variables along it gives the log-density of a single action (their eq. 39),
which a chain gives for its moves alone. The DPPO paper compares with this in App. B.5.

The forward process of a schedule is x = cos(u) x0 + sin(u) noise, where cos(u) is
`signal` and sin(u) is `noise`. With the angle u in place of time the equation reads

    dx / du = v(x, u) = (cos(u) x - x0(x, u)) / sin(u),

where x0(x, u) is the clean action that the network predicts, clipped as in the chain.
No rate beta(t) occurs, so the marginals are those of the discrete schedule. If
x(u_0) = cos(u_0) a at the cleanest angle and x(u_1) is the solution at the noisiest,

    log p(a) = log N(x(u_1); 0, I) + integral of div v du + D log cos(u_0),

which is the density of an action plus noise of the standard deviation tan(u_0), the
least that the network is trained with (0.09 for K = 20). Chains explore with about as
much.

The schedule knows K angles, which grow by nearly equal steps with the cosine schedule.
Between two denoising steps the angle and the network's input time are interpolated
linearly in each other. With `num_steps` = K - 1 the network is told only times that it
was trained on.

By default Heun's method with fixed steps solves the equation, which compiles to one
`scan`. With a tolerance, Tsitouras' method of fifth order with adaptive steps does, by
diffrax (an extra), in the place of the reference's `torchdiffeq`. At the noisiest
level, where cos(u) is 0.0025 for K = 20, both need the bound of x0: without it an error
of the predicted noise is multiplied by 400, and fixed steps diverge for some actions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.diffusion.denoising import Diffusion
from dppo_jax.diffusion.schedules import Schedule
from dppo_jax.types import Array

# x [B, Ta, Da] and the integral of its divergence [B].
Solution = tuple[Array, Array]


class Levels(NamedTuple):
    """Levels of noise, the cleanest first; leaves [n + 1], or scalars of one level.

    angle: u.
    width: the angle up to the next level, 0 for the last.
    signal, noise: cos(u) and sin(u).
    time: the network's input time.
    step: the denoising step that is nearest; 0 is the noisiest.
    """

    angle: Array
    width: Array
    signal: Array
    noise: Array
    time: Array
    step: Array


# x and its level -> the derivatives of a solution.
Derivative = Callable[[Array, Levels], Solution]


def ode_levels(schedule: Schedule, num_steps: int | None = None) -> Levels:
    """The ends of `num_steps` steps of the solver, equally spaced in denoising steps.

    Args:
        schedule: of K >= 2 denoising steps.
        num_steps: n; None: K - 1, one from each denoising step to the next.

    """
    # In float64, because angles differ little.
    last = schedule.num_denoising_steps - 1
    assert last >= 1, "the equation needs two denoising steps"
    # Position 0 is the cleanest denoising step.
    position = np.linspace(0, last, (last if num_steps is None else num_steps) + 1)
    signal, noise, time = (
        np.asarray(table, np.float64)[::-1]
        for table in (schedule.signal, schedule.noise, schedule.time)
    )
    known = np.arange(last + 1)
    angle = np.interp(position, known, np.arctan2(noise, signal))
    levels = dict(
        angle=angle,
        width=np.diff(angle, append=angle[-1:]),
        signal=np.cos(angle),
        noise=np.sin(angle),
        time=np.interp(position, known, time),
    )
    return Levels(
        **{name: jnp.asarray(x, jnp.float32) for name, x in levels.items()},
        step=jnp.asarray(last - np.floor(position + 0.5), jnp.int32),
    )


def clean_action(diffusion: Diffusion, x: Array, out: Array, level: Levels) -> Array:
    """The clean action that the network's output `out` stands for, like `x`."""
    chex.assert_equal_shape([x, out])
    x0 = (x - level.noise * out) / level.signal if diffusion.predict_noise else out
    if diffusion.x0_clip is not None:
        x0 = jnp.clip(x0, -diffusion.x0_clip, diffusion.x0_clip)
    return x0


def draw_probes(keys: Array, shape: tuple[int, ...], *, num_probes: int) -> Array:
    """[B, P, *shape] entries of -1 or 1 (Rademacher), every row from its own key."""
    return jax.vmap(
        lambda key: jax.random.rademacher(key, (num_probes, *shape), jnp.float32)
    )(keys)


def ode_log_prob(
    clean: Callable[[Array, Levels], Array],
    levels: Levels,
    action: Array,
    probes: Array,
    *,
    tolerance: float | None = None,
) -> Array:
    """Log-density of actions.

    The divergence is Hutchinson's estimate, the mean of e^T (dv / dx) e over the probes
    e (Song et al. 2021, eq. 40). It is exact where dv / dx is diagonal. The same probes
    give the same function of the parameters, so differences of two log-densities are
    free of the noise of the probes where the parameters are equal.

    Args:
        clean: (x [B, Ta, Da], level) -> the clean action, like x.
        levels: the ends of the solver's steps, see `ode_levels`.
        action: [B, Ta, Da], normalised.
        probes: [B, P, Ta, Da] with entries -1 or 1.
        tolerance: relative and absolute error of a step of diffrax's solver; None: one
            step of Heun's method from each level to the next.

    Returns:
        [B], of whole chunks; NaN if diffrax needs more than 4096 steps.
    """
    chex.assert_equal_shape([action, probes[:, 0]])

    def evaluate(x: Array, level: Levels) -> tuple[Array, Array]:
        """v and its divergence."""

        def velocity(x: Array) -> Array:
            return (level.signal * x - clean(x, level)) / level.noise

        value, derivative = jax.linearize(velocity, x)
        change = jax.vmap(derivative, in_axes=1, out_axes=1)(probes)
        return value, (probes * change).sum((-2, -1)).mean(1)

    signal = levels.signal[0]
    start = (signal * action, jnp.zeros(len(action)))
    if tolerance is None:
        x, total = _heun(evaluate, levels, start)
    else:
        x, total = _tsitouras(evaluate, levels, start, tolerance)
    prior = -0.5 * (x**2 + jnp.log(2 * jnp.pi)).sum((-2, -1))
    return prior + total + action[0].size * jnp.log(signal)


def _heun(evaluate: Derivative, levels: Levels, start: Solution) -> Solution:
    """The solution at the noisiest level, by a step from each level to the next."""
    starts, ends = (
        jax.tree.map(lambda x: x[part], levels)
        for part in (slice(None, -1), slice(1, None))
    )

    # The backward pass evaluates a step again, and keeps the activations of one alone.
    @jax.checkpoint
    def step(carry: Solution, inputs: tuple[Levels, Levels]) -> tuple[Solution, None]:
        (x, total), (start, end), width = carry, inputs, inputs[0].width
        first, first_divergence = evaluate(x, start)
        second, second_divergence = evaluate(x + width * first, end)
        x += width * (first + second) / 2
        return (x, total + width * (first_divergence + second_divergence) / 2), None

    return jax.lax.scan(step, start, (starts, ends))[0]


def _tsitouras(
    evaluate: Derivative, levels: Levels, start: Solution, tolerance: float
) -> Solution:
    """The same by adaptive steps; NaN if they are too many. All rows share the steps.

    Levels between those of `levels` are interpolated as in `ode_levels`.
    """
    import diffrax

    def derivative(angle: Any, solution: Solution, _: None) -> Solution:
        # Denoising steps fall by one from each level to the next.
        step = jnp.interp(angle, levels.angle, levels.step.astype(jnp.float32))
        level = Levels(
            angle=angle,
            width=jnp.zeros(()),
            signal=jnp.cos(angle),
            noise=jnp.sin(angle),
            time=jnp.interp(angle, levels.angle, levels.time),
            step=jnp.ceil(step - 0.5).astype(jnp.int32),
        )
        return evaluate(solution[0], level)

    solved = diffrax.diffeqsolve(
        diffrax.ODETerm(derivative),
        diffrax.Tsit5(),
        t0=levels.angle[0],
        t1=levels.angle[-1],
        dt0=levels.width[0],
        y0=start,
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        throw=False,
    )
    ended = solved.result == diffrax.RESULTS.successful
    return jax.tree.map(lambda x: jnp.where(ended, x[0], jnp.nan), solved.ys)
