"""Losses of flow policy optimisation: FPO and FPO++.

FPO (arXiv 2507.21053) replaces the log-probability of an action, which a flow cannot
compute cheaply, by minus its flow-matching loss l on N pairs (noise, time). The pairs
are drawn in the roll-out and stored, so that the losses before and after an update
differ only by the parameters:

    FPO     r   = exp(mean_n l_old,n - mean_n l_new,n)    one ratio for each chunk
    FPO++   r_n = exp(l_old,n - l_new,n)                  one for each pair

(FPO++: arXiv 2602.02481.) r is no ratio of densities: it is one for equal parameters,
and there its gradient is that of minus the loss.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dppo_jax.learning import losses
from dppo_jax.learning.on_policy import Steps
from dppo_jax.learning.on_policy_chunks import ChunkObjective
from dppo_jax.policies import ChainPolicy, PolicyParams
from dppo_jax.rollout import BoundAct
from dppo_jax.types import Array, Metrics, Obs, PyTree

# Keyword argument -> its possible values.
CHOICES = {
    "prediction": ("velocity", "noise"),
    "reduction": ("mean", "root", "chunk"),
    "ratio": ("chunk", "pair"),
    "trust_region": ("clip", "asymmetric"),
}


class Pairs(NamedTuple):
    """Chunks and the N pairs (noise, time) that each is scored on; leaves [B, ...].

    chunk: [B, Ta, Da].
    noise: [B, N, Ta, Da].
    time: [B, N].
    """

    chunk: Array
    noise: Array
    time: Array


def draw_pairs(
    keys: Array, chunk: Array, draw_time: Callable[[Array], Array], *, num_pairs: int
) -> Pairs:
    """Draw N pairs for each chunk [B, Ta, Da] from its own key.

    Args:
        draw_time: key -> time, scalar.
        num_pairs: N.
    """

    def draw(key: Array) -> tuple[Array, Array]:
        noise_key, time_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (num_pairs, *chunk.shape[1:]))
        return noise, jax.vmap(draw_time)(jax.random.split(time_key, num_pairs))

    noise, time = jax.vmap(draw)(keys)
    return Pairs(chunk=chunk, noise=noise, time=time)


def pair_loss(
    error: Array,
    time: Array,
    *,
    prediction: str = "velocity",
    reduction: str = "mean",
    huber: float | None = None,
    bound: float | None = None,
) -> Array:
    """The flow-matching loss of every pair.

    Args:
        error: [..., Ta, Da] the velocity of the network minus that of the straight path
            from the noise at time 0 to the action at time 1.
        time: [...].
        prediction: whose error counts. "noise" is that of the noise x - t v which the
            velocity implies, t times the error of the velocity, as in FPO.
        reduction: "mean" over all D = Ta Da entries, as in cloning and FPO; "root", the
            sum over sqrt(D), and "chunk", the sum over Ta of the mean over Da, as in
            FPO++ for locomotion and for manipulation.
        huber: where Huber's loss turns from half the square to a line; None: the
            square.
        bound: larger losses are clamped to this and have no gradient; None: none are.
            Old and new losses need the same bound, or their ratio does not start at
            one.

    Returns:
        [...].
    """
    chex.assert_equal_shape([error[..., 0, 0], time])
    if prediction == "noise":
        error = time[..., None, None] * error
    each = error**2 if huber is None else optax.huber_loss(error, delta=huber)
    loss = each.mean((-2, -1))
    if reduction == "root":
        loss *= (error.shape[-2] * error.shape[-1]) ** 0.5
    elif reduction == "chunk":
        loss *= error.shape[-2]
    return loss if bound is None else jnp.minimum(loss, bound)


def clamp_above(x: Array, bound: float | None) -> Array:
    """min(x, bound) with the gradient of x (straight through); None: x."""
    if bound is None:
        return x
    return x + jax.lax.stop_gradient(jnp.minimum(x, bound) - x)


def flow_log_ratio(
    loss: Array, old_loss: Array, *, ratio: str, bound: float | None = None
) -> Array:
    """The logarithm of the ratios, by which the loss on the same pairs has fallen.

    Args:
        loss, old_loss: [..., N].
        ratio: "pair": [..., N]. "chunk": [..., 1], of the mean over the pairs, whose
            variance falls as 1 / N.
        bound: log-ratios are clamped to at most this, see `clamp_above`.
    """
    chex.assert_equal_shape([loss, old_loss])
    change = old_loss - loss
    if ratio == "chunk":
        change = change.mean(-1, keepdims=True)
    return clamp_above(change, bound)


def asymmetric_objective(ratio: Array, advantage: Array, clip: float) -> Array:
    """FPO++'s objective of every sample, to be maximised (ASPO, arXiv 2602.02481).

    A >= 0: PPO's min(r A, clip(r) A). A < 0: that of simple policy optimisation,

        r A - |A| / (2 clip) (r - 1)^2,

    highest at r = 1 - clip, so a sample that an update has pushed further is pulled
    back; PPO would leave it where it is.

    Args:
        ratio, advantage: of the same shape.
    """
    chex.assert_equal_shape([ratio, advantage])
    gain = ratio * advantage
    clipped = jnp.minimum(gain, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
    pulled = gain - jnp.abs(advantage) / (2 * clip) * (ratio - 1) ** 2
    return jnp.where(advantage >= 0, clipped, pulled)


def flow_surrogate(
    loss: Array,
    old_loss: Array,
    advantage: Array,
    *,
    clip: float,
    ratio: str = "pair",
    trust_region: str = "asymmetric",
    log_ratio_max: float | None = None,
) -> tuple[Array, losses.SurrogateInfo]:
    """The objective of FPO or FPO++ over a minibatch, to be minimised.

    With equal parameters its gradient is that of flow matching weighted by advantages,
    mean(advantage * loss).

    Args:
        loss, old_loss: [R, N] of the pairs of R chunks, with the new parameters and
            with those that acted.
        advantage: [R] of the chunks.
        clip: half-width of the range of ratios.
        ratio: see `flow_log_ratio`.
        trust_region: "clip" is PPO's; "asymmetric": see `asymmetric_objective`.
        log_ratio_max: bound of log-ratios, straight through; None: no bound.

    Returns:
        The loss and its diagnostics; `approx_kl` measures how far ratios are from one
        and is no divergence of densities.
    """
    chex.assert_equal_shape([loss[:, 0], advantage])
    log_ratio = flow_log_ratio(loss, old_loss, ratio=ratio, bound=log_ratio_max)
    advantage = jnp.broadcast_to(advantage[:, None], log_ratio.shape)
    if trust_region == "clip":
        old = jnp.zeros_like(log_ratio)
        return losses.clipped_surrogate(log_ratio, old, advantage, jnp.asarray(clip))
    info = losses.surrogate_info(log_ratio, jnp.asarray(clip))
    return -asymmetric_objective(jnp.exp(log_ratio), advantage, clip).mean(), info


def flow_objective(
    policy: ChainPolicy,
    *,
    executed: int,
    draw_time: Callable[[Array], Array],
    num_pairs: int,
    prediction: str,
    reduction: str,
    huber: float | None,
    loss_max: float | None,
    ratio: str,
    log_ratio_max: float | None,
    trust_region: str,
    clip: float,
) -> ChunkObjective:
    """Make the objective of a flow; extras are the `Pairs` of chunks and losses [B, N].

    Args:
        policy: with a `velocity_error`.
        executed: number of first actions of a chunk that its losses are computed on.
        draw_time: key -> time of a pair.
        num_pairs: N.
        loss_max: `bound` of the losses before and after.
        prediction, reduction, huber: as in `pair_loss`.
        ratio, log_ratio_max, trust_region, clip: as in `flow_surrogate`.
    """
    velocity_error = policy.velocity_error
    assert velocity_error is not None, "the policy must be a flow"

    def loss_of(params: PyTree, obs: Obs, pairs: Pairs) -> Array:
        error = velocity_error(params, obs, pairs.chunk, pairs.noise, pairs.time)
        return pair_loss(
            error[..., :executed, :],
            pairs.time,
            prediction=prediction,
            reduction=reduction,
            huber=huber,
            bound=loss_max,
        )

    def explore(params: PolicyParams) -> BoundAct:
        def act(keys: Array, obs: Obs) -> tuple[Array, tuple[Pairs, Array]]:
            act_keys, pair_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
            chunk, _ = policy.act(params, act_keys, obs)
            pairs = draw_pairs(pair_keys, chunk, draw_time, num_pairs=num_pairs)
            return chunk, (pairs, loss_of(params.tuned, obs, pairs))

        return act

    def loss(
        tuned: PyTree, params: PolicyParams, steps: Steps
    ) -> tuple[Array, Metrics]:
        pairs, old_loss = steps.extras
        new_loss = loss_of(tuned, steps.obs, pairs)
        surrogate, info = flow_surrogate(
            new_loss,
            old_loss,
            steps.advantage,
            clip=clip,
            ratio=ratio,
            trust_region=trust_region,
            log_ratio_max=log_ratio_max,
        )
        metrics = {"policy_loss": surrogate, "flow_loss": new_loss.mean()}
        return surrogate, metrics | info._asdict()

    return ChunkObjective(explore, loss)
