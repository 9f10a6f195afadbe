"""Losses over the moves of a policy's chain; `losses` has losses of plain arrays."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from dppo_jax.diffusion.chain import Moments
from dppo_jax.learning import losses
from dppo_jax.policies import ChainPolicy, PolicyParams
from dppo_jax.types import Array, Obs, PyTree

# The reference's bounds of log-probabilities; they keep probability ratios finite.
LOG_PROB_BOUNDS = (-5.0, 2.0)


def mean_log_prob(
    log_prob: Array,
    *,
    horizon: int | None = None,
    bounds: tuple[float, float] | None = LOG_PROB_BOUNDS,
    bound_entries: bool = True,
) -> Array:
    """Average log-probabilities over a move's entries, for probability ratios.

    Unlike a sum, a mean keeps ratios near one for actions of any size.

    Args:
        log_prob: [..., Ta, Da], entry by entry.
        horizon: number of first actions of the chunk to average over; None: all.
        bounds: log-probabilities are clamped to these; None: not clamped.
        bound_entries: True clamps every entry before averaging, as the reference does
            for diffusion policies; False clamps the mean, as it does for Gaussian
            policies.

    Returns:
        [...].
    """
    log_prob = log_prob[..., :horizon, :]
    if bounds is not None and bound_entries:
        log_prob = jnp.clip(log_prob, *bounds)
    mean = log_prob.mean((-2, -1))
    if bounds is not None and not bound_entries:
        mean = jnp.clip(mean, *bounds)
    return mean


def joint_log_prob(
    log_prob: Array,
    *,
    horizon: int | None = None,
    bounds: tuple[float, float] | None = None,
) -> Array:
    """The log-probability of a move of a `joint` policy: the sum over its entries.

    Args:
        log_prob: [..., Ta, Da], of every entry given those before it.
        horizon: actions of the chunk that count; None: all. The sum is the marginal
            log-probability of the first actions.
        bounds: where the sum is clamped; None: nowhere. The reference clamps to
            `LOG_PROB_BOUNDS`, and nearly all sums lie outside, where the ratio is one
            and has no gradient.

    Returns:
        [...].
    """
    total = log_prob[..., :horizon, :].sum((-2, -1))
    return total if bounds is None else jnp.clip(total, *bounds)


def policy_loss(
    params: PyTree,
    policy: ChainPolicy,
    obs: Obs,
    x: Array,
    next_x: Array,
    step: Array,
    old_log_prob: Array,
    advantage: Array,
    *,
    clip_top: float,
    clip_base: float,
    clip_rate: float,
    denoising_discount: float,
    normalize: bool = True,
    quantiles: tuple[float, float] = (0.0, 1.0),
    num_active: Array | None = None,
    mean: Callable[[Array], Array] = mean_log_prob,
) -> tuple[Array, losses.SurrogateInfo]:
    """Clipped objective over a minibatch of moves (paper eq. 4.5), to be minimised.

    Args:
        x, next_x: [B, Ta, Da] before and after the moves.
        step: [B] index of the move; 0 is the noisiest tuned one.
        old_log_prob: [B] computed while sampling, averaged by `mean`.
        advantage: [B] of the chunk that the move belongs to.
        clip_top, clip_base, clip_rate: see `losses.clip_range`.
        denoising_discount: see `losses.denoising_discount`.
        normalize: whether advantages are normalised over the minibatch.
        quantiles: of the advantages, to which they are then clipped.
        mean: averages the log-probabilities of a move, [B, Ta, Da] -> [B].
        num_active: number of last moves that are still tuned if K' is annealed; earlier
            moves get weight zero. None: all K'.
    """
    advantage = move_advantage(
        advantage,
        step,
        num_tuned_steps=policy.num_tuned_steps,
        denoising_discount=denoising_discount,
        normalize=normalize,
        quantiles=quantiles,
        num_active=num_active,
    )
    return surrogate_loss(
        mean(policy.log_prob(params, x, next_x, obs, step)),
        step,
        old_log_prob,
        advantage,
        num_tuned_steps=policy.num_tuned_steps,
        clip_top=clip_top,
        clip_base=clip_base,
        clip_rate=clip_rate,
        num_active=num_active,
    )


def move_advantage(
    advantage: Array,
    step: Array,
    *,
    num_tuned_steps: int,
    denoising_discount: float,
    normalize: bool = True,
    quantiles: tuple[float, float] = (0.0, 1.0),
    num_active: Array | None = None,
) -> Array:
    """Compute the advantages of moves from those of their chunks.

    Every operation that needs the whole minibatch is here, so that `surrogate_loss` is
    a plain mean over moves. Arguments are as in `policy_loss`; `advantage` and `step`
    have the same shape, which may be any; num_tuned_steps is K'.
    """
    weight = move_weight(step, num_tuned_steps, num_active)
    if normalize:
        advantage = losses.normalize_advantage(advantage, weight)
    advantage = losses.clip_quantiles(advantage, *quantiles, weight)
    return advantage * losses.denoising_discount(
        step, num_tuned_steps=num_tuned_steps, discount=denoising_discount
    )


def surrogate_loss(
    log_prob: Array,
    step: Array,
    old_log_prob: Array,
    advantage: Array,
    *,
    num_tuned_steps: int,
    clip_top: float,
    clip_base: float,
    clip_rate: float,
    num_active: Array | None = None,
) -> tuple[Array, losses.SurrogateInfo]:
    """`policy_loss`, given the `advantage` that `move_advantage` returns.

    Args:
        log_prob: of the moves under the current parameters. It has the same shape as
            `step`, `old_log_prob` and `advantage`, which may be any.
        num_tuned_steps: K'.
    """
    active_step, active = step, jnp.asarray(num_tuned_steps)
    if num_active is not None:
        active_step, active = step - (num_tuned_steps - num_active), num_active
    clip = losses.clip_range(
        active_step,
        num_tuned_steps=active,
        base=clip_base,
        top=clip_top,
        rate=clip_rate,
    )
    weight = move_weight(step, num_tuned_steps, num_active)
    return losses.clipped_surrogate(log_prob, old_log_prob, advantage, clip, weight)


def chain_surrogate_loss(
    log_prob: Array,
    step: Array,
    old_log_prob: Array,
    advantage: Array,
    *,
    num_tuned_steps: int,
    clip: float,
    num_active: Array | None = None,
) -> tuple[Array, losses.SurrogateInfo]:
    """The clipped objective with one ratio for each chain (ReinFlow, arXiv 2505.22094).

    The log-ratio is that of the density of a whole chain, averaged over its K' moves
    and its start (`get_logprobs` in ReinFlow's `model/flow/ft_ppo/ppoflow.py`): the
    density of the start is the same before and after, so it only counts in the divisor,

        log ratio = sum_k (log_prob_k - old_log_prob_k) / (K' + 1).

    Args:
        log_prob, old_log_prob: [R, K'] of all tuned moves, each averaged over entries.
        step: [R, K'] index of the move, 0 the noisiest tuned one.
        advantage: [R] of the environment step.
        num_tuned_steps: K'.
        clip: half-width of the ratio's range.
        num_active: moves that are still tuned, where K' is annealed. None: all K'.
    """
    chex.assert_equal_shape([log_prob, step, old_log_prob])
    change = log_prob - old_log_prob
    weight = move_weight(step, num_tuned_steps, num_active)
    if weight is not None:
        change = change * weight
    active = num_tuned_steps if num_active is None else num_active
    log_ratio = change.sum(-1) / (active + 1)
    return losses.clipped_surrogate(
        log_ratio, jnp.zeros_like(log_ratio), advantage, jnp.asarray(clip)
    )


def move_weight(
    step: Array, num_tuned_steps: int, num_active: Array | None
) -> Array | None:
    """1 for moves that are still tuned, 0 for others; None if all K' are tuned."""
    return None if num_active is None else 1.0 * (step >= num_tuned_steps - num_active)


def chain_kl(old: Moments, new: Moments, weight: Array | None = None) -> Array:
    """The KL divergence from old to new chains, given old chains, [R] in nats.

    With old means m and standard deviations s and new ones M and S, of the tuned moves
    k and the entries i of a chunk, executed or not,

        sum_k sum_i log(S / s) + (s^2 + (m - M)^2) / (2 S^2) - 1 / 2,

    which is sum (m - M)^2 / (2 S^2) where the schedule fixes the standard deviation.
    Its mean over chains of the old policy is the divergence of the chains' densities,
    an upper bound of that of the chunks. It is what TruDi (arXiv 2606.15260) bounds,
    whose code leaves out the terms of the standard deviations. (These are the standard
    deviations of log-probabilities; if the floor of sampling differs, chains are not
    drawn from the old densities.)

    Args:
        old, new: of the same chains, [R, K', Ta, Da].
        weight: [R, K'] of the moves; None: all count.
    """
    log_ratio = jnp.log(old.std) - jnp.log(new.std)
    # In this form the divergence of equal standard deviations is exactly zero.
    kl = 0.5 * jnp.expm1(2 * log_ratio) - log_ratio
    kl += 0.5 * ((old.mean - new.mean) / new.std) ** 2
    kl = kl.sum((-2, -1))
    return (kl if weight is None else kl * weight).sum(-1)


def cloning_penalty(
    params: PyTree,
    policy: ChainPolicy,
    base: PyTree,
    keys: Array,
    obs: Obs,
    *,
    num_active: Array | None = None,
    mean: Callable[[Array], Array] = mean_log_prob,
) -> Array:
    """Negative mean log-probability of chains sampled with the base network.

    It keeps the policy near the cloned one on the observations that the policy itself
    visits (Zhu et al. 2024, arXiv 2403.03949, eq. 2).

    Args:
        keys: [B], one for the chain of each observation.
        num_active, mean: as in `policy_loss`; the mean is over active moves.
    """
    chain = policy.sample(PolicyParams(base, base), keys, obs).chain
    log_prob = mean(policy.chain_log_prob(params, jax.lax.stop_gradient(chain), obs))
    step = jnp.broadcast_to(jnp.arange(policy.num_tuned_steps), log_prob.shape)
    weight = move_weight(step, policy.num_tuned_steps, num_active)
    return -losses.weighted_mean(log_prob, weight)


def action_distance(
    tuned: PyTree, policy: ChainPolicy, params: PolicyParams, keys: Array, obs: Obs
) -> Array:
    """Mean squared distance between the actions of the tuned and the frozen policy.

    Both act in deterministic mode from the same noise, so the sum over the entries of a
    chunk bounds the squared Wasserstein-2 distance of their actions from above. It is
    ReinFlow's regulariser (arXiv 2505.22094), which starts from zero noise alone.

    Args:
        tuned: network parameters, of which this is a function; those in `params` are
            not read.
        keys: [B], one for the noise of each observation.
    """
    frozen = PolicyParams(params.base, params.base)
    action, target = (
        policy.sample(x, keys, obs, deterministic=True).chain[:, -1]
        for x in (params._replace(tuned=tuned), frozen)
    )
    return jnp.mean((action - jax.lax.stop_gradient(target)) ** 2)
